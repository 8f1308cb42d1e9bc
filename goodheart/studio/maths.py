"""LaTeX maths as MathML, which browsers draw by themselves.

What the converter makes is read as XML and written anew from lists of harmless elements and attributes, so that nothing
in a formula (`\\text{<script>}`, `\\href{javascript:...}`) reaches the page. What cannot be converted is shown as code.
"""

from __future__ import annotations

from html import escape
from xml.etree import ElementTree

from latex2mathml import converter

from goodheart.studio.marks import show

LONGEST = 2000  # characters of one formula; longer ones are shown as code
_ELEMENTS = """
    math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom menclose msub msup msubsup munder
    mover munderover mmultiscripts mprescripts none mtable mtr mtd
"""
_ATTRIBUTES = """
    display displaystyle scriptlevel mathvariant stretchy fence separator form accent accentunder linethickness
    largeop movablelimits minsize maxsize symmetric columnalign rowspacing columnspacing columnlines rowlines width
    height depth lspace rspace notation
"""
ELEMENTS = frozenset(_ELEMENTS.split())
ATTRIBUTES = frozenset(_ATTRIBUTES.split())
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
    if name not in ELEMENTS:
        raise ValueError(f"<{name}> is not MathML")
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in element.attrib.items() if key in ATTRIBUTES)
    inside = "".join(_clean(child) + show(child.tail or "") for child in element)
    return f"<{name}{attributes}>{show(element.text or '')}{inside}</{name}>"
