"""Texts from data and models, made fit to be shown: they may hold anything, and some of it turns other text around."""

from __future__ import annotations

import re
from typing import Any

# Everything that a browser would not show as a sign of its own, but for line ends and tabs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_LONGEST = 4000  # characters of one text


def said(text: Any) -> str:
    """A text from data or a model: cut at a length, unseen characters as escapes. HTML is not escaped yet."""
    found = str(text)
    cut = found if len(found) <= _LONGEST else found[:_LONGEST] + "…"
    return _UNSEEN.sub(lambda m: m.group().encode("unicode_escape", "surrogatepass").decode("ascii"), cut)
