"""A labeller at work: their place in a campaign, locked, with all that one statement can tell beside it.

Every way to the database and back costs more than what is asked there, so the requests of the labelling page ask for
as much as they can at a time. Locks of PostgreSQL rows are taken in the order member, assignment, item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, exists, select, text

from goodheart.errors import ConflictError, MissingError
from goodheart.feedback.campaigns import Campaign, campaign_from
from goodheart.feedback.guidelines import newest_of
from goodheart.feedback.store import is_id
from goodheart.feedback.tables import Moment, assignments, campaigns, items, labels, members


@dataclass(frozen=True, slots=True)
class Seat:
    """A member's place in a campaign. Nobody else changes it until the transaction ends."""

    campaign: Campaign
    person: int
    state: str  # training, qualifying, working, paused, failed, removed
    reason: str | None
    turns: int  # tasks given so far
    cursor: int | None
    gold_from: int | None
    guideline: int | None  # id of the version that is in force

    @property
    def goes_on(self) -> bool:
        """Whether neither the person nor the campaign is paused or closed."""
        return self.campaign.state == "open" and self.state != "paused"


@dataclass(frozen=True, slots=True)
class Own:
    """An item in the hands of a person, or one that was."""

    id: int
    item_id: int
    person_id: int
    shown: Sequence[int]
    given_at: datetime
    expires_at: datetime
    state: str  # given, done, skipped, expired
    draft: Any


_SEAT = (
    *campaigns.c,
    members.c.person_id,
    members.c.state.label("member_state"),
    *(members.c[name] for name in ("reason", "turns", "cursor", "gold_from")),
    newest_of(campaigns.c.id).label("guideline"),
)
# A lock that ran out: in the words of the partial index.
_OVER = exists().where(
    text("assignments.state = 'given'"),
    assignments.c.campaign_id == bindparam("campaign"),
    assignments.c.expires_at <= bindparam("now", type_=Moment),
)
_IN_CAMPAIGN = (
    select(*_SEAT, _OVER.label("over"))
    .join_from(campaigns, members, members.c.campaign_id == campaigns.c.id)
    .where(campaigns.c.id == bindparam("campaign"), members.c.person_id == bindparam("person"))
    .with_for_update(of=members)
)
_AT_TASK = (
    select(*_SEAT, assignments.c.shown)
    .join_from(assignments, campaigns, campaigns.c.id == assignments.c.campaign_id)
    .join(members, (members.c.campaign_id == campaigns.c.id) & (members.c.person_id == assignments.c.person_id))
    .where(assignments.c.id == bindparam("task"), assignments.c.person_id == bindparam("person"))
)
_AT_TASK_LOCKED = _AT_TASK.with_for_update(of=members)
OWN_COLUMNS = tuple(assignments.c[name] for name in Own.__dataclass_fields__)
_OWN = select(*OWN_COLUMNS).where(assignments.c.id == bindparam("task"))
_OWN_LOCKED = _OWN.with_for_update()
_WITH_ITEM = (
    select(
        *(column.label(f"own_{column.name}") for column in OWN_COLUMNS),
        *items.c,
        labels.c.id.label("sent"),
        labels.c.assignment_id.label("sent_for"),
        labels.c.ranks.label("sent_ranks"),
    )
    .join_from(assignments, items, items.c.id == assignments.c.item_id)
    .outerjoin(labels, (labels.c.person_id == assignments.c.person_id) & (labels.c.request == bindparam("request")))
    .where(assignments.c.id == bindparam("task"))
    .with_for_update(of=[assignments, items])
)


def take_seat(connection: Connection, campaign: int, person: int, now: datetime) -> tuple[Seat, bool] | None:
    """A member's place, and whether locks of the campaign ran out; None: there is no such member or campaign."""
    where = {"campaign": campaign, "person": person, "now": now}
    row = connection.execute(_IN_CAMPAIGN, where).first() if is_id(campaign) else None
    return None if row is None else (_seat(row), bool(row.over))


def seat_at(connection: Connection, task: int, person: int, *, lock: bool = True) -> tuple[Seat, tuple[int, ...]]:
    """The place of who has or had a task in their hands, and the order in which they see its answers.

    Raises:
        MissingError: there is no such task, or it is somebody else's.
    """
    query = _AT_TASK_LOCKED if lock else _AT_TASK
    row = connection.execute(query, {"task": task, "person": person}).first() if is_id(task) else None
    if row is None:
        raise MissingError("there is no such task of yours")
    return _seat(row), tuple(row.shown)


def _seat(row: Any) -> Seat:
    return Seat(
        campaign_from(row),
        row.person_id,
        row.member_state,
        row.reason,
        row.turns,
        row.cursor,
        row.gold_from,
        row.guideline,
    )


def own_task(connection: Connection, task: int, *, lock: bool = False) -> Own:
    """Somebody's task, which is there: `seat_at` has found it."""
    return Own(*connection.execute(_OWN_LOCKED if lock else _OWN, {"task": task}).one())


def own_with_item(connection: Connection, task: int, request: str | None = None) -> tuple[Own, Any]:
    """The same, locked, with the row of its item, locked too.

    Args:
        request: name of a save; of the label that was saved under it before, the item's row has `sent` (its id; None
            where there is none), `sent_for` (its task) and `sent_ranks`.
    """
    row = connection.execute(_WITH_ITEM, {"task": task, "request": request}).one()
    return Own(*row[: len(OWN_COLUMNS)]), row


def check_may(seat: Seat, own: Own) -> None:
    """Makes sure that a person may still work at their task: where they or the campaign are paused, or it is closed,
    what they have open may be finished, and nothing else.

    Raises:
        MissingError: they were removed, or failed the qualification round.
        ConflictError: paused or closed, and the task is not open.
    """
    if seat.state in ("removed", "failed"):
        raise MissingError("you are no labeller of this campaign any more")
    if own.state == "given":
        return
    if seat.campaign.state != "open":
        raise ConflictError(f"the campaign is {seat.campaign.state}: only a task that is open can be finished")
    if seat.state == "paused":
        raise ConflictError("you are paused: only a task that is open can be finished")
