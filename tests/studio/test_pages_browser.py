"""Every page in a real browser: narrow and wide, light and dark, by keyboard alone, readable, with names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from goodheart.feedback import campaigns, logins, membership, people
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.label_rows import live_labels
from goodheart.feedback.store import Store
from tests.studio.conftest import PASSWORD, Running, item

LONG = "averyveryverylongwordwithoutanybreak" * 8
TABLE = "|" + " column |" * 12 + "\n|" + "-|" * 12 + "\n|" + " value |" * 12
CODE = "```py\nprint('" + "long line " * 30 + "')\n```\n\n$$" + "x + " * 60 + "y$$"

# What is wrong with a page for people who cannot see it well, or use no mouse. Returns a list of complaints.
CHECK = """() => {
  const wrong = [];
  const visible = (e) => e.checkVisibility({checkOpacity: false, checkVisibilityCSS: true}) && e.getClientRects().length;
  const name = (e) => (e.getAttribute("aria-label") || (e.labels && [...e.labels].map(l => l.textContent).join(" "))
    || (e.getAttribute("aria-labelledby") || "").split(" ").map(id => document.getElementById(id)?.textContent ?? "").join(" ").trim()
    || e.textContent || e.getAttribute("title") || "").trim();
  for (const e of document.querySelectorAll("button, a[href], input:not([type=hidden]), select, textarea, [role=radio], dialog[open], section:not([hidden]), aside, nav, [role=group], [role=radiogroup]"))
    if (visible(e) && !name(e)) wrong.push(`no name: ${e.outerHTML.slice(0, 120)}`);
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  for (const id of new Set(ids)) if (ids.filter(other => other === id).length > 1) wrong.push(`id twice: ${id}`);
  for (const e of document.querySelectorAll("[aria-controls], [aria-labelledby], [aria-describedby]"))
    for (const attribute of ["aria-controls", "aria-labelledby", "aria-describedby"])
      for (const id of (e.getAttribute(attribute) ?? "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) wrong.push(`${attribute} to nothing: ${id}`);
  if (!document.documentElement.lang) wrong.push("no language");
  if (document.querySelectorAll("h1").length !== 1) wrong.push(`${document.querySelectorAll("h1").length} h1`);
  if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");

  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return rgba("Canvas"); };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !visible(e) || e.closest("script, .hidden-text, .skip-link")) continue;
    const [front, back] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 40)} in ${e.className || e.tagName}`);
  }
  const over = document.documentElement.scrollWidth - innerWidth;
  if (over > 0) wrong.push(`wider than the window by ${over}`);
  const box = document.querySelector("dialog[open]");
  if (box && box.scrollWidth > box.clientWidth) wrong.push(`dialog wider than itself by ${box.scrollWidth - box.clientWidth}`);
  return [...new Set(wrong)];
}"""  # noqa: E501

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
# What has the focus; empty where that cannot be seen. A score's own radio button is seen by the number beside it.
FOCUSED = """(element => element.matches("body, [type=radio]") || getComputedStyle(element).outlineStyle !== "none"
    ? element.dataset.do || element.dataset.flag || element.id || element.className || element.tagName
    : "")(document.activeElement)"""


@pytest.fixture
def difficult(store: Store) -> Campaign:
    texts = (f"{LONG}\n\n{TABLE}", CODE, f"- [link](https://x.example/{LONG})\n- `{LONG}`")
    settings = CampaignSettings(name="A campaign with quite a long name", rubric={"empathy": "Kind?", "my_own": "?"})
    items = [item(f"Why? {LONG}", *texts), item("Two?", *texts[:2])]
    return campaigns.create(store, settings, items, f"# Guide\n\n{TABLE}\n\n{LONG}")


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_pages_fit_and_can_be_read(
    store: Store, difficult: Campaign, serving: Callable[..., Running], tab: Callable[..., Any], size: str, scheme: str
) -> None:
    studio = serving()
    page = tab(*SIZES[size], color_scheme=scheme)
    for path in ("/", "/settings", "/nowhere", f"/c/{difficult.id}/guidelines", f"/c/{difficult.id}/me"):
        page.goto(studio.url + path)
        assert page.evaluate(CHECK) == [], path
    page.goto(f"{studio.url}/c/{difficult.id}/label")
    for keys in ("1=2", "1"):  # one of the two is a pair, the other is not; in whichever order they come
        page.wait_for_selector(".card")
        page.wait_for_load_state("networkidle")
        assert page.evaluate(CHECK) == [], keys
        for key, dialog in (("d", "comparing"), ("s", "skipping"), ("?", "help")):
            page.keyboard.press(key)
            page.wait_for_selector(f"#{dialog}[open]")
            page.wait_for_load_state("networkidle")
            assert page.evaluate(CHECK) == [], dialog
            page.keyboard.press("Escape")
        for key in "bc" + keys:
            page.keyboard.press(key)
            if key == "c":
                page.keyboard.press("Escape")
        page.click(".card .flag")
        for position in range(page.locator(".card").count()):
            for score in ("empathy", "my_own"):
                page.check(f".card:nth-child({position + 1}) [data-score={score}] input[value='3']", force=True)
        assert page.evaluate(CHECK) == [], keys
        if page.locator("#missing").text_content() == "Say how much better":
            page.keyboard.press("4")
        page.keyboard.press("Enter")
        page.wait_for_selector("body:not(.busy)")
        page.wait_for_load_state("networkidle")
    page.wait_for_selector("#nothing:not([hidden])")
    assert page.evaluate(CHECK) == []


@pytest.mark.parametrize(("size", "scheme", "locale"), [("desktop", "dark", "en"), ("phone", "light", "zh-TW")])
def test_managers_pages_fit_and_can_be_read(
    store: Store,
    labelled: Campaign,
    serving: Callable[..., Running],
    tab: Callable[..., Any],
    size: str,
    scheme: str,
    locale: str,
) -> None:
    people.add_person(store, LONG[:100])
    item_of_first = next(iter(live_labels(store, labelled.id))).item
    studio = serving()
    page = tab(*SIZES[size], color_scheme=scheme, locale=locale)
    parts = ("", "/people", "/agreement", "/disputes?show=all", f"/disputes/{item_of_first}", "/guidelines/edit",
             "/models", "/coverage", "/export?layout=trl-preference", "/audit?show=all")  # fmt: skip
    for path in ("/new", f"/add/{labelled.id}", *(f"/c/{labelled.id}{part}" for part in parts)):
        page.goto(studio.url + path)
        page.evaluate("document.querySelectorAll('main details').forEach(fold => { fold.open = true; })")
        assert page.evaluate(CHECK) == [], path
        if path.endswith("/people") and size == "desktop":  # a manager's screen shows the whole table
            page.goto(studio.url + path)
            assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.scroll'))") == 0
            assert page.locator("svg.spark").count() == 3


DRAWN = """text => {
  const canvas = new OffscreenCanvas(40, 40).getContext("2d");
  canvas.font = "32px " + getComputedStyle(document.body).fontFamily;
  canvas.fillText(text, 2, 34);
  return [...canvas.getImageData(0, 0, 40, 40).data].join();
}"""


@pytest.mark.parametrize("language", ["zh-TW", "zh-CN"])
def test_chinese_is_drawn(serving: Callable[..., Running], tab: Callable[..., Any], language: str) -> None:
    """Without a font every character is the same box, and a picture of the page shows nothing."""
    page = tab(locale=language)
    page.goto(serving().url)
    drawn = {page.evaluate(DRAWN, sign) for sign in "標註標注"}
    if len(drawn) == 1 and not os.environ.get("CI"):
        pytest.skip("no Chinese font on this machine (apt-get install fonts-noto-cjk)")
    assert len(drawn) == 3  # 標 is there twice


@pytest.mark.parametrize("size", SIZES)
def test_pages_before_log_in(
    store: Store, difficult: Campaign, serving: Callable[..., Running], tab: Callable[..., Any], size: str
) -> None:
    """A person comes by invitation, labels, logs out and in again: by keyboard alone."""
    studio = serving(single_user=False)
    page = tab(*SIZES[size], locale="zh-TW")
    page.goto(f"{studio.url}/login")
    assert page.evaluate(CHECK) == []
    assert page.text_content("h1") == "登入"
    page.goto(f"{studio.url}/invite/{logins.invite(store, campaign=difficult.id)}")
    assert page.evaluate(CHECK) == []
    page.keyboard.type("cleo")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{studio.url}/")
    assert page.evaluate(CHECK) == []
    follow(page, f"/c/{difficult.id}/label")
    page.wait_for_selector(".card")
    assert page.text_content("#submit span") == "提交"
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    assert page.evaluate(CHECK) == []
    page.keyboard.press("Escape")
    page.goto(f"{studio.url}/settings")
    page.click("input[value=zh-Hans]")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=status]")
    assert page.text_content("h1") == "设置"
    cleo = people.find_person(store, "cleo")
    assert cleo is not None
    assert cleo.language == "zh-Hans"
    page.click("text=退出登录")
    page.wait_for_url(f"{studio.url}/login")
    page.keyboard.type("cleo")
    page.keyboard.press("Tab")
    page.keyboard.type("not the password")
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert]")
    assert page.evaluate(CHECK) == []


def follow(page: Any, path: str) -> None:
    """Goes to a link with the Tab key; on the way every stop must be seen to have the focus."""
    for _ in range(30):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if page.evaluate("document.activeElement.getAttribute('href')") == path:
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"no way to {path} by keyboard")


def test_every_control_is_reached_by_tab(
    difficult: Campaign, serving: Callable[..., Running], tab: Callable[..., Any]
) -> None:
    page = tab()
    page.goto(f"{serving().url}/c/{difficult.id}/label")
    page.wait_for_selector(".card")
    page.wait_for_load_state("networkidle")
    reached = set()
    for _ in range(45):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(FOCUSED))
    assert "" not in reached
    wanted = {"choose", "harmful", "undo", "bothBad", "skip", "difference", "raw", "write", "submit", "open-help"}
    assert wanted <= reached


def test_a_wide_table_shows_that_there_is_more_and_texts_have_room(
    store: Store, serving: Callable[..., Running], tab: Callable[..., Any]
) -> None:
    made = campaigns.create(store, CampaignSettings(name="wide"), [item("Question?", "One.\n\nTwo.", "b")], "")
    url = serving().url
    membership.join(store, made.id, people.add_person(store, "anna with a longer name").id)
    page = tab(*SIZES["phone"])
    page.goto(f"{url}/c/{made.id}/people")
    sizes = page.evaluate(
        "(e => [e.scrollWidth > e.clientWidth, getComputedStyle(e).backgroundImage])(document.querySelector('.scroll'))"
    )
    assert sizes[0]  # it scrolls within its card, which has shadows that say so
    assert sizes[1].count("linear-gradient") == 4
    page.goto(f"{url}/c/{made.id}/label")
    page.wait_for_selector(".card .text p")
    assert page.evaluate("getComputedStyle(document.querySelector('.card .text p')).marginTop") == "0px"
    margins = page.evaluate(
        "[...document.querySelectorAll('.card .text p')].map(p => getComputedStyle(p).marginBottom)"
    )
    assert any(float(each.removesuffix("px")) > 8 for each in margins)
