"""Labels as they are kept: the history of an item, and those of a campaign that count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, select

from goodheart.feedback.store import Store
from goodheart.feedback.tables import items, labels, people


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label as it is kept."""

    id: int
    campaign: int
    item: int
    person: int | None
    name: str | None
    ranks: tuple[int, ...] | None  # None: withdrawn
    strength: int | None
    flags: Mapping[str, Any]
    ratings: Mapping[str, Any] | None
    comment: str | None
    guideline: int | None
    shown: tuple[int, ...] | None
    seconds: float | None
    gold: bool
    batch: str | None
    source: str
    kind: str
    live: bool
    at: datetime
    slice: Mapping[str, Any]
    phase: str


_COLUMNS = (labels, people.c.name, items.c.slice, items.c.phase)


def _row(row: Row[Any]) -> LabelRow:
    def listed(value: list[int] | None) -> tuple[int, ...] | None:
        return None if value is None else tuple(value)

    return LabelRow(
        id=row.id, campaign=row.campaign_id, item=row.item_id, person=row.person_id, name=row.name,
        ranks=listed(row.ranks), strength=row.strength, flags=row.flags, ratings=row.ratings, comment=row.comment,
        guideline=row.guideline_id, shown=listed(row.shown), seconds=row.seconds, gold=row.gold, batch=row.batch,
        source=row.source, kind=row.kind, live=row.live, at=row.created_at, slice=row.slice, phase=row.phase,
    )  # fmt: skip


def _joined() -> Any:
    query = select(*_COLUMNS).join(items, items.c.id == labels.c.item_id)
    return query.outerjoin(people, people.c.id == labels.c.person_id)


def history(store: Store, item: int) -> list[LabelRow]:
    """Everything that was ever said of an item, oldest first; withdrawals have no ranks."""
    with store.read() as connection:
        rows = connection.execute(_joined().where(labels.c.item_id == item).order_by(labels.c.id)).all()
    return [_row(row) for row in rows]


def live_labels(
    store: Store,
    campaign: int,
    *,
    person: int | None = None,
    item: int | None = None,
    phases: Sequence[str] | None = ("work",),
    kind: str | None = "label",
    since: datetime | None = None,
) -> Iterator[LabelRow]:
    """The labels that count, oldest first, read in pieces.

    Args:
        person: only theirs.
        item: only of this item.
        phases: of the items: work, gold, training, qualification; None: all.
        kind: label, adjudication, or None for both.
        since: only those given at this time or later.
    """
    query = _joined().where(labels.c.campaign_id == campaign, labels.c.live)
    for column, value in ((labels.c.person_id, person), (labels.c.item_id, item), (labels.c.kind, kind)):
        if value is not None:
            query = query.where(column == value)
    if phases is not None:
        query = query.where(items.c.phase.in_(phases))
    if since is not None:
        query = query.where(labels.c.created_at >= since)
    with store.read() as connection:
        rows = connection.execution_options(yield_per=2000).execute(query.order_by(labels.c.id))
        for row in rows:
            yield _row(row)


def counted(store: Store, campaign: int, person: int) -> dict[str, int]:
    """How many labels of each phase that count somebody gave: for their own page."""
    mine = (labels.c.campaign_id == campaign) & (labels.c.person_id == person) & labels.c.live
    query = select(items.c.phase, func.count().label("labels")).join(items, items.c.id == labels.c.item_id).where(mine)
    with store.read() as connection:
        return {row.phase: row.labels for row in connection.execute(query.group_by(items.c.phase))}
