"""From a file to a reward model, in a real browser: a manager, two labellers, a disagreement, a decision, an export."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from goodheart.feedback import campaigns, label_rows, people
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.items import read_items
from goodheart.feedback.store import Store
from tests.studio.conftest import PASSWORD, Running

QUESTIONS = 8
_SURE = re.compile("good")


def answers_file(folder: Path) -> Path:
    """Good answers and bad ones; which is which can be read."""
    path = folder / "answers.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "completions": [f"good answer number {i}", f"bad reply number {i}"],
            "models": ["kind", "rude"],
            "topic": "even" if i % 2 == 0 else "odd",
        }
        for i in range(QUESTIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def log_in(page: Any, studio: Running, name: str) -> None:
    page.goto(f"{studio.url}/login")
    page.fill("[name=name]", name)
    page.fill("[name=password]", PASSWORD)
    page.click("main button.primary")


def invited(manager: Any, tab: Callable[..., Any], address: str, name: str) -> Any:
    """The manager makes a link; somebody opens it in a browser of their own and joins."""
    manager.goto(f"{address}/people")
    manager.fill("form[action$='/invites'] [name=name]", name)
    manager.click("form[action$='/invites'] button")
    link = manager.input_value(".link-field")
    page = tab()
    page.goto(link)
    page.fill("[name=password]", PASSWORD)
    page.click("main button.primary")
    page.click("main a.primary")  # Start labelling
    page.wait_for_selector(".card")
    return page


def place_of_good(page: Any) -> int:
    """Which card (1 or 2) is the good answer."""
    texts = page.eval_on_selector_all(".card .text", "all => all.map(one => one.textContent)")
    return [bool(_SURE.search(text)) for text in texts].index(True) + 1


def count(page: Any, number: int) -> None:
    expect(page.locator("#today")).to_have_text(f"Today: {number}")
    page.wait_for_selector("body:not(.busy)")


def by_keyboard(page: Any) -> None:
    """The good answer, clearly; one answer taken back and given again; a refresh in the middle of a task."""
    for done in range(QUESTIONS):
        page.keyboard.press(str(place_of_good(page)))
        page.keyboard.press("3")
        if done == 2:
            page.wait_for_selector("#saved[data-state=saved]")
            page.reload()
            page.wait_for_selector(".card")
            expect(page.locator("#submit")).not_to_have_attribute("aria-disabled", "true")  # the draft is there again
        page.keyboard.press("Enter")
        if done < QUESTIONS - 1:
            count(page, done + 1)
        if done == 3:
            page.keyboard.press("u")
            count(page, done)
            page.keyboard.press("Enter")
            count(page, done + 1)
    page.wait_for_selector("text=/All done|Nothing for you/")


def by_mouse(page: Any) -> None:
    """The good answer by a click on the scale, but for the first question, where the other one is preferred."""
    for done in range(QUESTIONS):
        good = place_of_good(page)
        if "Question 0" in page.text_content("#prompt"):
            good = 3 - good
        page.click(f"#scale [data-value='{-2 if good == 1 else 2}']")
        page.click("#submit")
        if done < QUESTIONS - 1:
            count(page, done + 1)
    page.wait_for_selector("text=/All done|Nothing for you/")


def test_from_a_file_to_a_reward_model(
    store: Store, serving: Callable[..., Running], tab: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    people.add_person(store, "mia", "manager", password=PASSWORD)
    studio = serving(single_user=False)
    manager = tab()
    log_in(manager, studio, "mia")
    manager.click("text=New campaign")
    manager.fill("[name=name]", "story")
    manager.set_input_files("[name=items]", answers_file(tmp_path))
    manager.fill("[name=guideline]", "Choose the *good* one.")
    manager.click("summary")
    manager.fill("[name=until_agreement]", "1")
    manager.fill("[name=max_overlap]", "2")  # two people, then an adjudicator
    manager.fill("[name=slices]", "topic")
    manager.click("text=Create the campaign")
    manager.wait_for_selector("text=0 / 8")
    campaign = campaigns.get(store, "story")
    address = f"{studio.url}/c/{campaign.id}"

    by_keyboard(invited(manager, tab, address, "kay"))
    by_mouse(invited(manager, tab, address, "mo"))

    manager.goto(address)
    expect(manager.locator(".alerts")).to_contain_text("Items that wait for a decision: 1")
    manager.click("text=Items that wait for a decision")
    manager.click(".dispute-row a")
    expect(manager.locator("table.data")).to_contain_text("kay")
    expect(manager.locator("table.data")).to_contain_text("mo")
    for card in manager.locator("article.answer").all():
        card.locator("select").select_option("1" if _SURE.search(card.inner_text()) else "2")
    manager.select_option("[name=strength]", "4")
    manager.click("text=Decide and go to the next")
    manager.wait_for_selector("text=Nothing here.")
    [decided] = list(label_rows.live_labels(store, campaign.id, kind="adjudication"))
    assert decided.ranks == (0, 1)

    manager.goto(f"{address}/people")
    assert manager.locator("table.data tbody tr").count() == 2
    manager.goto(f"{address}/models")
    assert manager.locator("table.data tbody tr th").all_inner_texts() == ["kind", "rude"]
    manager.goto(f"{address}/export")
    manager.select_option("[name=layout]", "trl-conversational")
    with manager.expect_download() as downloading:
        manager.click("main button.primary")
    pairs = tmp_path / "pairs.jsonl"
    downloading.value.save_as(pairs)
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2 * (QUESTIONS - 1) + 1  # of the decided item the decision alone
    assert all("good" in row["chosen"][-1]["content"] for row in rows)
    accuracy = reward_accuracy(tiny_model, pairs, tmp_path / "reward")
    assert accuracy > 0.9


def reward_accuracy(model: Path, pairs: Path, out: Path) -> float:
    """What a reward model that was trained on the file says of the pairs held out."""
    from goodheart.stages.reward import RewardConfig, train

    given: dict[str, Any] = {"model": str(model), "data": str(pairs), "out": out, "held_out": 0.25, "batch_size": 4}
    train(RewardConfig(**given, epochs=8, learning_rate=3e-3, quiet=True))
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return float(found["accuracy"])


def test_two_managers_change_the_rules_at_once(
    store: Store, serving: Callable[..., Running], tab: Callable[..., Any], tmp_path: Path
) -> None:
    """Who saves last is told what the other saved; what they typed is kept, and saved when they say so again."""
    for name in ("mia", "moe"):
        people.add_person(store, name, "manager", password=PASSWORD)
    settings = CampaignSettings(name="shared", overlap=2)
    campaign = campaigns.create(store, settings, read_items(answers_file(tmp_path)), "Choose.")
    studio = serving(single_user=False)
    mia, moe = tab(), tab()
    for page, name in ((mia, "mia"), (moe, "moe")):
        log_in(page, studio, name)
        page.goto(f"{studio.url}/c/{campaign.id}")
        page.click("summary")
    moe.fill("[name=budget]", "80")
    moe.fill("[name=rubric]", "tone: Is it warm?\nfacts: Is it true?")
    moe.uncheck("[name=strength]")
    moe.click(".rules button")
    moe.wait_for_url(f"**/c/{campaign.id}")

    mia.fill("[name=budget]", "70")
    mia.fill("[name=lock_minutes]", "9")
    mia.click(".rules button")
    told = mia.locator("div.problem[role=alert]")
    expect(told).to_contain_text("Somebody else changed rules while you had this page open")
    expect(told.locator("tbody tr", has_text="Budget").locator("td")).to_have_text(["80", "70", "–"])
    expect(told.locator("tbody tr", has_text="Scores").locator("td").nth(1)).to_have_text("nothing")
    expect(mia.locator("[name=budget]")).to_have_value("70")
    expect(mia.locator("[name=rubric]")).to_have_value("tone: Is it warm?\nfacts: Is it true?")
    expect(mia.locator("[name=strength]")).not_to_be_checked()
    assert campaigns.get(store, campaign.id).settings.budget == 80
    mia.click(".rules button")
    expect(mia.locator("div.problem")).to_have_count(0)
    now = campaigns.get(store, campaign.id).settings
    assert (now.budget, now.lock_minutes, list(now.rubric), now.strength) == (70, 9, ["tone", "facts"], False)
