"""Labels: checked, kept once, changed with history, withdrawn, adjudicated."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import gold, membership, people
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import Idle, next_task
from goodheart.feedback.campaigns import close_item
from goodheart.feedback.disputes import count_disputed, disagreeing, disputed, look_at
from goodheart.feedback.label_rows import counted, history, live_labels
from goodheart.feedback.labels import adjudicate, save, undo
from goodheart.feedback.store import Store
from goodheart.feedback.tables import items, labels
from goodheart.feedback.tasks import skip
from tests.feedback.making import campaign, task


def item_row(store: Store, item: int) -> Any:
    with store.read() as connection:
        return connection.execute(select(items).where(items.c.id == item)).one()


def test_everything_said_is_kept(store: Store) -> None:
    made, (person,) = campaign(store, 1, rubric={"helpful": "Does it help?"}, flags=("harmful", "wrong"))
    found = task(store, made.id, person)
    said = Answered(
        [0, 1], strength=4, flags={"wrong": [1, 1, 0], "harmful": [], "both_bad": True}, ratings={"helpful": [5, None]},
        comment="因為它是對的", seconds=12.5, request="abc",
    )  # fmt: skip
    saved = save(store, found.id, person, said)
    (row,) = history(store, found.item)
    assert (row.id, row.ranks, row.strength, row.seconds) == (saved.label, (0, 1), 4, 12.5)
    assert row.flags == {"wrong": [0, 1], "both_bad": True}
    assert row.ratings == {"helpful": [5, None]}
    assert (row.comment, row.name, row.source, row.kind, row.live) == ("因為它是對的", "p0", "person", "label", True)
    assert row.shown == found.shown
    assert row.guideline == found.guideline
    assert row.phase == "work"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ranks": [0]}, "ranks must be 2 whole numbers"),
        ({"ranks": [0, 1, 2]}, "ranks must be 2 whole numbers"),
        ({"ranks": [0, True]}, "ranks must be 2 whole numbers"),
        ({"ranks": [0, 0.5]}, "ranks must be 2 whole numbers"),
        ({"strength": 5}, "strength must be 1, 2, 3 or 4"),
        ({"strength": 0}, "strength must be 1, 2, 3 or 4"),
        ({"flags": {"harmful": [2]}}, "names answers by 0 to 1"),
        ({"flags": {"harmful": True}}, "with a list of answers"),
        ({"flags": {"evil": [0]}}, "use harmful, wrong, off_topic with a list"),
        ({"flags": {"both_bad": [0]}}, "or both_bad"),
        ({"ratings": {"nice": [1, 1]}}, "no rubric 'nice'; it has helpful"),
        ({"ratings": {"helpful": [6, 1]}}, "2 numbers from 1 to 5"),
        ({"ratings": {"helpful": [1]}}, "2 numbers from 1 to 5"),
        ({"comment": "x" * 10_001}, "10000 are the most"),
        ({"seconds": -1.0}, "seconds must be 0 or more"),
        ({"seconds": float("nan")}, "seconds must be 0 or more"),
        ({"request": ""}, "a request is named"),
        ({"request": "x" * 65}, "a request is named"),
        ({"request": "\0"}, "a request is named"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_kept(store: Store, wrong: dict[str, Any], says: str) -> None:
    made, (person,) = campaign(store, 1, rubric={"helpful": "?"})
    found = task(store, made.id, person)
    with pytest.raises(FeedbackError, match=says):
        save(store, found.id, person, Answered(**{"ranks": [0, 1], **wrong}))
    assert history(store, found.item) == []
    assert task(store, made.id, person).id == found.id


def test_ranks_are_kept_without_gaps_and_ties_have_no_strength(store: Store) -> None:
    made, (person,) = campaign(store, 2)
    first = task(store, made.id, person)
    save(store, first.id, person, Answered([9, -3], strength=2))
    second = task(store, made.id, person)
    save(store, second.id, person, Answered([4, 4], strength=2))
    assert [(r.ranks, r.strength) for r in live_labels(store, made.id)] == [((1, 0), 2), ((0, 0), None)]


def test_a_save_sent_again_is_the_same_save(store: Store) -> None:
    made, (person,) = campaign(store, 2)
    found = task(store, made.id, person)
    first = save(store, found.id, person, Answered([0, 1], request="once"))
    again = save(store, found.id, person, Answered([1, 0], request="once"))
    assert (again.label, again.again, first.again) == (first.label, True, False)
    assert [row.ranks for row in history(store, found.item)] == [(0, 1)]
    with pytest.raises(FeedbackError, match="another task"):
        save(store, task(store, made.id, person).id, person, Answered([0, 1], request="once"))


def test_requests_of_two_people_do_not_meet(store: Store) -> None:
    made, (one, two) = campaign(store, 1, people=2, overlap=2)
    for person in (one, two):
        assert not save(store, task(store, made.id, person).id, person, Answered([0, 1], request="same")).again


def test_a_changed_label_keeps_its_past(store: Store) -> None:
    made, (person,) = campaign(store, 1)
    found = task(store, made.id, person)
    save(store, found.id, person, Answered([0, 1]))
    save(store, found.id, person, Answered([1, 0]))
    assert [(row.ranks, row.live) for row in history(store, found.item)] == [((0, 1), False), ((1, 0), True)]
    assert item_row(store, found.item).done == 1


def test_the_database_itself_refuses_a_second_live_label(store: Store) -> None:
    made, (person,) = campaign(store, 1)
    found = task(store, made.id, person)
    save(store, found.id, person, Answered([0, 1]))
    save(store, found.id, person, Answered([1, 0]))
    with pytest.raises(IntegrityError), store.begin() as connection:
        connection.execute(update(labels).values(live=True))
    with pytest.raises(IntegrityError), store.begin() as connection:
        connection.execute(update(items).values(held=5))


def test_undo_gives_the_task_back_with_what_was_said(store: Store) -> None:
    made, (person,) = campaign(store, 3)
    first = task(store, made.id, person)
    save(store, first.id, person, Answered([1, 0], strength=3, comment="hm"))
    second = task(store, made.id, person)
    save(store, second.id, person, Answered([0, 1]))
    third = task(store, made.id, person)
    for expected in (second, first):  # one after the other, the newest first
        again = undo(store, made.id, person)
        assert (again.id, again.shown) == (expected.id, expected.shown)
    assert again.draft is not None
    assert (again.draft["ranks"], again.draft["strength"], again.draft["comment"]) == ([1, 0], 3, "hm")
    with pytest.raises(FeedbackError, match="nothing to undo"):
        undo(store, made.id, person)
    assert list(live_labels(store, made.id)) == []
    assert [(row.ranks, row.live) for row in history(store, first.item)] == [((1, 0), False), (None, False)]
    for expected in (first, second, third):  # what was undone last comes first
        found = task(store, made.id, person)
        assert found.id == expected.id
        save(store, found.id, person, Answered([0, 0]))
    assert next_task(store, made.id, person) == Idle("finished")
    assert counted(store, made.id, person) == {"work": 3}


def test_gold_can_be_undone_like_work(store: Store) -> None:
    made, (person,) = campaign(store, 20, gold=20, gold_share=0.5, seed=1)
    while not people_gold(store, made.id, person):
        save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    assert people_gold(store, made.id, person) == 1
    again = undo(store, made.id, person)
    save(store, again.id, person, Answered([1, 0]))
    found = membership.member(store, made.id, person)
    assert found is not None
    # What was said first counts: who could try what is right would find out which items are gold.
    assert (found.gold_seen, found.gold_right) == (1, 1)


def people_gold(store: Store, campaign_id: int, person: int) -> int:
    member = membership.member(store, campaign_id, person)
    assert member is not None
    return member.gold_seen


def test_of_changed_answers_to_gold_the_first_counts(store: Store) -> None:
    made, (person,) = campaign(store, 20, gold=20, gold_share=0.5, seed=1)
    while not people_gold(store, made.id, person):
        last = task(store, made.id, person)
        save(store, last.id, person, Answered([1, 0]))
    save(store, last.id, person, Answered([0, 1]))
    found = membership.member(store, made.id, person)
    assert found is not None
    assert (found.gold_seen, found.gold_right) == (1, 0)


def test_an_item_that_was_skipped_too_often_stays_disputed(store: Store) -> None:
    made, (one, two, three) = campaign(store, 1, people=3, overlap=3, max_skips=1)
    held, other = task(store, made.id, one), task(store, made.id, two)
    skip(store, task(store, made.id, three).id, three, "broken")
    save(store, held.id, one, Answered([0, 1]))
    assert item_row(store, held.item).state == "disputed"
    undo(store, made.id, one)
    assert item_row(store, held.item).state == "disputed"
    save(store, other.id, two, Answered([0, 1]))
    assert count_disputed(store, made.id) == 1


def test_adjudication_has_the_last_word(store: Store) -> None:
    made, (one, two) = campaign(store, 2, people=2, overlap=2, until_agreement=1.0, max_overlap=2)
    judge = people.add_person(store, "judge", "adjudicator").id
    for person, ranks in ((one, (0, 1)), (two, (1, 0))):
        found = task(store, made.id, person)
        save(store, found.id, person, Answered(ranks))
    assert count_disputed(store, made.id) == 1
    (dispute,) = disputed(store, made.id)
    assert dispute.item == found.item
    assert dispute.agreement == 0.5
    assert [a.model for a in dispute.answers] == ["m0", "m1"]
    assert {label.name: label.ranks for label in dispute.labels} == {"p0": (0, 1), "p1": (1, 0)}
    assert disagreeing(store, made.id) == [(found.item, 0.5)]
    with pytest.raises(FeedbackError, match="only adjudicators"):
        adjudicate(store, found.item, one, Answered([0, 1]))
    first = adjudicate(store, found.item, judge, Answered([0, 0], comment="equal", request="r"))
    assert adjudicate(store, found.item, judge, Answered([0, 1], request="r")).label == first.label
    adjudicate(store, found.item, judge, Answered([1, 0]))
    assert [(r.ranks, r.live) for r in history(store, found.item) if r.kind == "adjudication"] == [
        ((0, 0), False),
        ((1, 0), True),
    ]
    assert look_at(store, found.item).state == "settled"
    assert disputed(store, made.id) == []
    with pytest.raises(ConflictError, match="adjudicator has decided"):
        save(store, found.id, two, Answered([0, 1]))
    with pytest.raises(ConflictError, match="adjudicator has decided"):
        undo(store, made.id, two)
    with pytest.raises(MissingError):
        adjudicate(store, 10**30, judge, Answered([0, 1]))


def test_a_closed_item_is_not_adjudicated(store: Store) -> None:
    made, (person,) = campaign(store, 1)
    item = task(store, made.id, person).item
    judge = people.add_person(store, "judge", "adjudicator").id
    close_item(store, item)
    with pytest.raises(ConflictError, match="taken out"):
        adjudicate(store, item, judge, Answered([0, 1]))
    assert item_row(store, item).state == "closed"


def test_labels_are_filtered(store: Store) -> None:
    made, (one, two) = campaign(store, 2, people=2, overlap=2)
    for person in (one, two, one):
        save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    every = list(live_labels(store, made.id))
    assert len(every) == 3
    assert [r.id for r in live_labels(store, made.id, person=two)] == [r.id for r in every if r.person == two]
    assert [r.id for r in live_labels(store, made.id, item=every[0].item)] == [
        r.id for r in every if r.item == every[0].item
    ]
    assert [r.id for r in live_labels(store, made.id, since=every[2].at)] == [every[2].id]
    assert list(live_labels(store, made.id, phases=("gold",))) == []


def test_a_label_needs_its_item_and_person(store: Store) -> None:
    with pytest.raises(IntegrityError), store.begin() as connection:
        connection.execute(
            insert(labels).values(campaign_id=1, item_id=1, flags={}, gold=False, source="person", kind="label",
                                  live=True, created_at=people.utcnow())
        )  # fmt: skip


# --- gold and agreement, by hand --------------------------------------------------------------------------------------


def test_order_score_by_hand() -> None:
    assert gold.order_score((0, 1), (0, 1)) == 1
    assert gold.order_score((0, 1), (0, 0)) == 0.5
    assert gold.order_score((0, 1), (1, 0)) == 0
    # three answers, pairs 01, 02, 12: a tie of the first two costs half of one of three
    assert gold.order_score((0, 1, 2), (0, 0, 1)) == pytest.approx(5 / 6)
    # the last two swapped: one of three pairs lost
    assert gold.order_score((0, 1, 2), (0, 2, 1)) == pytest.approx(2 / 3)
    assert gold.is_right((0, 1, 2), (0, 0, 1))
    assert not gold.is_right((0, 1, 2), (0, 2, 1))
    assert not gold.is_right((0, 0), (0, 1))


def test_wilson_by_hand() -> None:
    # 5 of 10: centre (0.5 + 2.7055/20) / 1.27055 = 0.5; half width 1.6449 * sqrt(0.025 + 0.0067638) / 1.27055 = 0.23073
    assert gold.upper(5, 10) == pytest.approx(0.73073, abs=1e-4)
    # none of n: z^2 / (n + z^2) = 2.70554 / 7.70554
    assert gold.upper(0, 5) == pytest.approx(2.705543 / 7.705543)
    assert not gold.must_pause(0, 4, 0.7)
    assert gold.must_pause(1, 5, 0.7)
    assert not gold.must_pause(2, 5, 0.7)
    assert gold.must_pause(10, 20, 0.7)
    assert not gold.must_pause(11, 20, 0.7)
    assert not gold.must_pause(0, 20, 0.0)


def test_agreement_by_hand() -> None:
    assert gold.agreement([(0, 1), (0, 1), (1, 0)]) == pytest.approx(2 / 3)
    assert gold.agreement([(0, 1), (0, 0)]) == 0.5
    # pairs 01, 02, 12 of (0,1,2) and (0,2,1): the first two are seen alike, of the third one of two: (1 + 1 + 1/2) / 3
    assert gold.agreement([(0, 1, 2), (0, 2, 1)]) == pytest.approx(5 / 6)
