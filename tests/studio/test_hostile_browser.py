"""Hostile answers in a real browser: no script runs, no request leaves, nothing covers the page, nothing is hidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from goodheart.feedback import campaigns
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.label_rows import live_labels
from goodheart.feedback.store import Store
from tests.studio.conftest import Running, item
from tests.studio.test_markdown import BOMBS, HOSTILE

# Whatever runs would leave a trace: a dialog (the fixture `tab` fails on it), a request elsewhere, or this variable.
_TRAPS = tuple(text.replace("alert(1)", "window.ran=1,alert(1)") for text in HOSTILE)
NO_HANDLERS = """[...document.querySelectorAll('.text *')].every(
    element => !element.getAttributeNames().some(name => /^on|^style$|^src$/.test(name)))"""


def look_through(page: Any, tasks: int) -> None:
    """Answers every task, in both ways of showing it, with the differences opened."""
    for done in range(tasks):
        page.wait_for_selector(".card")
        page.keyboard.press("a")
        page.keyboard.press("r")
        page.keyboard.press("r")
        page.keyboard.press("d")
        page.wait_for_selector("#comparing mark, #comparing .side:not(:empty)")
        page.keyboard.press("Escape")
        assert page.evaluate("window.ran === undefined")
        found = ".card :is(script, img, svg, iframe, style, form, object, embed, link, meta, base, video, audio)"
        assert page.locator(found).count() == 0
        assert page.evaluate(NO_HANDLERS)
        page.keyboard.press("=")
        page.keyboard.press("Enter")
        page.wait_for_function(f"() => document.querySelector('#today').textContent.endsWith(' {done + 1}')")
        page.wait_for_selector("body:not(.busy)")


def test_traps_are_only_words(store: Store, serving: Callable[..., Running], tab: Callable[..., Any]) -> None:
    half = len(_TRAPS) // 2
    joined = ["\n\n".join(_TRAPS[:half]), "\n\n".join(_TRAPS[half:])]
    made = campaigns.create(
        store,
        CampaignSettings(name="<script>alert(1)</script>", seed=1),
        [item(joined[0], *joined)],
        "\n\n".join(_TRAPS),
    )
    page = tab()
    page.goto(f"{serving().url}/c/{made.id}/label")
    page.wait_for_selector("#guidelines article:not(:empty)")
    assert page.text_content("h1") == "<script>alert(1)</script>"
    for link in page.locator(".card a").all():
        assert link.get_attribute("href").startswith("https://")
    first = page.locator(".text a").first
    first.scroll_into_view_if_needed()
    first.click()
    page.wait_for_selector("#leaving[open]")  # a press asks first; nothing was opened
    assert len(page.context.pages) == 1
    page.keyboard.press("Escape")
    look_through(page, 1)


def test_bombs_and_huge_texts(store: Store, serving: Callable[..., Running], tab: Callable[..., Any]) -> None:
    texts = list(BOMBS.values())
    mixed = "\n\n".join(text[:300] for text in texts)
    items = [item("All at once", mixed, "x" * 70_000 + "\u202e" * 100), item("Huge", texts[-1], texts[-2])]
    made = campaigns.create(store, CampaignSettings(name="bombs"), items, "")
    page = tab()
    page.goto(f"{serving().url}/c/{made.id}/label")
    page.wait_for_selector(".card")
    page.keyboard.press("a")
    drawn = page.evaluate("document.querySelectorAll('.card *').length")
    assert drawn < 5_000  # a bomb does not multiply
    look_through(page, len(items))
    page.wait_for_selector("#nothing:not([hidden])")
    said = list(live_labels(store, made.id))
    assert [label.ranks for label in said] == [(0, 0), (0, 0)]  # both could be read to the end and answered
    assert all(label.seconds is not None and label.seconds < 20 for label in said)


def test_what_is_hidden_is_shown(store: Store, serving: Callable[..., Running], tab: Callable[..., Any]) -> None:
    turned = "The password is \u202edrowssap\u202c\u200b now \U000e0041\U000e0042"
    arabic = "مرحبا بالعالم، هذا نص بالعربية"
    made = campaigns.create(store, CampaignSettings(name="bidi"), [item("?", turned, arabic)], "")
    page = tab()
    page.goto(f"{serving().url}/c/{made.id}/label")
    page.wait_for_selector(".card .mark")
    shown = page.eval_on_selector_all(".card .mark", "all => all.map(one => one.textContent)")
    assert shown == ["RLO", "PDF", "ZWSP", "E0041", "E0042"]
    directions = "all => all.map(one => getComputedStyle(one).direction)"
    assert sorted(page.eval_on_selector_all(".card .text", directions)) == ["ltr", "rtl"]
