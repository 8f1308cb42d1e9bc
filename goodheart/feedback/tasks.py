"""A task in somebody's hands: what they see of it, their draft, its lock, and putting it aside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, select, update

from goodheart.data.records import Answer, Prompt
from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback.campaigns import Campaign, CampaignSettings, load
from goodheart.feedback.guidelines import current_id
from goodheart.feedback.items import unpack_answer, unpack_prompt
from goodheart.feedback.store import Store, is_id, utcnow
from goodheart.feedback.tables import assignments, items, members

DRAFT_BYTES = 200_000


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
    again = {"state": "given", "given_at": now, "expires_at": expires}
    connection.execute(update(assignments).where(assignments.c.id == assignment).values(**again))
    connection.execute(update(items).where(items.c.id == item).values(held=items.c.held + 1))


def task_of(connection: Connection, campaign: Campaign, item: Any, own: Any, expires: datetime) -> Task:
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
        guideline=current_id(connection, campaign.id),
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
        own = find_own(connection, task, person)
        campaign = load(connection, own.campaign_id)
        item = connection.execute(select(items).where(items.c.id == own.item_id)).one()
        return task_of(connection, campaign, item, own, own.expires_at)


def shown_of(store: Store, task: int, person: int) -> tuple[int, ...]:
    """In which order a person sees or saw the answers of their task: much less to read than `get_task`.

    Raises:
        MissingError: there is no such task, or it is somebody else's.
    """
    with store.read() as connection:
        return tuple(find_own(connection, task, person).shown)


def find_own(connection: Connection, task: int, person: int, *, lock: bool = False) -> Row[Any]:
    """The row of somebody's own assignment; `lock` keeps it and their member's row for this transaction."""
    query = select(assignments).where(assignments.c.id == task, assignments.c.person_id == person)
    own = connection.execute(query).first() if is_id(task) else None
    if own is None:
        raise MissingError("there is no such task of yours")
    if lock:
        here = (members.c.campaign_id == own.campaign_id) & (members.c.person_id == person)
        connection.execute(select(members.c.state).where(here).with_for_update())
        own = connection.execute(query.with_for_update()).one()
    return own


def check_may(connection: Connection, campaign: Campaign, own: Row[Any]) -> None:
    """Makes sure that a person may still work at their task: where they or the campaign are paused, or it is closed,
    what they have open may be finished, and nothing else.

    Raises:
        MissingError: they were removed, or failed the qualification round.
        ConflictError: paused or closed, and the task is not open.
    """
    here = (members.c.campaign_id == campaign.id) & (members.c.person_id == own.person_id)
    state = connection.execute(select(members.c.state).where(here)).scalar()
    if state in (None, "removed", "failed"):
        raise MissingError("you are no labeller of this campaign any more")
    if own.state == "given":
        return
    if campaign.state != "open":
        raise ConflictError(f"the campaign is {campaign.state}: only a task that is open can be finished")
    if state == "paused":
        raise ConflictError("you are paused: only a task that is open can be finished")


def _goes_on(connection: Connection, campaign: Campaign, own: Row[Any]) -> bool:
    """Whether neither the person nor the campaign is paused or closed."""
    here = (members.c.campaign_id == campaign.id) & (members.c.person_id == own.person_id)
    return campaign.state == "open" and connection.execute(select(members.c.state).where(here)).scalar() != "paused"


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
        own = find_own(connection, task, person, lock=True)
        campaign = load(connection, own.campaign_id)
        check_may(connection, campaign, own)
        take_back(connection, campaign, own, now)
        if len(json.dumps(draft, default=str)) > DRAFT_BYTES:
            raise FeedbackError(f"a draft has at most {DRAFT_BYTES} characters as JSON")
        renewed = now + timedelta(minutes=campaign.settings.lock_minutes)
        expires = renewed if _goes_on(connection, campaign, own) else own.expires_at
        kept = None if draft is None else dict(draft)
        connection.execute(update(assignments).where(assignments.c.id == task).values(draft=kept, expires_at=expires))
    return expires


def take_back(connection: Connection, campaign: Campaign, own: Row[Any], now: datetime) -> None:
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
        own = find_own(connection, task, person, lock=True)
        if own.state == "skipped":
            return
        if own.state == "done":
            raise ConflictError("this task is labelled already; undo takes the label back")
        campaign = load(connection, own.campaign_id)
        check_may(connection, campaign, own)
        item = connection.execute(select(items).where(items.c.id == own.item_id).with_for_update()).one()
        if item.phase in ("training", "qualification"):
            raise FeedbackError("items of training and qualification cannot be skipped")
        changes: dict[str, Any] = {"skips": item.skips + 1, "held": item.held - (own.state == "given")}
        if item.phase == "work" and item.state == "open" and item.skips + 1 >= campaign.settings.max_skips:
            changes["state"] = "disputed"
        connection.execute(update(items).where(items.c.id == item.id).values(**changes))
        done = {"state": "skipped", "reason": reason[:2000], "draft": None}
        connection.execute(update(assignments).where(assignments.c.id == task).values(**done))
