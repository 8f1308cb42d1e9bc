"""Labels: saved once however often they are sent, changed without losing the past, withdrawn, adjudicated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.answered import Answered, label_columns, request_of
from goodheart.feedback.assignment import ROUNDS, advanced
from goodheart.feedback.campaigns import CampaignSettings, load
from goodheart.feedback.gold import agreement, is_right, must_pause
from goodheart.feedback.guidelines import current_id
from goodheart.feedback.known import answers_to_known
from goodheart.feedback.people import person_of
from goodheart.feedback.seats import Own, Seat, check_may, own_task, own_with_item, seat_at
from goodheart.feedback.store import Store, insert_row, is_id, update_row, utcnow
from goodheart.feedback.tables import assignments, items, labels, members
from goodheart.feedback.tasks import Task, hold, take_back, task_of

_PAST = (  # turns what somebody said of an item into the past
    update(labels)
    .where(labels.c.item_id == bindparam("item"), labels.c.person_id == bindparam("person"), labels.c.live)
    .where(labels.c.kind == bindparam("of_kind"))
    .values(live=False)
)


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a labeller is told after an item of the training round."""

    right: bool
    ranks: tuple[int, ...]
    why: str | None


@dataclass(frozen=True, slots=True)
class Saved:
    """A label that is on the disk."""

    label: int
    feedback: Feedback | None  # in the training round only
    member: str  # state of the member after it: working, paused, failed, ...
    shown: tuple[int, ...] = ()  # in which order they saw the answers
    again: bool = False  # this save came before, nothing was added


def save(
    store: Store,
    task: int,
    person: int,
    answered: Answered | Callable[[tuple[int, ...]], Answered],
    *,
    source: str = "person",
    now: datetime | None = None,
) -> Saved:
    """Keeps a label. Saved again with the same `request` it is the same label; with another, the label is changed.

    Args:
        answered: in the order of the item; or what makes that of the order in which they see the answers.

    Raises:
        MissingError: no such task of theirs, or they are no labeller here any more.
        ConflictError: the lock ran out and others took the item, an adjudicator has decided, or they or the campaign
            are paused (or it is closed) and the task is not open.
        FeedbackError: the label does not fit the item.
    """
    now = now or utcnow()
    with store.begin() as connection:
        seat, shown = seat_at(connection, task, person)
        said = answered(shown) if callable(answered) else answered
        request = request_of(said)
        own, item = own_with_item(connection, task, request)
        if item.sent is not None:
            return _same(seat, own, item)
        check_may(seat, own)
        if own.state == "skipped":
            raise ConflictError("this task was skipped already")
        if own.state == "expired":
            take_back(connection, seat.campaign, own, now)
            own, item = own_with_item(connection, task, request)
        _check_open(own, item)
        values = label_columns(seat.campaign.settings, item, said, source)
        kept = {"assignment_id": task, "person_id": person, "shown": own.shown, "kind": "label", "created_at": now}
        label = _replace(connection, seat.campaign.id, item, values | kept | {"guideline_id": seat.guideline})
        update_row(connection, assignments, task, {"state": "done", "draft": None})
        _count(connection, seat.campaign.settings, item, first=own.state != "done")
        return Saved(label, _feedback(item, said), _after(connection, seat, item), shown)


def _same(seat: Seat, own: Own, item: Row[Any]) -> Saved:
    if item.sent_for != own.id:
        raise FeedbackError("this request was used for another task; make a new one for each save")
    told = None if item.sent_ranks is None else _feedback(item, Answered(item.sent_ranks))
    return Saved(item.sent, told, seat.state, tuple(own.shown), again=True)


def _check_open(own: Own, item: Row[Any]) -> None:
    if item.state == "settled":
        raise ConflictError("an adjudicator has decided this item; the label can change no more")
    if own.state == "done" and item.phase in ROUNDS.values():
        raise ConflictError("answers of the training and qualification rounds cannot be changed")


def _replace(connection: Connection, campaign: int, item: Row[Any], values: Mapping[str, Any]) -> int:
    """Adds a label in place of the one that person has on the item, if any, which is kept as past."""
    whose = {"item": item.id, "person": values["person_id"], "of_kind": values["kind"]}
    connection.execute(_PAST, whose)
    of_item = {"campaign_id": campaign, "item_id": item.id, "gold": item.phase != "work", "batch": item.batch}
    return insert_row(connection, labels, {**of_item, "live": True, **values})


def _count(connection: Connection, settings: CampaignSettings, item: Row[Any], *, first: bool) -> None:
    """Counts a label and decides whether its item has enough of them."""
    done, held, wanted, state = item.done + first, item.held - first, item.wanted, item.state
    if item.phase == "work" and state in ("open", "done", "disputed"):
        state, wanted = standing(connection, settings, item, done, held)
    update_row(connection, items, item.id, {"done": done, "held": held, "wanted": wanted, "state": state})


def standing(
    connection: Connection, settings: CampaignSettings, item: Row[Any], done: int, held: int
) -> tuple[str, int]:
    """State of an item of work with `done` labels, `held` by more people, and how many labels it now wants."""
    wanted = max(item.wanted, done + held)
    unfinished = "disputed" if item.skips >= settings.max_skips else "open"
    if settings.until_agreement is None:
        return ("done" if done >= wanted else unfinished), wanted
    if done < settings.overlap:
        return unfinished, wanted
    live = select(labels.c.ranks).where(labels.c.item_id == item.id, labels.c.live, labels.c.kind == "label")
    ranks_LK = list(connection.execute(live).scalars())
    if agreement(ranks_LK) >= settings.until_agreement - 1e-9:
        return "done", wanted
    if done < wanted:
        return unfinished, wanted
    return (unfinished, wanted + 1) if wanted < settings.most_labels else ("disputed", wanted)


def _feedback(item: Row[Any], answered: Answered) -> Feedback | None:
    if item.phase != "training":
        return None
    gold = item.gold
    return Feedback(is_right(gold["ranks"], answered.ranks), tuple(gold["ranks"]), gold.get("why"))


def _after(connection: Connection, seat: Seat, item: Row[Any]) -> str:
    """What an answer to a known item means for the member; returns their state."""
    if item.phase == "work":
        return seat.state
    campaign, person, state, settings = seat.campaign, seat.person, seat.state, seat.campaign.settings
    changes: dict[str, Any] = {}
    if item.phase == "gold":
        right = answers_to_known(connection, campaign.id, person, "gold")
        fresh = answers_to_known(connection, campaign.id, person, "gold", after=seat.gold_from or 0)
        window = fresh[: settings.gold_window]
        changes = {"gold_seen": len(right), "gold_right": sum(right)}
        if state == "working" and must_pause(sum(window), len(window), settings.gold_pause_below):
            reason = f"{sum(window)} of the newest {len(window)} gold items right"
            changes |= {"state": "paused", "reason": reason, "resumes": state}
            what = {"campaign": campaign.id, "person": person, "state": "paused", "reason": reason}
            audit.note(connection, None, "gold pause", what)
    elif state in ROUNDS:
        changes = {"state": advanced(connection, campaign, person, state) or state}
    if changes:
        here = (members.c.campaign_id == campaign.id) & (members.c.person_id == person)
        connection.execute(update(members).where(here).values(**changes))
    return str(changes.get("state", state))


def undo(store: Store, campaign: int, person: int, *, now: datetime | None = None) -> Task:
    """Withdraws the newest label of a person and gives them its item again, with what they had said as draft.

    Raises:
        FeedbackError: there is nothing to undo, or it can be undone no more.
        ConflictError: they saved or undid a label at the same time elsewhere.
        MissingError: they are no labeller here any more.
    """
    now = now or utcnow()
    with store.begin() as connection:
        mine = (labels.c.campaign_id == campaign) & (labels.c.person_id == person) & labels.c.live
        query = select(labels).where(mine, labels.c.kind == "label", labels.c.assignment_id.is_not(None))
        newest = query.order_by(labels.c.id.desc()).limit(1)
        label = connection.execute(newest).first()
        if label is None:
            raise FeedbackError("there is nothing to undo")
        seat, _ = seat_at(connection, label.assignment_id, person)
        own, item = own_with_item(connection, label.assignment_id)
        check_may(seat, own)
        _check_undo(own, item)
        # Only since `seat_at` nothing of theirs changes any more: what was read before it may be the past.
        now_newest = connection.execute(newest).first()
        if now_newest is None or now_newest.id != label.id:
            raise ConflictError("what you labelled last changed meanwhile; look at it and undo again")
        _withdraw(connection, label, now)
        draft = {"ranks": label.ranks, "strength": label.strength, "flags": label.flags, "ratings": label.ratings}
        draft |= {"comment": label.comment, "seconds": label.seconds}
        update_row(connection, assignments, own.id, {"draft": draft})
        unfinished = "disputed" if item.skips >= seat.campaign.settings.max_skips else "open"
        state = unfinished if item.state in ("done", "disputed") else item.state
        update_row(connection, items, item.id, {"done": item.done - 1, "state": state})
        hold(connection, seat.campaign.settings, own.id, item.id, now)
        _after(connection, seat, item)
        again = own_task(connection, own.id)
        return task_of(seat.campaign, seat.guideline, item, again, again.expires_at)


def _check_undo(own: Own, item: Row[Any]) -> None:
    if own.state != "done":  # another transaction of theirs was faster
        raise ConflictError("this label was undone already")
    if item.phase in ROUNDS.values():
        raise FeedbackError("answers of the training and qualification rounds cannot be undone")
    if item.state == "settled":
        raise ConflictError("an adjudicator has decided this item; the label can change no more")


def _withdraw(connection: Connection, label: Row[Any], now: datetime) -> None:
    connection.execute(update(labels).where(labels.c.id == label.id).values(live=False))
    same = ("campaign_id", "item_id", "person_id", "assignment_id", "guideline_id", "gold", "batch", "source", "kind")
    kept = {name: getattr(label, name) for name in same}
    connection.execute(insert(labels).values(**kept, ranks=None, flags={}, live=False, created_at=now))


def adjudicate(store: Store, item: int, person: int, answered: Answered, *, now: datetime | None = None) -> Saved:
    """The last word on an item, whatever people said; may be said anew.

    Raises:
        MissingError: there is no such item.
        ConflictError: the item was taken out of the campaign.
        FeedbackError: they are no adjudicator, the item is not one of work, or the label does not fit.
    """
    now = now or utcnow()
    with store.begin() as connection:
        if not person_of(connection, person).may("adjudicator"):
            raise FeedbackError("only adjudicators and managers decide disputed items")
        row = (
            connection.execute(select(items).where(items.c.id == item).with_for_update()).first()
            if is_id(item)
            else None
        )
        if row is None:
            raise MissingError(f"there is no item number {item}")
        if row.phase != "work":
            raise FeedbackError("the right answer of this item is known already; only items of work are adjudicated")
        if row.state == "closed":
            raise ConflictError("this item was taken out of the campaign; there is nothing to decide")
        sent = (labels.c.person_id == person) & (labels.c.request == request_of(answered))
        before = connection.execute(select(labels.c.id, labels.c.item_id).where(sent)).first()
        if before is not None:
            if before.item_id != item:
                raise FeedbackError("this request was used for another item; make a new one for each save")
            return Saved(before.id, None, "working", again=True)
        campaign = load(connection, row.campaign_id)
        values = label_columns(campaign.settings, row, answered, "person")
        others = (labels.c.item_id == item) & (labels.c.kind == "adjudication") & labels.c.live
        connection.execute(update(labels).where(others).values(live=False))
        guideline = current_id(connection, campaign.id)
        made = {"person_id": person, "kind": "adjudication", "created_at": now, "guideline_id": guideline}
        label = _replace(connection, campaign.id, row, values | made)
        connection.execute(update(items).where(items.c.id == item).values(state="settled"))
        audit.note(connection, person, "adjudicate", {"campaign": campaign.id, "item": item, "label": label}, now)
        return Saved(label, None, "working")
