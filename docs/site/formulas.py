"""Blocks of ```math, which are LaTeX, as MathML: a browser draws it by itself, without scripts.

It needs a font with the sizes and places of mathematics, which not every machine has: the site has one, of the
characters that its formulas are made of.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import ziamath
from fontTools import subset
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert

FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"  # SIL Open Font License 1.1
# What browsers write for a letter that stands alone: Latin and Greek italics of mathematics, of which h is elsewhere.
ITALICS = {*map(chr, (*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C), 0x210E))}

# Of what is not in parentheses: TeX sets a small space there, and the converter none.
LOGARITHM = re.compile(r"(<mi>log</mi>)(?!<mo[^>]*>&#x00028;)")

_characters = set(ITALICS)


def fence(source: str, language: str, class_name: str, options: dict[str, Any], md: Any, **_: Any) -> str:
    """One block, as pymdownx.superfences asks for it."""
    formula = LOGARITHM.sub(r'\1<mspace width="0.167em" />', convert(source, display="block"))
    _characters.update(html.unescape(re.sub(r"<[^>]*>", "", formula)))
    return f'<div class="{class_name}">{formula}</div>'


def write_font(path: Path) -> None:
    """The font of all formulas so far."""
    font = TTFont(FONT)
    part = subset.Subsetter(subset.Options(name_IDs=["*"]))
    part.populate(text="".join(_characters))
    part.subset(font)
    font.save(path)
