"""A judgement that was made elsewhere as the row of a label, with the people and the guidelines that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import Connection, select

from goodheart.data.rankings import Said
from goodheart.data.records import Judgement
from goodheart.errors import FeedbackError
from goodheart.feedback.guidelines import insert_version
from goodheart.feedback.people import checked_name
from goodheart.feedback.store import insert_row, storable
from goodheart.feedback.tables import SOURCES, guidelines, people

Rater = tuple[int, Mapping[str, Any]]  # id, attributes


@dataclass(slots=True)
class Named:
    """People and versions of guidelines by their names; who or what is new is added to the store."""

    campaign: int
    people: dict[str, Rater]
    guidelines: dict[str, int]
    new_people: int = 0

    @classmethod
    def of(cls, connection: Connection, campaign: int) -> Self:
        """All that the store has."""
        raters = {row.name: (row.id, row.attributes) for row in connection.execute(select(people))}
        versions = select(guidelines.c.name, guidelines.c.id).where(guidelines.c.campaign_id == campaign)
        return cls(campaign, raters, {row.name: row.id for row in connection.execute(versions)})

    def person(self, connection: Connection, each: Judgement, now: datetime) -> Rater | None:
        """Who judged; None where nobody is named."""
        if each.rater is None:
            return None
        name = name_of(each.rater)
        if name not in self.people:
            values = {"name": name, "role": "labeller", "attributes": dict(each.rater_attributes), "created_at": now}
            self.people[name] = (insert_row(connection, people, values), each.rater_attributes)
            self.new_people += 1
        return self.people[name]

    def guideline(self, connection: Connection, name: str | None, now: datetime) -> int | None:
        """The id of the version under which was judged."""
        if name is None:
            return None
        name = storable(name)[:100]
        if name not in self.guidelines:
            note = "imported with labels that were given under it; its text is not known"
            self.guidelines[name] = insert_version(connection, self.campaign, "", name=name, note=note, now=now)
        return self.guidelines[name]


def name_of(rater: str) -> str:
    """The name under which a rater is kept."""
    try:
        return checked_name(rater)
    except FeedbackError:  # a name that nobody could read: its hash stands for it
        return "rater-" + digest(rater)[:16]


def digest(words: str) -> str:
    """A hash of any text, halves of surrogate pairs too."""
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()


def order_of(given: list[Said], kept: list[Said]) -> list[int]:
    """For each answer of the item, which answer of the judgement it is."""
    left = list(range(len(given)))
    order = []
    for one in kept:
        index = next(i for i in left if given[i] == one)
        left.remove(index)
        order.append(index)
    return order


def label_of(each: Judgement, order: Sequence[int], person: Rater | None, now: datetime) -> dict[str, Any]:
    """The columns of a label, but for its campaign, its item and its guidelines.

    Args:
        order: of `order_of`.
        now: stands for a time that cannot be read.
    """
    place = {given: kept for kept, given in enumerate(order)}
    at = _time(each.created_at)
    notes: dict[str, Any] = {
        name: getattr(each, name)
        for name, usual in (("margin", None), ("weight", 1.0), ("probability", None), ("item_id", None),
                            ("group_id", None))
        if getattr(each, name) != usual
    }  # fmt: skip
    if each.source not in SOURCES:
        notes["source"] = each.source
    if at is None or at.isoformat() != each.created_at:
        notes["created_at"] = each.created_at
    if each.rater_attributes and (person is None or each.rater_attributes != person[1]):
        notes["rater_attributes"] = dict(each.rater_attributes)
    tiers = sorted(set(each.ranks))
    return {
        "person_id": None if person is None else person[0],
        "ranks": [tiers.index(each.ranks[i]) for i in order],
        "strength": None if each.strength is None else int(each.strength),
        "flags": {name: _placed(value, place) for name, value in each.flags.items()},
        "ratings": {name: _ordered(value, order) for name, value in each.ratings.items()} or None,
        "comment": each.comment,
        "notes": notes or None,
        "shown": None if each.shown_order is None else [place[i] for i in each.shown_order],
        "seconds": each.seconds,
        "gold": each.gold,
        "batch": None if each.batch is None else storable(each.batch)[:200],
        "source": each.source if each.source in SOURCES else "import",
        "kind": each.kind,
        "live": True,
        "created_at": at or now,
        "request": None,
    }


def _placed(value: Any, place: Mapping[int, int]) -> Any:
    """A flag that lists answers, in the item's order."""
    if isinstance(value, list | tuple) and all(type(i) is int and i in place for i in value):
        return sorted(place[i] for i in value)
    return value


def _ordered(value: Any, order: Sequence[int]) -> Any:
    """One value per answer, in the item's order."""
    return [value[i] for i in order] if isinstance(value, list | tuple) and len(value) == len(order) else value


def _time(written: str | None) -> datetime | None:
    try:
        at = None if written is None else datetime.fromisoformat(written)
    except ValueError:
        return None
    return None if at is None else at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
