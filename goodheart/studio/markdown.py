"""What models and users wrote, made into HTML that can do no harm.

Three walls stand one behind the other: the Markdown reader passes no HTML through, its output goes through an
allow-list (nh3), and the pages forbid scripts, styles and requests from anywhere but the studio itself
(`security.py`). Images are never loaded: their text and address are shown. Texts that are made to be slow (deep
nesting, thousands of brackets, endless tables) are shown as plain text.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

from goodheart.studio import maths
from goodheart.studio.marks import show, sound

MARKDOWN_MOST = 40_000  # characters; a longer text is shown as plain text
SHOWN_MOST = 100_000  # characters; of a longer text the rest is left out, and how much that is is said
FOLDED_FROM = 6_000  # characters from which an answer is folded until the reader asks for all of it
_FOLDED_LINES = 60
_HTML_MOST = 2_000_000  # characters of HTML; tables and nesting can blow a short text up
_RAW_MOST = 1_000_000  # characters of HTML; a mark is sixty times as long as the character that it shows
_KEPT_MOST = 50_000_000  # characters of HTML that are kept for the next reader
_NESTING = 20
_PARAGRAPH_MOST = 1_000  # delimiters in one paragraph: the inline rules take quadratic time on them
_DELIMITERS_MOST = 8_000  # in a text
_LINES_MOST = 2_500
_CELLS_MOST = 4_000  # lines with bars times bars of the longest: short rows of a wide table are filled up
_FORMULAS_MOST = 300
_DELIMITER = re.compile(r"[*_~\[\]!`$<\\&]")
_CODE = re.compile(r"[\w.+#-]{1,30}")

_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li"),
    *("pre", "code", "div", "span", "a", "table", "thead", "tbody", "tr", "th", "td"),
    *maths.ELEMENTS,
}
_ATTRIBUTES = {
    "a": {"href", "target"},
    "ol": {"start"},
    "code": {"class", "data-code"},
    "div": {"class"},
    "span": {"class", "title"},
    "th": {"class"},
    "td": {"class"},
    **{name: set(maths.ATTRIBUTES) for name in maths.ELEMENTS},
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as a page shows it."""

    html: str
    raw: str  # HTML of the text as it was written
    characters: int  # of the whole text
    left_out: int  # characters at its end that are not in `html` and `raw`
    folded: bool


@dataclass
class _Kept:
    """The texts that were shown last, as many as fit into `most` characters of HTML."""

    most: int
    size: int = 0
    _by_text: OrderedDict[str, Shown] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, text: str) -> Shown | None:
        with self._lock:
            if text in self._by_text:
                self._by_text.move_to_end(text)
            return self._by_text.get(text)

    def keep(self, text: str, shown: Shown) -> None:
        with self._lock:
            if text in self._by_text:
                return
            self._by_text[text] = shown
            self.size += _size(text, shown)
            while self.size > self.most:
                self.size -= _size(*self._by_text.popitem(last=False))


def _size(text: str, shown: Shown) -> int:
    return len(text) + len(shown.html) + len(shown.raw) + 200


_kept = _Kept(_KEPT_MOST)


def render(text: str) -> Shown:
    """A text as safe HTML, in Markdown and as it was written."""
    shown = _kept.find(text)
    if shown is None:
        shown = _render(text)
        _kept.keep(text, shown)
    return shown


def _render(text: str) -> Shown:
    text = sound(text)
    kept = text[:SHOWN_MOST]
    while len(raw := f'<pre class="raw">{show(kept)}</pre>') > _RAW_MOST:
        kept = kept[: len(kept) // 2]
    html = (_markdown(kept) if _is_quick(kept) else None) or raw
    folded = len(kept) > FOLDED_FROM or kept.count("\n") > _FOLDED_LINES
    return Shown(html, raw, len(text), len(text) - len(kept), folded)


def _is_quick(text: str) -> bool:
    """Whether reading the text as Markdown takes well under a second, whatever is in it."""
    bars = [line.count("|") for line in text.split("\n")] if len(text) <= MARKDOWN_MOST else []
    return (
        0 < len(bars) <= _LINES_MOST
        and sum(map(bool, bars)) * max(bars) <= _CELLS_MOST
        and len(_DELIMITER.findall(text)) <= _DELIMITERS_MOST
    )


def _markdown(text: str) -> str | None:
    """HTML of the Markdown; None where it is too deep, too large or says nothing: then the text is shown as it is."""
    env: dict[str, Any] = {}
    try:
        html = str(_reader().render(text, env))
    except RecursionError:
        return None
    if env.get("deep") or len(html) > _HTML_MOST:
        return None
    clean = nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
        strip_comments=True,
    )
    return clean if clean.strip() else None


@lru_cache(maxsize=1)
def _reader() -> MarkdownIt:
    reader = MarkdownIt(
        "commonmark",
        {"html": False, "linkify": False, "typographer": False, "breaks": True, "maxNesting": _NESTING},
        renderer_cls=_Renderer,
    )
    reader.enable(["table", "strikethrough"])
    reader.disable("reference")  # it takes lines out of the text, and nothing may be hidden from the reader
    reader.use(dollarmath_plugin, allow_labels=False, allow_space=True, allow_digits=False, double_inline=True)
    reader.inline.ruler.before("escape", "math_brackets", _brackets)
    for name in ("math_inline", "math_inline_double", "math_block"):
        reader.add_render_rule(name, _formula)
    reader.core.ruler.before("inline", "bounded", _bound)
    return reader


def _bound(state: StateCore) -> None:
    """Overlong paragraphs are left as plain text; a text that nests too deep, of which the rest is lost, is noted."""
    for token in state.tokens:
        if token.level >= _NESTING - 1:
            state.env["deep"] = True
        if token.type == "inline" and len(_DELIMITER.findall(token.content)) > _PARAGRAPH_MOST:
            token.type, token.children = "plain", None


def _brackets(state: StateInline, silent: bool) -> bool:
    r"""`\( ... \)` and `\[ ... \]`, which models write more often than dollars."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in (r"\(", r"\["):
        return False
    limit = state.pos + 2 + maths.LONGEST
    end = state.src.find(r"\)" if opening == r"\(" else r"\]", state.pos + 2, limit)
    if end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if not silent:
        token = state.push("math_inline" if opening == r"\(" else "math_inline_double", "math", 0)
        token.content = state.src[state.pos + 2 : end]
    state.pos = end + 2
    return True


class _Renderer(RendererHTML):
    """Writes tokens as HTML without style attributes, images and unknown languages; every text with its marks."""

    def text(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return show(tokens[idx].content)

    def plain(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return show(tokens[idx].content)

    def code_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<code>{show(tokens[idx].content)}</code>"

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<pre><code>{show(tokens[idx].content)}</code></pre>\n"

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        language = _CODE.match(tokens[idx].info.strip())
        named = f' data-code="{show(language.group())}"' if language else ""
        return f"<pre><code{named}>{show(tokens[idx].content)}</code></pre>\n"

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        address, words = str(tokens[idx].attrs.get("src", "")), tokens[idx].content
        return f'<span class="image" title="{show_attribute(address)}">{show(words or address)}</span>'

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        address = str(tokens[idx].attrs.get("href", ""))
        env["out"] = _leads_out(address)  # links are never inside links
        return f'<a target="_blank" href="{show_attribute(address)}">' if env["out"] else "<span>"

    def link_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</a>" if env.get("out") else "</span>"

    def heading_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<{_heading(tokens[idx].tag)}>"

    def heading_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"</{_heading(tokens[idx].tag)}>\n"

    def _aligned(self, tokens: Sequence[Token], idx: int) -> str:
        token = tokens[idx]
        side = str(token.attrs.get("style", "")).removeprefix("text-align:").strip()
        return f'<{token.tag} class="{side}">' if side in ("left", "center", "right") else f"<{token.tag}>"

    def th_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return self._aligned(tokens, idx)

    def td_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return self._aligned(tokens, idx)


def _heading(tag: str) -> str:
    """Headings of a text stand below the two levels of the page it is shown on."""
    return f"h{min(6, int(tag[1:]) + 2)}"


def _formula(self: RendererHTML, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
    token = tokens[idx]
    env["formulas"] = env.get("formulas", 0) + 1
    if env["formulas"] > _FORMULAS_MOST:
        return f'<code class="tex">{show(token.content)}</code>'
    formula = maths.mathml(token.content, display=token.type != "math_inline")
    return f'<div class="formula">{formula}</div>\n' if token.type == "math_block" else formula


def _leads_out(address: str) -> bool:
    """Whether a link leads to another web site; all other links are shown as plain words."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def show_attribute(text: str) -> str:
    """A text inside a quoted attribute, without line breaks and with U+FFFD for what cannot be seen."""
    return re.sub(r"<[^>]*>", "\ufffd", show(text.replace("\n", " ")))
