"""Labels out of the store, into it again, and into files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from goodheart.data.formats import read_records
from goodheart.data.gather import gather
from goodheart.data.layouts import LAYOUTS, to_rows
from goodheart.data.records import Answer, Judgement, Message, Prompt
from goodheart.errors import ConfigError, DataError, MissingError
from goodheart.feedback import campaigns, membership, people
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import Idle, next_task
from goodheart.feedback.exporting import Exported, export, judgements, ranked_rows
from goodheart.feedback.importing import import_judgements
from goodheart.feedback.items import NewItem
from goodheart.feedback.label_rows import history, live_labels
from goodheart.feedback.labels import adjudicate, save
from goodheart.feedback.store import Store
from goodheart.feedback.tables import items
from goodheart.feedback.tasks import skip
from tests.feedback.making import campaign, pairs, task

ASKED = Prompt((Message("user", "q"),), meta={"topic": "t"})
PAIR = (Answer("a", model="m"), Answer("b", model="n", meta={"score": 2}))
FULL = Judgement(
    ASKED, PAIR, (1, 0), margin=0.5, weight=0.25, rater="Ann", rater_attributes={"culture": "x"}, guideline="v2-beta",
    shown_order=(1, 0), seconds=3.5, flags={"harmful": [0], "both_bad": True}, gold=True, batch="b", strength=3,
    probability=0.75, ratings={"helpful": [1, 5]}, comment="\0 because", source="ai",
    created_at="2026-01-02T03:04:05+00:00", item_id="i1", group_id="g1",
)  # fmt: skip


def empty(store: Store, **more: Any) -> int:
    return empty_as(store, "imported", **more)


def empty_as(store: Store, name: str, **more: Any) -> int:
    return campaigns.create(store, campaigns.CampaignSettings(name=name, **more)).id


def test_a_full_record_comes_back_as_it_was(store: Store) -> None:
    made = empty(store)
    done = import_judgements(store, made, [FULL])
    assert (done.labels, done.items, done.people) == (1, 1, 1)
    assert list(judgements(store, made)) == [FULL]


def test_a_bare_record_comes_back_as_bare(store: Store) -> None:
    bare = Judgement(Prompt(text="raw"), (Answer("a"), Answer("b"), Answer("c")), (0, 1, 1))
    made = empty(store)
    import_judgements(store, made, [bare])
    (back,) = judgements(store, made)
    assert replace(back, item_id=None, created_at=None) == bare
    assert back.item_id is not None  # all who judged the same share it


def test_swapped_answers_are_the_same_item(store: Store) -> None:
    made = empty(store, overlap=3)
    first = Judgement(ASKED, PAIR, (0, 1), rater="Ann", shown_order=(0, 1), flags={"wrong": [1]}, ratings={"r": [4, 2]})
    second = replace(first, answers=PAIR[::-1], rater="Bob")  # what Ann calls better Bob calls worse
    done = import_judgements(store, made, [first, second])
    assert (done.labels, done.items, done.people) == (2, 1, 2)
    ann, bob = judgements(store, made)
    assert ann.answers == bob.answers == PAIR
    assert (ann.ranks, bob.ranks) == ((0, 1), (1, 0))
    assert bob.shown_order == (1, 0)
    assert bob.flags == {"wrong": [0]}
    assert bob.ratings == {"r": [2, 4]}


def test_what_only_a_tool_call_tells_apart_is_not_the_same_item(store: Store) -> None:
    made = empty(store)

    def called(name: str) -> Answer:
        return Answer(messages=(Message("assistant", "", {"tool_calls": [{"name": name}]}),))

    said = [Judgement(ASKED, (called("a"), called(other)), (0, 1), rater="Ann") for other in ("b", "c")]
    assert import_judgements(store, made, said).items == 2
    assert [each.answers for each in judgements(store, made)] == [each.answers for each in said]


def test_of_two_labels_by_one_person_the_later_counts(store: Store) -> None:
    made = empty(store)
    for ranks in ((0, 1), (1, 0)):  # in one import, then in a second
        done = import_judgements(store, made, [replace(FULL, ranks=(0, 0)), replace(FULL, ranks=ranks)])
    assert done.replaced == 2
    (row,) = live_labels(store, made)
    assert row.ranks == (1, 0)
    assert [r.live for r in history(store, row.item)] == [False, False, False, True]


def test_labels_without_a_rater_all_count(store: Store) -> None:
    made = empty(store)
    bare = Judgement(ASKED, PAIR, (0, 1))
    import_judgements(store, made, [bare, bare, replace(bare, ranks=(1, 0))])
    assert [j.ranks for j in judgements(store, made)] == [(0, 1), (0, 1), (1, 0)]


def test_a_file_without_raters_imported_twice_counts_once(store: Store) -> None:
    made = empty(store)
    bare = Judgement(ASKED, PAIR, (0, 1))
    said = [bare, bare, replace(bare, ranks=(1, 0)), replace(bare, created_at="2026-01-02T03:04:05+00:00")]
    first = import_judgements(store, made, said)
    assert (first.labels, first.again) == (4, 0)  # two who say the same are two
    second = import_judgements(store, made, [*said, bare, replace(FULL, prompt=ASKED)])
    assert (second.labels, second.again) == (2, 4)
    assert [j.ranks for j in judgements(store, made)] == [(0, 1), (0, 1), (1, 0), (0, 1), (0, 1), (1, 0)]
    assert item_of(store, made)[0] == 6
    other = empty_as(store, "other")
    assert import_judgements(store, other, said).labels == 4  # each campaign has its own


def test_a_file_with_raters_imported_again_adds_what_is_new_alone(store: Store) -> None:
    made = empty(store)
    bob = Judgement(ASKED, PAIR, (0, 1), rater="Bob", seconds=3, flags={"wrong": (1,)})  # at no known time
    said = [replace(FULL, ranks=(0, 0)), FULL, bob]  # Ann changed her mind
    first = import_judgements(store, made, said)
    assert (first.labels, first.replaced, first.again) == (3, 1, 0)
    second = import_judgements(store, made, said)
    assert (second.labels, second.replaced, second.again) == (0, 0, 3)
    # Of a file that has grown only what was added to it; turned answers say the same.
    turned = replace(bob, answers=PAIR[::-1], ranks=(1, 0), flags={"wrong": [0]})
    third = import_judgements(store, made, [*said[:2], turned, replace(FULL, ranks=(0, 1))])
    assert (third.labels, third.replaced, third.again) == (1, 1, 3)
    rows = list(live_labels(store, made))
    assert sorted(row.ranks for row in rows) == [(0, 1), (0, 1)]
    assert [(r.ranks, r.live) for r in history(store, rows[0].item)] == [
        ((0, 0), False), ((1, 0), False), ((0, 1), True), ((0, 1), True)
    ]  # fmt: skip
    # What she said before, and does no longer, counts again.
    fourth = import_judgements(store, made, [FULL])
    assert (fourth.labels, fourth.replaced, fourth.again) == (1, 1, 0)


@pytest.mark.parametrize(
    "other", [{"ranks": (0, 1)}, {"seconds": 4.0}, {"comment": "else"}, {"margin": 0.75}, {"flags": {}},
              {"created_at": "2026-01-02T03:04:06+00:00"}, {"guideline": "v3"}]
)  # fmt: skip
def test_a_label_that_says_anything_else_takes_the_place_of_the_older(store: Store, other: dict[str, Any]) -> None:
    made = empty(store)
    import_judgements(store, made, [FULL])
    done = import_judgements(store, made, [replace(FULL, **other)])
    assert (done.labels, done.replaced, done.again) == (1, 1, 0)


def test_others_write_while_an_import_reads_its_source(store: Store) -> None:
    made = empty(store)

    def slow() -> Iterator[Judgement]:
        writer = threading.Thread(target=people.add_person, args=(store, "meanwhile"), daemon=True)
        writer.start()
        writer.join(timeout=20)
        assert not writer.is_alive(), "the store was locked while the source was read"
        yield FULL

    assert import_judgements(store, made, slow()).labels == 1


def test_what_cannot_be_compared_is_counted(store: Store) -> None:
    made = empty(store)
    same = Judgement(ASKED, (Answer("a"), Answer("a")), (0, 1))
    done = import_judgements(store, made, [same, FULL])
    assert (done.left_out, done.labels) == (1, 1)
    with pytest.raises(MissingError):
        import_judgements(store, made + 1, [FULL])


def test_people_go_on_where_an_import_ended(store: Store) -> None:
    made = empty(store, overlap=2, gold_share=0)
    other = Judgement(Prompt(text="other"), PAIR, (0, 1), rater="Ann")
    import_judgements(store, made, [FULL, other, replace(other, rater="Bo\nb")])
    ann = people.find_person(store, "Ann")
    assert ann is not None
    membership.join(store, made, ann.id)
    assert next_task(store, made, ann.id) == Idle("nothing_left")  # she has had it
    new = people.add_person(store, "New").id
    membership.join(store, made, new)
    save(store, task(store, made, new).id, new, Answered([0, 1]))
    assert next_task(store, made, new) == Idle("finished")
    assert sum(1 for _ in live_labels(store, made)) == 4
    names = {person.name[:6] for person in people.listing(store)}
    assert names == {"Ann", "rater-", "New"}


def item_of(store: Store, made: int) -> tuple[int, int, int, str]:
    """done, held, wanted, state of the only item."""
    with store.read() as connection:
        row = connection.execute(select(items).where(items.c.campaign_id == made)).one()
    return row.done, row.held, row.wanted, row.state


def test_an_import_for_somebody_who_holds_the_item_counts_once(store: Store) -> None:
    made, (person,) = campaign(store, 0, overlap=2)
    campaigns.add_items(store, made.id, [NewItem(Prompt(text="q"), PAIR)])
    held = task(store, made.id, person)
    import_judgements(store, made.id, [Judgement(Prompt(text="q"), PAIR, (0, 1), rater="p0")])
    assert item_of(store, made.id) == (1, 0, 2, "open")
    save(store, held.id, person, Answered([1, 0]))
    assert item_of(store, made.id) == (1, 0, 2, "open")
    assert [label.ranks for label in live_labels(store, made.id)] == [(1, 0)]


def test_an_import_asks_on_until_people_agree(store: Store) -> None:
    made = empty(store, overlap=2, until_agreement=0.9, max_overlap=3)
    said = [Judgement(Prompt(text="q"), PAIR, ranks, rater=f"r{i}") for i, ranks in enumerate([(0, 1), (1, 0), (0, 0)])]
    import_judgements(store, made, said[:2])
    assert item_of(store, made) == (2, 0, 3, "open")  # 1/2 agree: a third is asked
    import_judgements(store, made, said[2:])
    assert item_of(store, made) == (3, 0, 3, "disputed")


def test_an_import_leaves_a_dispute_by_skips(store: Store) -> None:
    made, (person,) = campaign(store, 0, overlap=2, max_skips=1)
    campaigns.add_items(store, made.id, [NewItem(Prompt(text="q"), PAIR)])
    skip(store, task(store, made.id, person).id, person, "broken")
    import_judgements(store, made.id, [Judgement(Prompt(text="q"), PAIR, (0, 1), rater="x")])
    assert item_of(store, made.id) == (1, 0, 2, "disputed")


def labelled(store: Store, answers: int = 2) -> tuple[int, list[int]]:
    """One item, three people: two see 0 before 1, one the other way round."""
    made, everybody = campaign(store, 0, people=3, overlap=3)
    campaigns.add_items(store, made.id, pairs(1, answers=answers))
    rest = tuple(range(2, answers))
    for person, ranks in zip(everybody, [(0, 1), (0, 1), (1, 0)], strict=True):
        save(store, task(store, made.id, person).id, person, Answered(ranks + rest))
    return made.id, everybody


def test_weights_are_trust_in_people(store: Store, tmp_path: Path) -> None:
    made, _ = labelled(store)
    done = export(store, made, tmp_path / "out.jsonl", weights={"p0": 0.0, "p1": 0.5, "*": 1.0})
    assert (done.judgements, done.rows) == (3, 2)
    found = read_records(tmp_path / "out.jsonl", "preference").records
    assert [(j.rater, j.weight) for j in found] == [("p1", 0.5), ("p2", 1.0)]
    with pytest.raises(DataError, match="no weight for rater p2"):
        export(store, made, tmp_path / "out.jsonl", weights={"p0": 0.0, "p1": 0.5})
    with pytest.raises(ConfigError, match="leave one of them out"):
        export(store, made, tmp_path / "out.jsonl", weights={"*": 1.0}, trust=True)


def test_an_adjudication_takes_the_place_of_the_labels(store: Store, tmp_path: Path) -> None:
    made, everybody = labelled(store)
    judge = people.add_person(store, "judge", "adjudicator").id
    (row, *_) = live_labels(store, made, person=everybody[0])
    adjudicate(store, row.item, judge, Answered([0, 0]))
    (only,) = judgements(store, made)
    assert (only.ranks, only.kind, only.rater) == ((0, 0), "adjudication", "judge")
    weights = {"judge": 0.0, "*": 1.0}
    done = export(store, made, tmp_path / "out.jsonl", weights=weights)
    assert (done.judgements, done.rows) == (1, 1)
    (kept,) = read_records(tmp_path / "out.jsonl", "preference").records
    assert (kept.ranks, kept.weight) == ((0, 0), 1.0)
    assert [found.ranks for found in gather([only], "majority", weights)] == [(0, 0)]
    every = list(judgements(store, made, overruled=True))
    assert [j.kind for j in every] == ["label", "label", "label", "adjudication"]
    back = empty(store)
    import_judgements(store, back, every)
    assert [j.ranks for j in judgements(store, back)] == [(0, 0)]
    assert [j.ranks for j in judgements(store, back, overruled=True)] == [j.ranks for j in every]


def test_the_quick_way_to_rows_is_the_slow_way(store: Store) -> None:
    made = empty(store, overlap=2)
    again = replace(FULL, rater="Bob", ranks=(0, 1), comment=None, flags={}, shown_order=None, gold=False)
    clash = replace(FULL, prompt=Prompt(text="raw", meta={"batch": "of the row", "ranks": "x", "rater": "me"}))
    bare = Judgement(clash.prompt, clash.answers, (1, 0))
    import_judgements(store, made, [FULL, again, clash, replace(again, prompt=clash.prompt), bare])
    found = list(judgements(store, made))
    assert list(ranked_rows(judgements(store, made), Exported())) == [to_rows(each, "ranked")[0] for each in found]


def test_gold_is_left_out_unless_asked_for(store: Store) -> None:
    made, (person,) = campaign(store, 20, gold=20, gold_share=0.5, seed=1)
    for _ in range(10):
        save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    work = list(judgements(store, made.id))
    every = list(judgements(store, made.id, phases=("work", "gold")))
    assert 0 < len(work) < len(every) == 10
    assert not any(j.gold for j in work)
    assert sum(j.gold for j in every) == 10 - len(work)


def test_closed_items_are_left_out(store: Store, tmp_path: Path) -> None:
    made, (person,) = campaign(store, 2, gold_share=0)
    for _ in range(2):
        save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    one, other = live_labels(store, made.id)
    campaigns.close_item(store, one.item)
    assert [j.item_id for j in judgements(store, made.id)] == [f"{made.id}-{other.item}"]
    assert export(store, made.id, tmp_path / "out.jsonl").rows == 1
    assert [row.live for row in history(store, one.item)] == [True]  # what was said stays in its history


def test_many_items_are_read_in_pieces_and_stay_together(store: Store) -> None:
    made = empty(store, overlap=2)
    given = [
        Judgement(Prompt(text=f"q{i}"), PAIR, (i % 2, 1 - i % 2), rater=f"r{r}") for r in range(2) for i in range(1201)
    ]
    assert import_judgements(store, made, given).items == 1201
    back = list(judgements(store, made))
    assert len(back) == 2402
    assert [j.prompt.text for j in back] == [f"q{i // 2}" for i in range(2402)]
    assert [j.rater for j in back[:4]] == ["r0", "r1", "r0", "r1"]


def test_the_whole_record_goes_through_a_file(store: Store, tmp_path: Path) -> None:
    made, _ = labelled(store, answers=3)
    done = export(store, made, tmp_path / "labels.jsonl")
    assert (done.judgements, done.rows, done.left_out) == (3, 3, {})
    read = read_records(tmp_path / "labels.jsonl", "preference").records
    back = empty(store)
    import_judgements(store, back, read)
    mine, theirs = list(judgements(store, made)), list(judgements(store, back))
    for before, after in zip(mine, theirs, strict=True):
        assert (after.prompt.messages, [a.text for a in after.answers]) == (
            before.prompt.messages,
            [a.text for a in before.answers],
        )
        for name in ("ranks", "rater", "shown_order", "guideline", "strength", "comment", "source", "kind"):
            assert getattr(after, name) == getattr(before, name), name


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_is_written(tmp_path: Path, layout: str) -> None:
    from goodheart.feedback.store import open_store

    store = open_store(tmp_path / "g.db")
    made, _ = labelled(store)
    done = export(store, made, tmp_path / "out.jsonl", layout)
    assert done.judgements == 3
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == done.rows
    assert all(isinstance(json.loads(line), dict) for line in lines)
    store.close()
