"""The labelling page in a real browser: keys, mouse, refresh, undo, lost connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from goodheart.feedback import campaigns, label_rows, membership, people
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.store import Store
from tests.studio.conftest import Running, item, pairs


def live(store: Store, campaign: Campaign) -> list[label_rows.LabelRow]:
    return list(label_rows.live_labels(store, campaign.id, phases=None))


def open_task(page: Any, studio: Running, campaign: Campaign) -> Any:
    page.goto(f"{studio.url}/c/{campaign.id}/label")
    page.wait_for_selector(".card")
    return page


def saved(page: Any) -> None:
    page.wait_for_selector("#saved[data-state=saved]")


def handed_in(page: Any, count: int) -> None:
    """Waits until so many are handed in and the next task is there."""
    expect(page.locator("#today")).to_have_text(f"Today: {count}")
    page.wait_for_selector("body:not(.busy)")


def by_shown(row: label_rows.LabelRow) -> list[int]:
    """Ranks from left to right, as the person saw the answers."""
    assert row.ranks is not None
    assert row.shown is not None
    return [row.ranks[index] for index in row.shown]


@pytest.fixture
def studio(serving: Callable[..., Running]) -> Running:
    return serving()


def test_a_pair_by_keys(store: Store, campaign: Campaign, studio: Running, tab: Callable[..., Any]) -> None:
    page = open_task(tab(), studio, campaign)
    first = page.text_content("#prompt")
    page.keyboard.press("2")
    page.keyboard.press("Enter")  # the degree is missing: nothing is sent
    assert page.text_content("#missing") == "Say how much better"
    page.keyboard.press("3")
    page.keyboard.press("Shift+1")  # the second answer was touched last
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).not_to_have_text(first)
    saved(page)
    [row] = live(store, campaign)
    assert by_shown(row) == [1, 0]
    assert row.strength == 3
    assert row.shown is not None
    assert row.flags == {"harmful": [row.shown[1]]}
    assert row.seconds is not None
    assert 0 < row.seconds < 60
    assert page.text_content("#today") == "Today: 1"


def test_a_pair_by_mouse_tie_and_all_bad(
    store: Store, campaign: Campaign, studio: Running, tab: Callable[..., Any]
) -> None:
    page = open_task(tab(), studio, campaign)
    page.click("#scale [data-value='-2']")
    page.click(".card:nth-child(1) [data-flag=wrong]")
    page.click("#submit")
    handed_in(page, 1)
    page.keyboard.press("=")
    page.keyboard.press("Enter")
    handed_in(page, 2)
    page.keyboard.press("b")  # all bad needs no ranking
    page.keyboard.press("Enter")
    handed_in(page, 3)
    saved(page)
    one, two, three = live(store, campaign)
    assert (by_shown(one), one.strength) == ([0, 1], 2)
    assert one.shown is not None
    assert one.flags == {"wrong": [one.shown[0]]}
    assert (by_shown(two), two.strength, two.flags) == ([0, 0], None, {})
    assert (by_shown(three), three.flags) == ([0, 0], {"both_bad": True})


@pytest.fixture
def ranked(store: Store) -> Campaign:
    texts = [[f"Answer {k} of {i}" for k in range(4)] for i in range(4)]
    items = [item(f"Question {i}?", *texts[i]) for i in range(4)]
    return campaigns.create(store, CampaignSettings(name="four", rubric={"empathy": "Kind?"}), items, "Rank them.")


def rate_all(page: Any) -> None:
    for position in range(4):
        page.check(f".card:nth-child({position + 1}) .rating input[value='{position + 1}']", force=True)


def test_four_by_keys_with_a_tie_and_scores(
    store: Store, ranked: Campaign, studio: Running, tab: Callable[..., Any]
) -> None:
    page = open_task(tab(), studio, ranked)
    for key in ("3", "1", "=", "4"):  # 3 > 1 = 4 > 2: the last one left is last
        page.keyboard.press(key)
    ranks = page.eval_on_selector_all(".card .rank", "all => all.map(one => one.textContent)")
    assert ranks == ["Rank 2, tied", "Rank 3", "Rank 1", "Rank 2, tied"]
    page.keyboard.press("Enter")
    assert page.text_content("#missing") == "Give every score"
    rate_all(page)
    page.keyboard.press("Enter")
    handed_in(page, 1)
    saved(page)
    [row] = live(store, ranked)
    assert by_shown(row) == [1, 2, 0, 1]
    assert row.ratings is not None
    assert row.shown is not None
    assert [row.ratings["empathy"][index] for index in row.shown] == [1, 2, 3, 4]


def drag(page: Any, source: str, target: str) -> None:
    start, end = page.locator(source).bounding_box(), page.locator(target).bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=8)
    page.mouse.up()


def shown_tiers(page: Any) -> list[list[str]]:
    found = "all => all.map(tier => [...tier.querySelectorAll('.chip')].map(chip => chip.textContent))"
    tiers: list[list[str]] = page.eval_on_selector_all("#tiers .tier", found)
    return tiers


def test_four_by_dragging_and_by_moving_chips(
    store: Store, ranked: Campaign, studio: Running, tab: Callable[..., Any]
) -> None:
    page = open_task(tab(), studio, ranked)
    drag(page, "#pool .chip[data-position='1']", "#tiers .gap:first-child")
    drag(page, ".card:nth-child(3) .choose", "#tiers .gap:last-child")  # from the card itself
    assert shown_tiers(page) == [["2"], ["3"]]
    drag(page, "#pool .chip[data-position='0']", "#tiers .tier:nth-child(4) .label")  # into a tier: a tie
    assert shown_tiers(page) == [["2"], ["1", "3"]]
    drag(page, "#pool .chip[data-position='3']", "#tiers .gap:nth-child(3)")  # between two
    assert shown_tiers(page) == [["2"], ["4"], ["1", "3"]]
    drag(page, "#tiers .chip[data-position='1']", "#pool")  # out again
    assert shown_tiers(page) == [["4"], ["1", "3"]]
    page.keyboard.press("2")
    page.focus(".chip[data-position='1']")
    page.keyboard.press("ArrowLeft")  # half a step up: into the tie, keeping the focus
    assert shown_tiers(page) == [["4"], ["1", "2", "3"]]
    assert page.evaluate("document.activeElement.dataset.position") == "1"
    page.keyboard.press("ArrowLeft")  # and out of it, above
    assert shown_tiers(page) == [["4"], ["2"], ["1", "3"]]
    rate_all(page)
    page.click("#submit")
    handed_in(page, 1)
    saved(page)
    assert by_shown(live(store, ranked)[0]) == [2, 1, 2, 0]


def test_refresh_keeps_the_draft(ranked: Campaign, studio: Running, tab: Callable[..., Any]) -> None:
    page = open_task(tab(), studio, ranked)
    for key in ("4", "2"):
        page.keyboard.press(key)
    page.keyboard.press("c")
    page.keyboard.type("not sure about ")
    asked = page.text_content("#prompt")
    page.reload()  # in the middle of everything, before the draft's short wait is over
    page.wait_for_selector(".card")
    assert page.text_content("#prompt") == asked
    assert shown_tiers(page) == [["4"], ["2"]]
    assert page.input_value("#comment") == "not sure about "


def test_undo_within_a_task_and_after_handing_in(
    store: Store, campaign: Campaign, studio: Running, tab: Callable[..., Any]
) -> None:
    page = open_task(tab(), studio, campaign)
    asked = page.text_content("#prompt")
    page.keyboard.press("1")
    page.keyboard.press("4")
    page.keyboard.press("u")
    assert page.text_content("#scale .chosen") == "How much better? 1 negligibly – 4 much"
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).not_to_have_text(asked)
    second = page.text_content("#prompt")
    page.keyboard.press("u")
    expect(page.locator("#prompt")).to_have_text(asked)
    assert page.text_content("#scale .chosen") == "1 is slightly better"
    assert live(store, campaign) == []
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#scale .chosen") == "Both are equally good"
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_have_text(second)
    saved(page)
    [row] = live(store, campaign)
    assert by_shown(row) == [0, 0]
    assert len(label_rows.history(store, row.item)) == 3  # said, withdrawn, said anew


def test_the_next_task_does_not_wait_for_the_save(campaign: Campaign, studio: Running, tab: Callable[..., Any]) -> None:
    page = open_task(tab(), studio, campaign)
    page.wait_for_load_state("networkidle")
    page.route("**/api/tasks/*/label", lambda route: None)  # the save itself takes for ever
    took = page.evaluate(
        """() => new Promise((resolve) => {
          const press = (key, code) => document.dispatchEvent(new KeyboardEvent("keydown", {key, code, bubbles: true}));
          press("1", "Digit1");
          press("2", "Digit2");
          const start = performance.now();
          const seen = new MutationObserver(() => resolve(performance.now() - start));
          seen.observe(document.querySelector("#answers"), {childList: true});
          press("Enter", "Enter");
        })"""
    )
    assert took < 500  # milliseconds; a twentieth of it where nothing else runs


def test_a_lost_connection_loses_nothing(
    store: Store, campaign: Campaign, studio: Running, tab: Callable[..., Any]
) -> None:
    page = open_task(tab(), studio, campaign)
    page.wait_for_load_state("networkidle")
    refused = {"left": 2}

    def sometimes(route: Any) -> None:
        if refused["left"] > 0:
            refused["left"] -= 1
            route.abort()
        else:
            route.continue_()

    page.route("**/api/tasks/*/label", sometimes)
    page.keyboard.press("1")
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    page.wait_for_selector("#saved[data-state=later]")
    assert "No connection. 1 kept here" in page.text_content("#saved")
    saved(page)
    assert len(live(store, campaign)) == 1
    refused["left"] = 1000
    page.keyboard.press("2")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#saved[data-state=later]")
    page.unroute("**/api/tasks/*/label")
    page.reload()  # the answer waits in the browser and is sent when the page is there again
    page.wait_for_selector(".card")
    saved(page)
    assert sorted(by_shown(row) for row in live(store, campaign)) == [[0, 1], [1, 0]]


def test_skip_difference_guidelines_and_raw(
    store: Store, campaign: Campaign, studio: Running, tab: Callable[..., Any]
) -> None:
    page = open_task(tab(), studio, campaign)
    page.keyboard.press("d")
    page.wait_for_selector("#comparing mark")
    assert sorted(page.eval_on_selector_all("#comparing mark", "all => all.map(one => one.textContent)")) == [
        "First",
        "Second",
    ]
    page.keyboard.press("Escape")
    if page.is_hidden("#guidelines"):
        page.keyboard.press("g")
    page.wait_for_selector("#guidelines em")
    page.keyboard.press("r")
    assert page.is_visible(".card pre.raw")
    asked = page.text_content("#prompt")
    page.keyboard.press("s")
    page.check("#skipping [value=broken]")
    page.click("#skipping [value=skip]")
    expect(page.locator("#prompt")).not_to_have_text(asked)
    saved(page)
    with store.read() as connection:
        found = connection.exec_driver_sql("SELECT reason FROM assignments WHERE state = 'skipped'").scalars().all()
    assert found == ['"broken"']


def test_training_says_what_was_expected(store: Store, studio: Running, tab: Callable[..., Any]) -> None:
    gold = [item("2 + 2?", "4", "5", gold={"ranks": [0, 1], "why": "Sums **must** be right."}, phase="training")]
    made = campaigns.create(store, CampaignSettings(name="t", training=1), [*pairs(2), *gold], "")
    page = open_task(tab(), studio, made)
    assert page.text_content("#phase") == "Training"
    wrong = page.eval_on_selector_all(".card .text", "all => all.findIndex(one => one.textContent.trim() === '5')")
    page.keyboard.press(str(wrong + 1))
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#feedback[open]")
    assert page.text_content("#feedback-title") == "Not what the guidelines say"
    assert page.text_content("#feedback .verdict") == f"Expected: {2 - wrong} > {wrong + 1}"
    assert page.text_content("#feedback .why strong") == "must"
    page.keyboard.press("Enter")
    page.wait_for_selector("#phase", state="hidden")
    assert page.text_content("#gold") == "Training: 0 of 1 right"


def test_nothing_left_and_paused(store: Store, studio: Running, tab: Callable[..., Any]) -> None:
    made = campaigns.create(store, CampaignSettings(name="one"), pairs(1), "")
    page = open_task(tab(), studio, made)
    page.keyboard.press("=")
    page.keyboard.press("Enter")
    page.wait_for_selector("#nothing:not([hidden])")
    assert page.text_content("#nothing h2") == "All done"
    me = people.find_person(store, "me")
    assert me is not None
    membership.set_member(store, made.id, me.id, "paused", "too fast")
    page.click("#look-again")
    expect(page.locator("#nothing h2")).to_have_text("You are paused")
    assert "too fast" in page.text_content("#nothing")
