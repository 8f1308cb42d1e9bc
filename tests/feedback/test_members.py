"""What members may do in each state, and how they leave and enter one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from goodheart.errors import ConflictError, MissingError
from goodheart.feedback import campaigns, membership
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import Idle, next_task
from goodheart.feedback.label_rows import live_labels
from goodheart.feedback.labels import save, undo
from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tasks import save_draft, skip
from tests.feedback.making import campaign, known, task

PHASES = ("training", "qualification", "gold", "work")


def in_phase(store: Store, phase: str, **more: float) -> tuple[int, int]:
    """A campaign in which the person's next task is of that phase."""
    rounds = {phase: 2} if phase in ("training", "qualification") else {}
    made, (person,) = campaign(store, 8, **rounds, gold_share=0.5 if phase == "gold" else 0.0, **more)
    if phase != "work":
        campaigns.add_items(store, made.id, known(4, phase))
    return made.id, person


def state(store: Store, made: int, person: int) -> str:
    found = membership.member(store, made, person)
    assert found is not None
    return found.state


@pytest.mark.parametrize("phase", PHASES)
def test_what_a_paused_member_holds_can_be_finished_and_nothing_else(store: Store, phase: str) -> None:
    made, person = in_phase(store, phase)
    first = task(store, made, person)
    done = save(store, first.id, person, Answered([0, 1], request="first"))
    held = task(store, made, person)
    membership.set_member(store, made, person, "paused")
    assert save_draft(store, held.id, person, {"x": 1}, now=utcnow() + timedelta(minutes=9)) == held.expires_at
    assert save(store, first.id, person, Answered([0, 1], request="first")).label == done.label
    assert save(store, held.id, person, Answered([0, 1])).member == "paused"
    for act in (
        lambda: save(store, held.id, person, Answered([1, 0])),
        lambda: undo(store, made, person),
    ):
        with pytest.raises(ConflictError, match="you are paused"):
            act()
    found = next_task(store, made, person)
    assert isinstance(found, Idle)
    assert found.why == "paused"


@pytest.mark.parametrize("end", ["pause", "close"])
def test_a_campaign_that_rests_takes_only_what_is_open(store: Store, end: str) -> None:
    made, (person,) = campaign(store, 5)
    first = task(store, made.id, person)
    save(store, first.id, person, Answered([0, 1]))
    held = task(store, made.id, person)
    (campaigns.pause if end == "pause" else campaigns.close)(store, made.id)
    for act in (lambda: save(store, first.id, person, Answered([1, 0])), lambda: undo(store, made.id, person)):
        with pytest.raises(ConflictError, match="only a task that is open"):
            act()
    assert save_draft(store, held.id, person, {}, now=utcnow() + timedelta(minutes=9)) == held.expires_at
    save(store, held.id, person, Answered([0, 1]))
    assert [label.ranks for label in live_labels(store, made.id)] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("gone", ["removed", "failed"])
@pytest.mark.parametrize("phase", PHASES)
def test_who_is_gone_changes_nothing(store: Store, phase: str, gone: str) -> None:
    made, person = in_phase(store, phase)
    first = task(store, made, person)
    save(store, first.id, person, Answered([0, 1]))
    held = task(store, made, person)
    membership.set_member(store, made, person, gone)
    for act in (
        lambda: save(store, first.id, person, Answered([1, 0])),
        lambda: save(store, held.id, person, Answered([1, 0])),
        lambda: save_draft(store, held.id, person, {}),
        lambda: skip(store, held.id, person, "why"),
        lambda: undo(store, made, person),
    ):
        with pytest.raises(MissingError, match="no labeller of this campaign any more"):
            act()
    assert [label.ranks for label in live_labels(store, made, phases=None)] == [(0, 1)]


@pytest.mark.parametrize("phase", ["training", "qualification"])
def test_a_lost_lock_does_not_end_a_round(store: Store, phase: str) -> None:
    made, (person,) = campaign(store, 3, **{phase: 2})
    campaigns.add_items(store, made.id, known(2, phase))
    now = utcnow()
    first = task(store, made.id, person, now=now)
    later = now + timedelta(hours=1)
    again = task(store, made.id, person, now=later)
    assert (again.id, again.phase) == (first.id, phase)
    save(store, again.id, person, Answered([0, 1]), now=later)
    save(store, task(store, made.id, person, now=later).id, person, Answered([0, 1]), now=later)
    assert task(store, made.id, person, now=later).phase == "work"


def test_who_goes_on_after_a_pause_is_where_they_were(store: Store) -> None:
    made, person = in_phase(store, "training")
    task(store, made, person)
    membership.set_member(store, made, person, "paused", "holiday")
    membership.set_member(store, made, person, "paused", "longer holiday")
    membership.set_member(store, made, person, "working")
    assert state(store, made, person) == "training"
    assert task(store, made, person).phase == "training"
    membership.set_member(store, made, person, "working")  # from training: a manager lets them skip it
    assert state(store, made, person) == "working"


def test_gold_before_a_manager_said_go_on_pauses_nobody_again(store: Store) -> None:
    made, (person,) = campaign(store, 60, gold=40, gold_share=0.5, gold_pause_below=0.7)
    for seen in (5, 10):  # none right of five pauses (test_wilson_by_hand); after that as many again, not one
        while not isinstance(found := next_task(store, made.id, person), Idle):
            save(store, found.id, person, Answered([1, 0]))
        member = membership.member(store, made.id, person)
        assert member is not None
        assert (member.state, member.gold_seen, member.reason) == ("paused", seen, "0 of the newest 5 gold items right")
        membership.set_member(store, made.id, person, "working")
