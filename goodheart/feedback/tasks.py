"""A task in somebody's hands: what they see of it, their draft, its lock, and putting it aside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from goodheart.data.records import Answer, Prompt
from goodheart.errors import ConflictError, FeedbackError
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.items import unpack_answer, unpack_prompt
from goodheart.feedback.seats import Own, check_may, own_task, own_with_item, seat_at
from goodheart.feedback.store import Store, update_row, utcnow
from goodheart.feedback.tables import assignments, items

DRAFT_BYTES = 200_000
HOLD = update(items).where(items.c.id == bindparam("item")).values(held=items.c.held + 1)


@dataclass(frozen=True, slots=True)
class Task:
    """An item in the hands of a person. Ranks and flags count in the order of `answers`, not in the shown order."""

    id: int
    campaign: int
    item: int
    person: int
    phase: str  # training, qualification or work; gold among the work looks like work
    prompt: Prompt
    answers: tuple[Answer, ...]  # without models and notes where the campaign is blind
    shown: tuple[int, ...]  # answers from left to right, as indices into `answers`
    draft: Mapping[str, Any] | None
    guideline: int | None  # id of the version that is in force
    given_at: datetime
    expires_at: datetime


def hold(connection: Connection, settings: CampaignSettings, assignment: int, item: int, now: datetime) -> None:
    """Puts an item into somebody's hands again."""
    expires = now + timedelta(minutes=settings.lock_minutes)
    update_row(connection, assignments, assignment, {"state": "given", "given_at": now, "expires_at": expires})
    connection.execute(HOLD, {"item": item})


def task_of(campaign: Campaign, guideline: int | None, item: Any, own: Own, expires: datetime) -> Task:
    """An assignment with what belongs to it."""
    return Task(
        id=own.id,
        campaign=campaign.id,
        item=item.id,
        person=own.person_id,
        phase="work" if item.phase == "gold" else item.phase,
        prompt=unpack_prompt(item.prompt),
        answers=answers_of(campaign, item),
        shown=tuple(own.shown),
        draft=own.draft,
        guideline=guideline,
        given_at=own.given_at,
        expires_at=expires,
    )


def answers_of(campaign: Campaign, item: Any) -> tuple[Answer, ...]:
    """The answers of an item as labellers may see them."""
    answers = tuple(unpack_answer(each) for each in item.answers)
    return tuple(Answer(each.text, each.messages) for each in answers) if campaign.settings.blind else answers


def get_task(store: Store, task: int, person: int) -> Task:
    """A task that a person has or had in their hands.

    Raises:
        MissingError: there is none, or it is somebody else's.
    """
    with store.read() as connection:
        seat, _ = seat_at(connection, task, person, lock=False)
        own = own_task(connection, task)
        item = connection.execute(select(items).where(items.c.id == own.item_id)).one()
        return task_of(seat.campaign, seat.guideline, item, own, own.expires_at)


def save_draft(
    store: Store, task: int, person: int, draft: Mapping[str, Any] | None, *, now: datetime | None = None
) -> datetime:
    """Keeps what is not yet finished, and renews the lock; returns when the lock now ends.

    Where the person or the campaign is paused, or it is closed, the draft is kept and the lock is not renewed.

    Raises:
        MissingError: no such task of theirs.
        ConflictError: it is finished, or its lock ran out and others took it.
    """
    now = now or utcnow()
    with store.begin() as connection:
        seat, _ = seat_at(connection, task, person)
        own = own_task(connection, task, lock=True)
        check_may(seat, own)
        take_back(connection, seat.campaign, own, now)
        if len(json.dumps(draft, default=str)) > DRAFT_BYTES:
            raise FeedbackError(f"a draft has at most {DRAFT_BYTES} characters as JSON")
        renewed = now + timedelta(minutes=seat.campaign.settings.lock_minutes)
        expires = renewed if seat.goes_on else own.expires_at
        kept = None if draft is None else dict(draft)
        update_row(connection, assignments, task, {"draft": kept, "expires_at": expires})
    return expires


def take_back(connection: Connection, campaign: Campaign, own: Own, now: datetime) -> None:
    """Makes sure that a person still holds their task: one whose lock ran out is theirs again while it is wanted.

    Raises:
        ConflictError: it is finished, or others took it.
    """
    if own.state == "given":
        return
    if own.state != "expired":
        raise ConflictError("this task is finished already")
    item = connection.execute(select(items).where(items.c.id == own.item_id).with_for_update()).one()
    if item.state != "open" or (item.phase == "work" and item.done + item.held >= item.wanted):
        raise ConflictError("the time for this task ran out, and others have taken it; go on with the next")
    hold(connection, campaign.settings, own.id, own.item_id, now)


def skip(store: Store, task: int, person: int, reason: str, *, now: datetime | None = None) -> None:
    """Puts a task aside for good. Skipped a second time, nothing happens.

    Raises:
        MissingError: no such task of theirs.
        ConflictError: it is labelled already.
        FeedbackError: items of training and qualification cannot be skipped.
    """
    now = now or utcnow()
    with store.begin() as connection:
        seat, _ = seat_at(connection, task, person)
        own, item = own_with_item(connection, task)
        if own.state == "skipped":
            return
        if own.state == "done":
            raise ConflictError("this task is labelled already; undo takes the label back")
        check_may(seat, own)
        if item.phase in ("training", "qualification"):
            raise FeedbackError("items of training and qualification cannot be skipped")
        changes: dict[str, Any] = {"skips": item.skips + 1, "held": item.held - (own.state == "given")}
        if item.phase == "work" and item.state == "open" and item.skips + 1 >= seat.campaign.settings.max_skips:
            changes["state"] = "disputed"
        update_row(connection, items, item.id, changes)
        update_row(connection, assignments, task, {"state": "skipped", "reason": reason[:2000], "draft": None})
