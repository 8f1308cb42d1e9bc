"""Texts from data and models, made fit to be shown: they may hold anything, and some of it turns other text around."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_NOT_PLAIN = re.compile(r"[^\x20-\x7e\n\t]")
# Controls, formats (marks of direction, soft hyphens, tags ...), halves of signs, separators of lines and paragraphs.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_NEEDED = "\u200c\u200d"  # Persian, Indian scripts and emoji are written with them
_FILLERS = "\u115f\u1160\u3164\uffa0"  # of Korean: letters by category, empty to the eye
_LONGEST = 4000  # characters of one text


def said(text: Any) -> str:
    """A text from data or a model: cut at a length, unseen characters as escapes. HTML is not escaped yet."""
    found = str(text)
    cut = found if len(found) <= _LONGEST else found[:_LONGEST] + "…"
    return _NOT_PLAIN.sub(_escaped, cut)


def _escaped(match: re.Match[str]) -> str:
    sign = match.group()
    tag = 0xE0000 <= ord(sign) <= 0xE007F  # some of these have no category
    if sign in _NEEDED or not (tag or sign in _FILLERS or unicodedata.category(sign) in _UNSEEN):
        return sign
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
