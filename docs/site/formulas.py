"""Blocks of ```math, which are LaTeX, as MathML: a browser draws it by itself, without scripts and fonts."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def fence(source: str, language: str, class_name: str, options: dict[str, Any], md: Any, **_: Any) -> str:
    """One block, as pymdownx.superfences asks for it."""
    return f'<div class="{class_name}">{convert(source, display="block")}</div>'
