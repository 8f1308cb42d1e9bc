"""Campaigns: rules, items out of files, progress and forecast."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select

from goodheart.data.records import Answer, Message, Prompt
from goodheart.errors import ConflictError, DataError, FeedbackError, MissingError
from goodheart.feedback import campaigns
from goodheart.feedback.answered import Answered
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.items import (
    NewItem,
    pack_answer,
    pack_prompt,
    read_items,
    unpack_answer,
    unpack_prompt,
)
from goodheart.feedback.labels import save
from goodheart.feedback.progress import forecast, progress
from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tables import items
from goodheart.feedback.tasks import skip
from tests.feedback.making import campaign, known, pairs, task


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"overlap": 0}, "greater than or equal to 1"),
        ({"until_agreement": 0.8}, "needs an overlap of 2"),
        ({"overlap": 3, "max_overlap": 2}, "less than overlap"),
        ({"overlap": 2, "max_overlap": 4}, "set until_agreement too"),
        ({"flags": ("both_bad",)}, "always there"),
        ({"quotas": {"language": {"en": 0}}}, "1 or more"),
        ({"deadline": "2026-12-01T10:00"}, "needs its zone"),
        ({"gold_share": 0.6}, "less than or equal to 0.5"),
        ({"overlab": 2}, "Extra inputs"),
    ],
)
def test_rules_that_do_not_fit_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as raised:
        CampaignSettings.model_validate({"name": "c", **wrong})
    assert says in campaigns.reasons(raised.value)


def test_settings_come_back_as_they_were(store: Store) -> None:
    settings = CampaignSettings(
        name="名", overlap=2, until_agreement=0.8, max_overlap=5, quotas={"a": {"b": 3}}, rubric={"x": "y"},
        deadline=utcnow(), budget=100.5, pay_per_hour=20, flags=("rude",), languages=("en", "zh"),
    )  # fmt: skip
    made = campaigns.create(store, settings, pairs(2))
    assert campaigns.get(store, "名") == campaigns.get(store, made.id) == made
    assert made.settings == settings
    assert campaigns.listing(store) == [made]


def test_names_are_taken_once_and_unknown_ones_are_told(store: Store) -> None:
    campaigns.create(store, CampaignSettings(name="one"))
    with pytest.raises(ConflictError, match="'one' already"):
        campaigns.create(store, CampaignSettings(name=" one "))
    with pytest.raises(MissingError, match="there are: one"):
        campaigns.get(store, "two")
    for name in ("\0", "\ud800", 10**30, -1):
        with pytest.raises(MissingError):
            campaigns.get(store, name)


def test_one_bad_item_and_nothing_is_made(store: Store) -> None:
    bad = NewItem(Prompt(text="q"), (Answer("same"), Answer("same")))
    with pytest.raises(FeedbackError, match="nothing to compare"):
        campaigns.create(store, CampaignSettings(name="c"), [*pairs(3), bad])
    assert campaigns.listing(store) == []


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (NewItem(Prompt(text="q"), (Answer("a"),)), "1 answers"),
        (NewItem(Prompt(text="q"), (Answer("a"), Answer("b")), gold={"ranks": [0, 1]}), "items of work have none"),
        (NewItem(Prompt(text="q"), (Answer("a"), Answer("b")), phase="gold"), "have `gold` ranks"),
        (NewItem(Prompt(text="q"), (Answer("a"), Answer("b")), phase="gold", gold={"ranks": [0]}), "2 whole numbers"),
        (NewItem(Prompt(text="q"), (Answer("a"), Answer("b")), priority=10**7), "out of range"),
    ],
)
def test_items_that_will_not_do_are_refused(store: Store, item: NewItem, says: str) -> None:
    with pytest.raises(FeedbackError, match=says):
        campaigns.create(store, CampaignSettings(name="c"), [item])


def test_the_same_comparison_is_not_put_in_twice(store: Store) -> None:
    made = campaigns.create(store, CampaignSettings(name="c"), [*pairs(600), *pairs(2)])
    swapped = [NewItem(i.prompt, i.answers[::-1]) for i in pairs(3)]
    assert campaigns.add_items(store, made.id, swapped).again == 3
    added = campaigns.add_items(store, made.id, [*pairs(601), *known(2)])
    assert (added.items, added.again) == (3, 600)
    assert progress(store, made.id).items == 601


def test_changes_of_a_running_campaign(store: Store) -> None:
    made, _ = campaign(store)
    changed = campaigns.change(store, made.id, {"lock_minutes": 5, "budget": 10})
    assert (changed.settings.lock_minutes, changed.settings.budget) == (5, 10)
    assert campaigns.get(store, made.id) == changed
    with pytest.raises(FeedbackError, match="at_once, overlap cannot change"):
        campaigns.change(store, made.id, {"overlap": 3, "at_once": 2})
    with pytest.raises(FeedbackError, match="lock_minutes: "):
        campaigns.change(store, made.id, {"lock_minutes": 0})


# --- items out of files -----------------------------------------------------------------------------------------------


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_goodheart_sample(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    row = {"prompt": chat, "completions": ["a", "b", "c", "c"], "models": ["m", "n", "m", "n"],
           "finish": ["eos", "length", "eos", "eos"], "tokens": [1, 2, 3, 3], "settings": {"temperature": 1},
           "topic": "greeting", "language": "en"}  # fmt: skip
    found = list(read_items(write(tmp_path / "s.jsonl", row), at_once=2, slices=("topic",), batch="b1"))
    assert len(found) == 1  # of c and c there is nothing to compare
    assert found[0].prompt == Prompt((Message("user", "hi"),), meta={"topic": "greeting", "language": "en"})
    assert found[0].slice == {"topic": "greeting"}
    assert found[0].batch == "b1"
    first = found[0].answers[0]
    assert (first.text, first.model) == ("a", "m")
    assert first.meta == {"finish": "eos", "tokens": 1, "sampling": {"temperature": 1}}
    (whole,) = read_items(tmp_path / "s.jsonl")
    assert len(whole.answers) == 4


def test_rows_of_preferences_lose_their_order_or_become_gold(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "good", "rejected": "bad", "why": "it is better"})
    (work,) = read_items(path)
    assert (work.gold, work.phase) == (None, "work")
    (gold,) = read_items(path, phase="gold")
    assert gold.gold == {"ranks": [0, 1], "why": "it is better"}


def test_rows_of_gold(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b", "c"], "gold": [2, 0, 1], "why": "b is right"}
    (found,) = read_items(write(tmp_path / "g.jsonl", row), phase="qualification", at_once=2)
    assert (found.gold, found.phase) == ({"ranks": [2, 0, 1], "why": "b is right"}, "qualification")
    assert len(found.answers) == 3


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "q", "completions": ["a"]}, "fewer than two different answers"),
        ({"prompt": "q", "completions": ["a", "b"], "models": ["m"]}, "2 completions but 1 models"),
        ({"prompt": " ", "completions": ["a", "b"]}, "the prompt is empty"),
        ({"nothing": 1}, "fit no known shape"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "q", "completions": ["a", "b"]}, row)
    with pytest.raises(DataError, match=f"s.jsonl:2: .*{says}"):
        list(read_items(path))
    bad: list[str] = []
    assert len(list(read_items(path, bad=bad))) == 1
    assert len(bad) == 1
    assert says in bad[0]


def test_prompts_and_answers_come_back_from_json() -> None:
    call = Message("assistant", "", {"tool_calls": [{"type": "function"}]})
    for asked in (Prompt(text="\ud800 q", meta={"a": [1]}), Prompt((Message("user", "x", {"name": "n"}),))):
        assert unpack_prompt(json.loads(json.dumps(pack_prompt(asked)))) == asked
    for said in (Answer("x\0"), Answer("x", model="m", meta={"score": 1.5}), Answer(messages=(call,))):
        assert unpack_answer(json.loads(json.dumps(pack_answer(said)))) == said


# --- progress and forecast --------------------------------------------------------------------------------------------


def test_progress_counts(store: Store) -> None:
    made, (one, two) = campaign(store, 4, people=2, overlap=2, max_skips=1)
    first = task(store, made.id, one)
    save(store, first.id, one, Answered([0, 1]))
    second = task(store, made.id, two)
    assert second.item == first.item  # an item that was begun is finished first
    save(store, second.id, two, Answered([0, 1]))
    skip(store, task(store, made.id, one).id, one, "hard")
    task(store, made.id, two)
    state = progress(store, made.id)
    assert (state.items, state.finished, state.disputed, state.held, state.skips) == (4, 1, 1, 1, 1)
    assert (state.labels, state.labels_left) == (2, 4)  # two open items want two labels each
    assert state.share == 0.25


def test_progress_by_slice_and_of_nothing(store: Store) -> None:
    made = campaigns.create(store, CampaignSettings(name="c"), pairs(3, slice={"topic": "sums"}))
    assert progress(store, made.id).by_slice == {"topic": {"sums": (0, 3)}}
    empty = campaigns.create(store, CampaignSettings(name="d"))
    assert progress(store, empty.id).share == 0
    assert forecast(store, empty.id).labels_per_hour is None
    with pytest.raises(MissingError):
        progress(store, 99)


def test_forecast_by_hand(store: Store) -> None:
    start = utcnow()
    made, (one, two) = campaign(
        store, 10, people=2, gold_share=0, pay_per_hour=36, budget=2.0, deadline=start + timedelta(hours=1)
    )
    for i in range(5):  # one label every 6 minutes, by turns, of 60 seconds each
        person, now = (one, two)[i % 2], start + timedelta(minutes=6 * i)
        save(store, task(store, made.id, person, now=now).id, person, Answered([0, 1], seconds=60), now=now)
    now = start + timedelta(minutes=24)
    seen = forecast(store, made.id, now=now)
    assert seen.seconds_per_label == 60
    assert seen.labels_per_hour == pytest.approx(10)  # 4 spans of 6 minutes
    assert (seen.labellers, seen.labels_left) == (2, 5)
    assert seen.done_at == now + timedelta(minutes=30)  # 5 labels at 10 an hour
    assert seen.late is False  # minute 54
    assert seen.cost_so_far == pytest.approx(3.0)  # 5 minutes at 0.6 a minute
    assert seen.cost_in_all == pytest.approx(6.0)
    assert seen.over_budget is True


def test_the_forecast_counts_what_disagreement_will_cost(store: Store) -> None:
    made, everybody = campaign(store, 30, people=3, overlap=2, until_agreement=0.6, max_overlap=3, gold_share=0, seed=1)
    for i, person in enumerate(everybody[:2]):
        for _ in range(20):
            save(store, task(store, made.id, person).id, person, Answered([i, 1 - i], seconds=10))
    for _ in range(20):
        save(store, task(store, made.id, everybody[2]).id, everybody[2], Answered([0, 1], seconds=10))
    with store.read() as connection:
        rows = connection.execute(select(items.c.state, items.c.done)).all()
    assert sorted(map(tuple, rows)) == [("done", 3)] * 20 + [("open", 0)] * 10
    seen = forecast(store, made.id)
    assert seen.labels_left == pytest.approx(10 * 2 * 1.5)  # three labels an item in place of two
