"""How somebody answered the items whose right answer is known: training, qualification, gold."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from goodheart.feedback.gold import is_right
from goodheart.feedback.store import Store
from goodheart.feedback.tables import items, labels


def answers_to_known(connection: Connection, campaign: int, person: int, phase: str, *, after: int = 0) -> list[bool]:
    """Whether each of their answers to items of a phase is right, the newest first; those to closed items do not count.

    Of each item the first answer counts, changed or undone as it may be: who could try until it counts as right would
    find out what is gold, and what it wants.

    Args:
        after: only answers whose label has a higher id.
    """
    mine = (labels.c.campaign_id == campaign) & (labels.c.person_id == person) & (labels.c.kind == "label")
    here = select(func.min(labels.c.id)).join(items, items.c.id == labels.c.item_id).where(mine, items.c.phase == phase)
    first = here.group_by(labels.c.item_id)
    query = select(labels.c.ranks, items.c.gold).join(items, items.c.id == labels.c.item_id)
    counted = labels.c.id.in_(first) & (labels.c.id > after) & (items.c.state != "closed")
    rows = connection.execute(query.where(counted).order_by(labels.c.id.desc()))
    return [is_right(row.gold["ranks"], row.ranks) for row in rows]


def known_right(store: Store, campaign: int, person: int, phase: str) -> tuple[int, int]:
    """How many items of a round (training, qualification, gold) somebody answered, and how many right at first."""
    with store.read() as connection:
        right = answers_to_known(connection, campaign, person, phase)
    return len(right), sum(right)
