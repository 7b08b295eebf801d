"""Docstrings' roles, such as :func:`sample_kl`, and papers, such as arXiv:1312.6114, as links to what they name."""

from __future__ import annotations

import re
from typing import Any

import griffe

PAPER = re.compile(r"\b(arXiv|doi):(\d[\w./-]*\w)")
ADDRESSES = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
ROLE = re.compile(r":(?:func|class|meth|mod|attr):`([\w.]+)`")


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            linked = ROLE.sub(lambda match: self._link(obj, match[1]), obj.docstring.value)
            obj.docstring.value = PAPER.sub(lambda match: f"[{match[0]}]({ADDRESSES[match[1]]}{match[2]})", linked)

    @staticmethod
    def _link(obj: griffe.Object, name: str) -> str:
        """To the object of that name that is nearest; the name alone where that is on no page of this site."""
        first, dot, rest = name.partition(".")
        parent: griffe.Object | None = obj
        while parent and first not in parent.members:
            parent = parent.parent
        if parent:
            member = parent.members[first]
            first = member.target_path if isinstance(member, griffe.Alias) else member.path
        return f'<autoref identifier="{first}{dot}{rest}" optional><code>{name}</code></autoref>'
