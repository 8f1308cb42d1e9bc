"""Items on which people do not agree, for those who look at them and decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import func, select

from goodheart.data.records import Answer, Prompt
from goodheart.errors import MissingError
from goodheart.feedback.gold import agreement
from goodheart.feedback.items import unpack_answer, unpack_prompt
from goodheart.feedback.label_rows import LabelRow, history
from goodheart.feedback.store import Store, is_id
from goodheart.feedback.tables import assignments, items, labels, people


@dataclass(frozen=True, slots=True)
class Dispute:
    """An item with what people said of it."""

    item: int
    campaign: int
    state: str  # disputed, settled, open, done, ...
    prompt: Prompt
    answers: tuple[Answer, ...]  # with their models
    labels: tuple[LabelRow, ...]  # those that count, adjudications included
    agreement: float | None  # as `goodheart.feedback.gold.agreement`; None with fewer than two labels
    skipped: tuple[tuple[str, str], ...]  # (name, reason)
    slice: Mapping[str, Any]
    phase: str  # work; of gold, training and qualification the right answer is known


def disputed(store: Store, campaign: int, *, limit: int = 50, offset: int = 0) -> list[Dispute]:
    """Items that wait for an adjudicator, in the order of handing out."""
    here = (items.c.campaign_id == campaign) & (items.c.phase == "work") & (items.c.state == "disputed")
    query = select(items.c.id).where(here).order_by(items.c.place).limit(limit).offset(offset)
    with store.read() as connection:
        ids = list(connection.execute(query).scalars())
    return [look_at(store, item) for item in ids]


def count_disputed(store: Store, campaign: int) -> int:
    """How many items wait for an adjudicator."""
    here = (items.c.campaign_id == campaign) & (items.c.phase == "work") & (items.c.state == "disputed")
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(items).where(here)).scalar_one()


def disagreeing(store: Store, campaign: int, *, limit: int = 50) -> list[tuple[int, float]]:
    """Items with two or more labels and their agreement, the least agreed upon first; full agreement is left out."""
    mine = (labels.c.campaign_id == campaign) & labels.c.live & (labels.c.kind == "label")
    query = select(labels.c.item_id, labels.c.ranks).join(items, items.c.id == labels.c.item_id)
    query = query.where(mine, items.c.phase == "work").order_by(labels.c.item_id)
    found: list[tuple[int, float]] = []
    with store.read() as connection:
        rows = connection.execution_options(yield_per=2000).execute(query)
        for item, group in groupby(rows, key=lambda row: int(row.item_id)):
            ranks_LK = [row.ranks for row in group]
            if len(ranks_LK) > 1 and (share := agreement(ranks_LK)) < 1:
                found.append((item, share))
    return sorted(found, key=lambda each: each[1])[:limit]


def look_at(store: Store, item: int) -> Dispute:
    """One item with everything said of it.

    Raises:
        MissingError: there is no such item.
    """
    with store.read() as connection:
        row = connection.execute(select(items).where(items.c.id == item)).first() if is_id(item) else None
        if row is None:
            raise MissingError(f"there is no item number {item}")
        aside = select(people.c.name, assignments.c.reason).join(people, people.c.id == assignments.c.person_id)
        skipped = connection.execute(aside.where(assignments.c.item_id == item, assignments.c.state == "skipped")).all()
    return _dispute(row, [each for each in history(store, item) if each.live], skipped)


def _dispute(row: Any, said: Sequence[LabelRow], skipped: Sequence[Any]) -> Dispute:
    ranks_LK = [each.ranks for each in said if each.kind == "label" and each.ranks is not None]
    return Dispute(
        item=row.id,
        campaign=row.campaign_id,
        state=row.state,
        prompt=unpack_prompt(row.prompt),
        answers=tuple(unpack_answer(each) for each in row.answers),
        labels=tuple(said),
        agreement=agreement(ranks_LK) if len(ranks_LK) > 1 else None,
        skipped=tuple((each.name, each.reason or "") for each in skipped),
        slice=row.slice,
        phase=row.phase,
    )
