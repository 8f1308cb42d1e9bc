"""LaTeX maths as MathML, which browsers draw by themselves.

What the converter makes is read as XML and written anew from lists of harmless elements and attributes, so that nothing
in a formula (`\\text{<script>}`, `\\href{javascript:...}`) reaches the page. Nothing is hidden and nothing moved over
something else: `\\phantom` is shown, and of lengths only small ones that do not go back are kept. What cannot be
converted is shown as code.
"""

from __future__ import annotations

import re
from html import escape
from xml.etree import ElementTree

from latex2mathml import converter

from goodheart.studio.marks import show

LONGEST = 2000  # characters of one formula; longer ones are shown as code
_ELEMENTS = """
    math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle menclose msub msup msubsup munder
    mover munderover mmultiscripts mprescripts none mtable mtr mtd
"""
_ATTRIBUTES = """
    display displaystyle scriptlevel mathvariant stretchy fence separator form accent accentunder linethickness
    largeop movablelimits minsize maxsize symmetric columnalign rowspacing columnspacing columnlines rowlines width
    height depth lspace rspace notation
"""
ELEMENTS = frozenset(_ELEMENTS.split())
ATTRIBUTES = frozenset(_ATTRIBUTES.split())
_LENGTHS = frozenset(
    (
        "linethickness",
        "minsize",
        "maxsize",
        "rowspacing",
        "columnspacing",
        "width",
        "height",
        "depth",
        "lspace",
        "rspace",
    )
)
_SHOWN = {"mphantom": "mrow", "mpadded": "mrow"}  # they hide what is in them, or move it
_LENGTH = re.compile(r"(\d{0,6}\.?\d{1,6})(em|ex|px|pt|mu|cm|mm|in|)")
_EM = {"em": 1.0, "ex": 0.5, "px": 1 / 16, "pt": 1 / 12, "mu": 1 / 18, "cm": 2.4, "mm": 0.24, "in": 6.0, "": 1.0}
_LONGEST_EM = 5.0
_PREFIX = "{http://www.w3.org/1998/Math/MathML}"


def mathml(tex: str, *, display: bool) -> str:
    """HTML of a formula; `<code>` where it is not understood."""
    if len(tex) <= LONGEST:
        try:
            return _clean(ElementTree.fromstring(converter.convert(tex, display="block" if display else "inline")))
        except Exception:  # the converter raises many kinds, RecursionError among them; the formula is still shown
            pass
    return f'<code class="tex">{show(tex.strip())}</code>'


def _clean(element: ElementTree.Element) -> str:
    """One element and what is in it, written from the lists above.

    Raises:
        ValueError: an element that is not MathML.
    """
    name = element.tag.removeprefix(_PREFIX)
    name = _SHOWN.get(name, name)
    if name not in ELEMENTS:
        raise ValueError(f"<{name}> is not MathML")
    kept = {key: value for key, value in element.attrib.items() if key in ATTRIBUTES and _keeps_place(key, value)}
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in kept.items() if name != "mrow")
    inside = "".join(_clean(child) + show(child.tail or "") for child in element)
    return f"<{name}{attributes}>{show(element.text or '')}{inside}</{name}>"


def _keeps_place(key: str, value: str) -> bool:
    """Whether an attribute that is a length is small and does not go back; all others are."""
    if key not in _LENGTHS:
        return True
    found = _LENGTH.fullmatch(value)
    return found is not None and float(found[1]) * _EM[found[2]] <= _LONGEST_EM
