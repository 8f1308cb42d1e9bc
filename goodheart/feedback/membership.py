"""Who labels in which campaign, and how far they are: training, qualifying, working, paused, failed, removed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from goodheart.errors import FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.people import Person, person_from, person_of
from goodheart.feedback.store import Store, take_turn, utcnow
from goodheart.feedback.tables import MEMBER_STATES, campaigns, labels, members, people

_AT_ONCE = 1000  # people in a statement


@dataclass(frozen=True, slots=True)
class Member:
    """A person in a campaign."""

    person: Person
    state: str  # training, qualifying, working, paused, failed, removed
    reason: str | None
    gold_seen: int  # gold items answered while working
    gold_right: int
    since: datetime


def join(store: Store, campaign: int, person: int, *, by: int | None = None, now: datetime | None = None) -> None:
    """Makes a person a labeller of a campaign. Does nothing where they are one already."""
    with store.begin() as connection:
        if join_in(connection, campaign, person, now):
            audit.note(connection, by, "join", {"campaign": campaign, "person": person}, now)


def join_in(connection: Connection, campaign: int, person: int, now: datetime | None = None) -> bool:
    """`join` in the caller's transaction; whether they were new. Waits for an import into the campaign to end."""
    take_turn(connection, campaign)
    if connection.execute(select(campaigns.c.id).where(campaigns.c.id == campaign)).first() is None:
        raise MissingError(f"there is no campaign number {campaign}")
    person_of(connection, person)
    values = {"campaign_id": campaign, "person_id": person, "since": now or utcnow(), "state": "training"}
    add = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(members)
    new = add.values(**values, gold_seen=0, gold_right=0, turns=0).on_conflict_do_nothing()
    return connection.execute(new.returning(members.c.person_id)).first() is not None


def member(store: Store, campaign: int, person: int) -> Member | None:
    """A person's place in a campaign; None where they have none."""
    return next(iter(_members(store, (members.c.campaign_id == campaign) & (members.c.person_id == person))), None)


def list_members(store: Store, campaign: int) -> list[Member]:
    """Everybody in a campaign, by name."""
    return _members(store, members.c.campaign_id == campaign)


def campaigns_of(store: Store, person: int) -> list[int]:
    """The campaigns they are in, newest first."""
    mine = (members.c.person_id == person) & (members.c.state != "removed")
    with store.read() as connection:
        found = select(members.c.campaign_id).where(mine).order_by(members.c.campaign_id.desc())
        return list(connection.execute(found).scalars())


def _members(store: Store, condition: Any) -> list[Member]:
    query = select(people, members).join(members, members.c.person_id == people.c.id).where(condition)
    with store.read() as connection:
        rows = connection.execute(query.order_by(people.c.name)).all()
    return [Member(person_from(row), row.state, row.reason, row.gold_seen, row.gold_right, row.since) for row in rows]


def take_places(connection: Connection, people_: Iterable[int], campaign: int | None = None) -> None:
    """Locks the places of people, in the caller's transaction: until it ends none of them gets, saves or skips a task.

    Args:
        campaign: their place there; None: in all.
    """
    ids = sorted(set(people_))
    for start in range(0, len(ids), _AT_ONCE):
        theirs = select(members.c.person_id).where(members.c.person_id.in_(ids[start : start + _AT_ONCE]))
        if campaign is not None:
            theirs = theirs.where(members.c.campaign_id == campaign)
        connection.execute(theirs.order_by(members.c.person_id, members.c.campaign_id).with_for_update()).all()


def set_member(
    store: Store, campaign: int, person: int, state: str, reason: str | None = None, *, by: int | None = None
) -> None:
    """Pauses a member, lets them go on, or removes them; what they hold is free for others when its lock ends.

    "working" lets a paused member go on where they were, be it in training or qualification. Their gold answers up to
    then pause them no more.

    Raises:
        FeedbackError: no such state.
        MissingError: they are not in the campaign.
    """
    if state not in MEMBER_STATES:
        raise FeedbackError(f"there is no state {state!r} of a member; use {', '.join(MEMBER_STATES)}")
    here = (members.c.campaign_id == campaign) & (members.c.person_id == person)
    with store.begin() as connection:
        before = connection.execute(select(members).where(here).with_for_update()).first()
        if before is None:
            raise MissingError(f"person {person} is not in campaign {campaign}; let them join first")
        changes: dict[str, Any] = {"reason": reason, "resumes": None}
        if state == "paused":
            changes["resumes"] = before.resumes if before.state == "paused" else before.state
        elif state == "working":
            state = (before.resumes or state) if before.state == "paused" else state
            theirs = (labels.c.campaign_id == campaign) & (labels.c.person_id == person)
            changes["gold_from"] = connection.execute(select(func.max(labels.c.id)).where(theirs)).scalar()
        connection.execute(update(members).where(here).values(state=state, **changes))
        what = {"campaign": campaign, "person": person, "state": state, "reason": reason}
        audit.note(connection, by, "set member", what)
