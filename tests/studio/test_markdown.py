"""What models wrote becomes HTML that can do no harm, hides nothing and takes no time."""

from __future__ import annotations

import re
import time

import pytest

from goodheart.studio import markdown
from goodheart.studio.markdown import MARKDOWN_MOST, SHOWN_MOST, render
from goodheart.studio.marks import show, sound
from goodheart.studio.maths import mathml

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\tscript:alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[click](vbscript:x)",
    "![x](javascript:alert(1))",
    '![x](https://evil.example/a.png "onerror=alert(1)")',
    "<https://evil.example/><javascript:alert(1)>",
    "[a](<https://evil.example/\"onmouseover=alert(1) x=\">)",
    "```\"><script>alert(1)</script>\nx\n```",
    "```js onload=alert(1)\nx\n```",
    "`<script>alert(1)</script>`",
    "|a|\n|-|\n|<img src=x onerror=alert(1)>|",
    "$\\text{<script>alert(1)</script>}$",
    "$\\href{javascript:alert(1)}{x}$",
    "\\(\\style{background:url(https://evil.example)}{x}\\)",
    "$$\\text{</math><img src=x onerror=alert(1)>}$$",
    "<style>*{display:none}</style>",
    "<a href='//evil.example' style='position:fixed;inset:0'>x</a>",
    "<form action=https://evil.example><input name=a></form>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "\x00<scr\x00ipt>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "</pre></code><script>alert(1)</script>",
)  # fmt: skip
_ALLOWED = re.compile(
    r"""(?:[\ ](?:class|title|data-code|rel|target|start|display|mathvariant|stretchy|fence|form|separator)="[^"<>]*"
    |[\ ]href="https?://[^"<>]*")*""",
    re.VERBOSE,
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_only_words(text: str) -> None:
    for html in (render(text).html, render(text).raw):
        for name, attributes in re.findall(r"<([a-z0-9]+)((?:[^<>\"]|\"[^\"]*\")*)>", html):
            assert name not in ("script", "img", "svg", "iframe", "style", "form", "input", "object", "mglyph"), html
            assert _ALLOWED.fullmatch(attributes), html
        assert "javascript:" not in "".join(re.findall(r'="([^"]*)"', html)).lower().replace("&colon;", ":")


def test_markdown_maths_and_tables() -> None:
    html = render("**b** $x^2$ costs $5 and $10\n\n|a|\n|-:|\n|1|\n\n\\[ \\frac{1}{2} \\]").html
    assert "<strong>b</strong>" in html
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    assert "costs $5 and $10" in html
    assert '<td class="right">1</td>' in html
    assert '<math display="block"><mrow><mfrac>' in html


def test_a_formula_that_is_not_understood_is_code() -> None:
    assert mathml("\\left(", display=False) == '<code class="tex">\\left(</code>'
    assert mathml("x" * 5000, display=False).startswith('<code class="tex">')


@pytest.mark.parametrize("tex", ["\\phantom{a}", "\\vphantom{a}", "\\hphantom{a}", "\\mathllap{a}", "\\raise{20em}{a}"])
def test_a_formula_hides_nothing(tex: str) -> None:
    html = mathml(tex, display=False)
    assert "<mi>a</mi>" in html
    assert not re.search("phantom|mpadded|em|width|lspace", html)


@pytest.mark.parametrize("length", ["-30em", "30em", "9999px", "-500mu", "-1em"])
def test_a_formula_moves_nothing_over_other_words(length: str) -> None:
    assert "<mspace></mspace><mi>x</mi>" in mathml(f"\\hspace{{{length}}}x", display=False)
    assert '<mspace width="1em">' in mathml("a\\quad b", display=False)
    assert "minsize" in mathml("\\big(", display=False)


def test_images_are_not_loaded_and_links_are_guarded() -> None:
    html = render("![a cat](https://x.example/cat.png) [site](https://y.example/)").html
    assert "<img" not in html
    assert '<span class="image" title="https://x.example/cat.png">a cat</span>' in html
    assert '<a target="_blank" href="https://y.example/" rel="noopener noreferrer nofollow">site</a>' in html


def test_what_cannot_be_seen_is_shown() -> None:
    assert show("a\u202eb") == 'a<span class="mark" title="U+202E RIGHT-TO-LEFT OVERRIDE">RLO</span>b'
    assert "ZWSP" in show("a\u200bb")
    assert "E0041" in show("a\U000e0041")  # tag characters can carry hidden instructions
    assert "\u200b" not in render("**a\u200bb** `c\u200bd`\n```\ne\u200bf\n```").html
    family = "\U0001f468\u200d\U0001f469"
    persian = "می\u200cخواهم"
    assert show(family + persian) == family + persian


def test_malformed_text_can_be_sent() -> None:
    assert sound("a\ud800b\r\nc\rd") == "a\ufffdb\nc\nd"
    render("\udfff\ud800\x00\x1b[31m").html.encode("utf-8")


BOMBS = {
    "quotes": ">" * 20_000,
    "nested quotes": "> " * 15_000 + "a",
    "nested lists": "".join("  " * i + "- a\n" for i in range(190)),
    "brackets": "[" * 30_000,
    "links": "[a](" * 9_000,
    "images": "![[" * 12_000,
    "stars": "*a **b " * 5_000,
    "under a thousand stars a paragraph": ("*a **b _c " * 90 + "\n\n") * 30,
    "code": "".join("`" * i + " " for i in range(250)),
    "table": "|a" * 1000 + "|\n" + "|-" * 1000 + "|\n" + "|x\n" * 10_000,
    "wide table": "|a" * 90 + "|\n" + "|-" * 90 + "|\n" + "|x\n" * 100,
    "lines": "a\n" * 19_000,
    "headings": "a\n=\n" * 9_000,
    "fences": "```\n" * 9_000,
    "maths": "$x$ " * 290,
    "deep maths": "$" + "\\sqrt{" * 300 + "x" + "}" * 300 + "$",
    "entities": "&amp;" * 7_000,
    "huge": "word " * 1_000_000,
    "one long word": "a" * 2_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_time(name: str) -> None:
    start = time.process_time()
    shown = render(BOMBS[name])
    assert time.process_time() - start < 1.0
    assert len(shown.html) < 3_000_000
    # Nothing of the text is lost without a word: letters are counted, in text that says what was left out.
    letters = re.sub(r"<[^>]*>", "", shown.html)
    assert letters.count("a") >= min(BOMBS[name].count("a"), SHOWN_MOST) or "math" in name or "amp" in BOMBS[name]


def test_long_texts_are_folded_and_cut() -> None:
    assert not render("short").folded
    assert render("long " * 2000).folded
    shown = render("x" * (SHOWN_MOST + 5))
    assert (shown.characters, shown.left_out) == (SHOWN_MOST + 5, 5)
    assert render("**b**" + " " * MARKDOWN_MOST).html.startswith('<pre class="raw">')


def test_marks_do_not_blow_a_text_up() -> None:
    shown = render("\u200b" * SHOWN_MOST)  # 62 characters of HTML each
    assert len(shown.raw) < 1_100_000
    seen = shown.raw.count("ZWSP")
    assert seen > 5_000
    assert shown.left_out == SHOWN_MOST - seen
    assert render("'" * SHOWN_MOST).left_out == 0  # what is only escaped is shown whole


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = markdown._Kept(30_000)
    monkeypatch.setattr(markdown, "_kept", kept)
    first = render("a" * 1000)
    assert render("a" * 1000) is first
    for k in range(40):
        render(f"{k} " * 500)
    assert 15_000 < kept.size <= 30_000
    assert render("a" * 1000) is not first  # it was not looked at for longest
    render("b" * 40_000)  # alone larger than all that is kept
    assert kept.size == 0
