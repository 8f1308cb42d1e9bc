"""Labels: saved once however often they are sent, changed without losing the past, withdrawn, adjudicated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.answered import Answered, label_columns, request_of
from goodheart.feedback.assignment import ROUNDS, advanced
from goodheart.feedback.campaigns import Campaign, CampaignSettings, load
from goodheart.feedback.gold import agreement, is_right, must_pause
from goodheart.feedback.guidelines import current_id
from goodheart.feedback.known import answers_to_known
from goodheart.feedback.people import person_of
from goodheart.feedback.store import Store, insert_row, is_id, utcnow
from goodheart.feedback.tables import assignments, items, labels, members
from goodheart.feedback.tasks import Task, check_may, find_own, hold, take_back, task_of


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
    again: bool = False  # this save came before, nothing was added


def save(
    store: Store, task: int, person: int, answered: Answered, *, source: str = "person", now: datetime | None = None
) -> Saved:
    """Keeps a label. Saved again with the same `request` it is the same label; with another, the label is changed.

    Raises:
        MissingError: no such task of theirs, or they are no labeller here any more.
        ConflictError: the lock ran out and others took the item, an adjudicator has decided, or they or the campaign
            are paused (or it is closed) and the task is not open.
        FeedbackError: the label does not fit the item.
    """
    now = now or utcnow()
    with store.begin() as connection:
        own = find_own(connection, task, person, lock=True)
        campaign = load(connection, own.campaign_id)
        sent = (labels.c.person_id == person) & (labels.c.request == request_of(answered))
        before = connection.execute(select(labels.c.id, labels.c.assignment_id).where(sent)).first()
        if before is not None:
            return _same(connection, campaign, own, before)
        check_may(connection, campaign, own)
        if own.state == "skipped":
            raise ConflictError("this task was skipped already")
        if own.state == "expired":
            take_back(connection, campaign, own, now)
        item = connection.execute(select(items).where(items.c.id == own.item_id).with_for_update()).one()
        _check_open(own, item)
        values = label_columns(campaign.settings, item, answered, source)
        kept = {"assignment_id": task, "person_id": person, "shown": own.shown, "kind": "label", "created_at": now}
        label = _replace(connection, campaign.id, item, values | kept)
        connection.execute(update(assignments).where(assignments.c.id == task).values(state="done", draft=None))
        _count(connection, campaign.settings, item, first=own.state != "done")
        state = _after(connection, campaign, item, person)
        return Saved(label, _feedback(item, answered), state)


def _same(connection: Connection, campaign: Campaign, own: Row[Any], before: Any) -> Saved:
    if before.assignment_id != own.id:
        raise FeedbackError("this request was used for another task; make a new one for each save")
    item = connection.execute(select(items).where(items.c.id == own.item_id)).one()
    ranks = connection.execute(select(labels.c.ranks).where(labels.c.id == before.id)).scalar_one()
    told = None if ranks is None else _feedback(item, Answered(ranks))
    return Saved(before.id, told, _member_state(connection, campaign.id, own.person_id), again=True)


def _check_open(own: Row[Any], item: Row[Any]) -> None:
    if item.state == "settled":
        raise ConflictError("an adjudicator has decided this item; the label can change no more")
    if own.state == "done" and item.phase in ROUNDS.values():
        raise ConflictError("answers of the training and qualification rounds cannot be changed")


def _replace(connection: Connection, campaign: int, item: Row[Any], values: Mapping[str, Any]) -> int:
    """Adds a label in place of the one that person has on the item, if any, which is kept as past."""
    old = (labels.c.item_id == item.id) & (labels.c.person_id == values["person_id"]) & labels.c.live
    connection.execute(update(labels).where(old, labels.c.kind == values["kind"]).values(live=False))
    of_item = {"campaign_id": campaign, "item_id": item.id, "gold": item.phase != "work", "batch": item.batch}
    guideline = current_id(connection, campaign)
    return insert_row(connection, labels, {**of_item, "guideline_id": guideline, "live": True, **values})


def _count(connection: Connection, settings: CampaignSettings, item: Row[Any], *, first: bool) -> None:
    """Counts a label and decides whether its item has enough of them."""
    done, held, wanted, state = item.done + first, item.held - first, item.wanted, item.state
    if item.phase == "work" and state in ("open", "done", "disputed"):
        state, wanted = standing(connection, settings, item, done, held)
    changes = {"done": done, "held": held, "wanted": wanted, "state": state}
    connection.execute(update(items).where(items.c.id == item.id).values(**changes))


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


def _member_state(connection: Connection, campaign: int, person: int) -> str:
    here = (members.c.campaign_id == campaign) & (members.c.person_id == person)
    return connection.execute(select(members.c.state).where(here)).scalar() or "removed"


def _after(connection: Connection, campaign: Campaign, item: Row[Any], person: int) -> str:
    """What an answer to a known item means for the member; returns their state."""
    here = (members.c.campaign_id == campaign.id) & (members.c.person_id == person)
    state, gold_from = connection.execute(select(members.c.state, members.c.gold_from).where(here)).one()
    if item.phase == "work":
        return str(state)
    settings = campaign.settings
    changes: dict[str, Any] = {}
    if item.phase == "gold":
        right = answers_to_known(connection, campaign.id, person, "gold")
        window = answers_to_known(connection, campaign.id, person, "gold", after=gold_from or 0)[: settings.gold_window]
        changes = {"gold_seen": len(right), "gold_right": sum(right)}
        if state == "working" and must_pause(sum(window), len(window), settings.gold_pause_below):
            reason = f"{sum(window)} of the newest {len(window)} gold items right"
            changes |= {"state": "paused", "reason": reason, "resumes": state}
            what = {"campaign": campaign.id, "person": person, "state": "paused", "reason": reason}
            audit.note(connection, None, "gold pause", what)
    elif state in ROUNDS:
        changes = {"state": advanced(connection, campaign, person, state) or state}
    if changes:
        connection.execute(update(members).where(here).values(**changes))
    return str(changes.get("state", state))


def undo(store: Store, campaign: int, person: int, *, now: datetime | None = None) -> Task:
    """Withdraws the newest label of a person and gives them its item again, with what they had said as draft.

    Raises:
        FeedbackError: there is nothing to undo, or it can be undone no more.
        MissingError: they are no labeller here any more.
    """
    now = now or utcnow()
    with store.begin() as connection:
        mine = (labels.c.campaign_id == campaign) & (labels.c.person_id == person) & labels.c.live
        newest = select(labels).where(mine, labels.c.kind == "label", labels.c.assignment_id.is_not(None))
        label = connection.execute(newest.order_by(labels.c.id.desc()).limit(1)).first()
        if label is None:
            raise FeedbackError("there is nothing to undo")
        own = find_own(connection, label.assignment_id, person, lock=True)
        found = load(connection, campaign)
        check_may(connection, found, own)
        item = connection.execute(select(items).where(items.c.id == label.item_id).with_for_update()).one()
        _check_undo(own, item)
        _withdraw(connection, label, now)
        draft = {"ranks": label.ranks, "strength": label.strength, "flags": label.flags, "ratings": label.ratings}
        draft |= {"comment": label.comment, "seconds": label.seconds}
        connection.execute(update(assignments).where(assignments.c.id == own.id).values(draft=draft))
        unfinished = "disputed" if item.skips >= found.settings.max_skips else "open"
        state = unfinished if item.state in ("done", "disputed") else item.state
        connection.execute(update(items).where(items.c.id == item.id).values(done=item.done - 1, state=state))
        hold(connection, found.settings, own.id, item.id, now)
        _after(connection, found, item, person)
        again = connection.execute(select(assignments).where(assignments.c.id == own.id)).one()
        return task_of(connection, found, item, again, again.expires_at)


def _check_undo(own: Row[Any], item: Row[Any]) -> None:
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
        made = {"person_id": person, "kind": "adjudication", "created_at": now}
        label = _replace(connection, campaign.id, row, values | made)
        connection.execute(update(items).where(items.c.id == item).values(state="settled"))
        audit.note(connection, person, "adjudicate", {"campaign": campaign.id, "item": item, "label": label}, now)
        return Saved(label, None, "working")
