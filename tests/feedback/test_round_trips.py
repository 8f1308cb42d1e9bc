"""A campaign goes out in every layout and into a fresh store as it was, but for what the layout says that it loses.

What the layouts lose is `layouts.LOSES`, by name; docs/formats.md has the same as a table, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from goodheart.data import layouts
from goodheart.data.formats import LAYOUTS, read_records
from goodheart.data.layouts import LOSES
from goodheart.data.records import Answer, Judgement, Message, Prompt
from goodheart.feedback import campaigns, guidelines, membership, people, quality
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import next_task
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.exporting import export, judgements
from goodheart.feedback.importing import import_judgements
from goodheart.feedback.items import NewItem
from goodheart.feedback.labels import adjudicate, save
from goodheart.feedback.store import Store, open_store
from goodheart.feedback.targets import KNOWN, SCORES
from goodheart.feedback.tasks import Task
from tests.data.test_round_trips import as_kept, in_one_order

# Layouts out of which no campaign can be made again, and why: what they hold is no comparison.
ONE_WAY = {
    "kto": "single answers with a thumb",
    "ratings": "single answers with a score",
    "trl-sft": "the best answer alone",
    "prompts": "prompts alone",
    "text": "texts to be continued",
    "label-studio-tasks": "answers that nobody has judged",
    "crowd-kit": "ids in place of texts",
    "crowd-kit-pairs": "ids in place of texts",
}
# What of this campaign a layout refuses as a whole, beside pairs of which nobody prefers either where ties are lost.
REFUSED = {"oasst": "a turn of the system", "alpaca": "a tie of some answers"}


def items() -> Iterator[NewItem]:
    """Chats of one turn and of several, a raw prompt, two answers and three, by models that are known."""
    about = {"sampling": {"temperature": 0.7}, "finish": "eos"}
    for i in range(6):
        turns = (Message("user", f"Question {i}?"),)
        if i % 2:
            turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello!"), *turns)
        asked = Prompt(messages=turns, meta={"topic": f"t{i % 2}"})
        said = tuple(Answer(f"{'xyz'[k]} says {i}", model=f"m{k}", meta=about) for k in range(3 if i > 3 else 2))
        yield NewItem(asked, said, slice={"topic": f"t{i % 2}"}, batch="first")
    yield NewItem(Prompt(text="Once upon"), (Answer("x a time"), Answer("y then")))


def labelled(store: Store) -> int:
    """Three people who differ, with all that can be said of answers; one item is adjudicated."""
    rubric = {"helpful": "how much it helps"}
    settings = CampaignSettings(name="out", overlap=3, gold_share=0, rubric=rubric)
    made = campaigns.create(store, settings, items(), "Which helps more?").id
    for n in range(3):
        person = people.add_person(store, f"p{n}", attributes={"culture": "zh" if n else "en"}).id
        membership.join(store, made, person)
        while isinstance(task := next_task(store, made, person), Task):
            ranks = [(k + n // 2) % len(task.answers) for k in range(len(task.answers))]
            if n == 1 and task.item % 3 == 0:
                ranks = [0] * len(ranks)
            ratings = {"helpful": [5 - k for k in range(len(ranks))]}
            answered = Answered(ranks, 1 + n, {"harmful": [0]} if n else {}, ratings, f"because {n}", 2.5 + n)
            save(store, task.id, person, answered)
        guidelines.add_version(store, made, f"Which helps more, {n}?")
    judge = people.add_person(store, "judge", "adjudicator").id
    adjudicate(store, min(task_items(store, made)), judge, Answered([1, 0]))
    return made


def task_items(store: Store, campaign: int) -> list[int]:
    return [int((each.item_id or "").split("-")[1]) for each in judgements(store, campaign)]


def comparable(record: Judgement, layout: str) -> Judgement:
    """Without what the store says where the file is silent (when, which item), in one order where that is lost."""
    lost = {name: None for name in ("created_at", "item_id") if name in LOSES[layout]}
    without = replace(record, **lost)  # type: ignore[arg-type]
    return in_one_order(without) if layouts.ORDER in LOSES[layout] else without


def held(record: Judgement, layout: str) -> bool:
    """Whether the layout can hold it at all."""
    if layouts.TIES in LOSES[layout] and len(set(record.ranks)) == 1:
        return False
    refused = {
        "a turn of the system": any(turn.role == "system" for turn in record.prompt.messages),
        "a tie of some answers": len(set(record.ranks)) < len(record.ranks),
    }
    return layout not in REFUSED or not refused[REFUSED[layout]]


def test_every_layout_is_one_or_the_other() -> None:
    assert set(LAYOUTS) == set(LOSES) | set(ONE_WAY)
    assert set(REFUSED) <= set(LOSES)
    assert not set(LOSES) & set(ONE_WAY)


@pytest.mark.parametrize("layout", sorted(LOSES))
def test_a_campaign_comes_back_from_every_layout(store: Store, tmp_path: Path, layout: str) -> None:
    made = labelled(store)
    before = [each for each in judgements(store, made) if held(each, layout)]
    done = export(store, made, tmp_path / "out.jsonl", layout)
    fresh = open_store(tmp_path / "fresh.db")
    back = campaigns.create(fresh, CampaignSettings(name="in", overlap=3)).id
    read = read_records(tmp_path / "out.jsonl", "preference")
    assert read.bad == []
    assert import_judgements(fresh, back, read.records).labels == len(before)
    after = list(judgements(fresh, back))
    expected = [comparable(as_kept(each, LOSES[layout]), layout) for each in before]
    assert [comparable(each, layout) for each in after] == expected
    assert len(before) > 8
    # and out of the fresh store it is the same file again, but for when and where what nobody said was filled in
    export(fresh, back, tmp_path / "again.jsonl", layout)
    again = read_records(tmp_path / "again.jsonl", "preference").records
    assert [comparable(each, layout) for each in again] == [comparable(each, layout) for each in read.records]
    assert done.judgements == 19  # seven items of three labels, one of them with a decision in their place
    fresh.close()


def test_out_of_our_own_layout_every_view_is_the_same(store: Store, tmp_path: Path) -> None:
    """What a manager sees and what every layout is made of, before and after."""
    made = labelled(store)
    export(store, made, tmp_path / "out.jsonl", overruled=True)
    fresh = open_store(tmp_path / "fresh.db")
    back = campaigns.create(fresh, CampaignSettings(name="in", overlap=3)).id
    import_judgements(fresh, back, read_records(tmp_path / "out.jsonl", "preference").records)
    assert list(judgements(fresh, back, overruled=True)) == list(judgements(store, made, overruled=True))
    ways = [(name, "each") for name in LAYOUTS] + [("ranked", how) for how in KNOWN] + [("ratings", SCORES)]
    for layout, labels in ways:
        for where, number, name in ((store, made, "a"), (fresh, back, "b")):
            export(where, number, tmp_path / f"{name}.jsonl", layout, labels=labels)
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes(), (layout, labels)
    assert quality.agreement_of(fresh, back) is not None
    first, second = quality.agreement_of(store, made), quality.agreement_of(fresh, back)
    assert first is not None
    assert second is not None
    assert (first.whole, first.pairs, first.people) == (second.whole, second.pairs, second.people)
    assert quality.leaderboard(fresh, back) is not None
    fresh.close()
