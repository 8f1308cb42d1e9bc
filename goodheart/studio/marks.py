"""Characters that hide or turn text are shown as visible marks.

A reader must see what a model wrote. Controls of the writing direction can make a text read otherwise than it is
stored, zero-width and tag characters can hide words (or instructions) in it, and lone surrogates are not text at all.
Each of them becomes `<span class="mark" title="U+202E RIGHT-TO-LEFT OVERRIDE">RLO</span>`, and loses its effect.

Joiners stay where a script or an emoji needs them: after letters of Arabic, Indic and Southeast Asian scripts, and
between emoji.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape

_SHORT = {
    0x00AD: "SHY",
    0x061C: "ALM",
    0x180E: "MVS",
    0x200B: "ZWSP",
    0x200C: "ZWNJ",
    0x200D: "ZWJ",
    0x200E: "LRM",
    0x200F: "RLM",
    0x2028: "LS",
    0x2029: "PS",
    0x202A: "LRE",
    0x202B: "RLE",
    0x202C: "PDF",
    0x202D: "LRO",
    0x202E: "RLO",
    0x2060: "WJ",
    0x2066: "LRI",
    0x2067: "RLI",
    0x2068: "FSI",
    0x2069: "PDI",
    0xFEFF: "BOM",
}
# Control characters (but tab and line feed), the table above, invisible operators, fillers, tags, variation selectors.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"
_JOINED = re.compile("[\u0600-\u07bf\u0840-\u08ff\u0900-\u0fff\u1000-\u109f\u1780-\u17ff\u1800-\u18af]")
_EMOJI = re.compile("[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def sound(text: str) -> str:
    """The text with line ends as `\\n` and with U+FFFD where it holds what is no character; it can be sent as UTF-8."""
    return _SURROGATE.sub("\ufffd", text).replace("\r\n", "\n").replace("\r", "\n")


def show(text: str) -> str:
    """HTML of a plain text: escaped, with marks for what cannot be seen."""
    if _ODD.search(text) is None:
        return escape(text)
    parts, end = [], 0
    for found in _ODD.finditer(text):
        if _belongs(text, found.start()):
            continue
        parts += [escape(text[end : found.start()]), _mark(found.group())]
        end = found.end()
    return "".join([*parts, escape(text[end:])])


def _belongs(text: str, at: int) -> bool:
    """Whether the invisible character at this place is part of ordinary writing."""
    one, before = text[at], text[at - 1 : at]
    if not before:
        return False
    if one in _JOINERS:
        return bool(_JOINED.match(before) or (one == "\u200d" and _EMOJI.match(before)))
    if "\U000e0100" <= one <= "\U000e01ef":  # chooses the form of a Chinese character
        return "\u3400" <= before <= "\u9fff" or "\U00020000" <= before <= "\U0003ffff"
    return one == "\ufe0e" and bool(_EMOJI.match(before))  # text form of an emoji


def _mark(one: str) -> str:
    code = ord(one)
    name = unicodedata.name(one, "CONTROL")
    if code < 0x20:
        short = chr(0x2400 + code)
    else:
        short = _SHORT.get(code, f"{code:04X}")
    return f'<span class="mark" title="U+{code:04X} {name}">{short}</span>'
