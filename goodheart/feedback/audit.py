"""What managers did, when: a log that is only added to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tables import audit, people


@dataclass(frozen=True, slots=True)
class Entry:
    """One action: `person` is None where a program did it."""

    id: int
    at: datetime
    person: str | None
    action: str
    what: Mapping[str, Any]


def note(
    connection: Connection, by: int | None, action: str, what: Mapping[str, Any], now: datetime | None = None
) -> None:
    """Adds an entry in the transaction of the action itself: neither is there without the other."""
    connection.execute(insert(audit).values(at=now or utcnow(), person_id=by, action=action, what=dict(what)))


def entries(
    store: Store,
    *,
    before: int | None = None,
    action: str | None = None,
    person: int | None = None,
    campaign: int | None = None,
    limit: int = 100,
) -> list[Entry]:
    """The newest entries first.

    Args:
        before: only entries with a smaller id: the next page.
        action: only entries of this action.
        person: only what this person did.
        campaign: only what was done in this campaign; accounts and their roles belong to none.
    """
    query = select(audit, people.c.name).outerjoin(people, people.c.id == audit.c.person_id)
    if before is not None:
        query = query.where(audit.c.id < before)
    if action is not None:
        query = query.where(audit.c.action == action)
    if person is not None:
        query = query.where(audit.c.person_id == person)
    if campaign is not None:
        query = query.where(audit.c.what["campaign"].as_integer() == campaign)
    with store.read() as connection:
        rows = connection.execute(query.order_by(audit.c.id.desc()).limit(limit)).all()
    return [Entry(row.id, row.at, row.name, row.action, row.what) for row in rows]
