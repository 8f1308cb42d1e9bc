"""Locks that ran out: their items are free for others again.

On PostgreSQL this takes what is free, and passes over rows that others have in hand: it waits for nobody, though the
rows of many people are changed. Nothing else is done in that transaction, or it might wait while it holds them.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, text, update

from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tables import Moment, items

_AT_ONCE = 200  # locks that are ended at a time; the next call ends the next ones

# Written out in the words of the partial index. PostgreSQL does it in one statement, SQLite needs two.
_END_SQLITE = text(f"""
    UPDATE assignments SET state = 'expired' WHERE id IN (
        SELECT id FROM assignments INDEXED BY ix_assignments_locks
        WHERE state = 'given' AND campaign_id = :campaign AND expires_at <= :now LIMIT {_AT_ONCE})
    RETURNING item_id""").bindparams(bindparam("now", type_=Moment))
_END_POSTGRES = text(f"""
    WITH over AS (
        SELECT assignments.id, assignments.item_id FROM assignments JOIN items ON items.id = assignments.item_id
        WHERE assignments.state = 'given' AND assignments.campaign_id = :campaign AND assignments.expires_at <= :now
        LIMIT {_AT_ONCE} FOR UPDATE SKIP LOCKED),
    ended AS (UPDATE assignments SET state = 'expired' FROM over WHERE assignments.id = over.id),
    freed AS (SELECT item_id, count(*) AS locks FROM over GROUP BY item_id)
    UPDATE items SET held = held - locks FROM freed WHERE items.id = item_id RETURNING locks
    """).bindparams(bindparam("now", type_=Moment))
_LET_GO = update(items).where(items.c.id == bindparam("item")).values(held=items.c.held - 1)


def release(store: Store, campaign: int, *, now: datetime | None = None) -> int:
    """Frees items whose lock ran out, at most 200 at a time; `next_task` does it too. Returns how many locks ended."""
    where = {"campaign": campaign, "now": now or utcnow()}
    with store.begin() as connection:
        if connection.dialect.name == "postgresql":
            return sum(connection.execute(_END_POSTGRES, where).scalars())
        freed = list(connection.execute(_END_SQLITE, where).scalars())
        if freed:
            connection.execute(_LET_GO, [{"item": item} for item in freed])
        return len(freed)
