"""The items of a campaign: their rows, the order of handing out, and the quotas of slices."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select, update

from goodheart.errors import FeedbackError
from goodheart.feedback.bulk import insert_rows, look_over
from goodheart.feedback.items import NewItem, checked, pack_answer, pack_prompt
from goodheart.feedback.store import storable
from goodheart.feedback.tables import items

if TYPE_CHECKING:
    from goodheart.feedback.campaigns import CampaignSettings


_DRAWS = 2**40  # the random part of an item's place
_MOST_PRIORITY = 1_000_000
_ROWS = 1000  # items per statement


@dataclass(slots=True)
class Added:
    """What became of items that were added."""

    items: int = 0
    again: int = 0  # left out: the same comparison is there already
    spare: int = 0  # over the quota of their slice, kept in reserve
    ids: list[int] = field(default_factory=list)


def add_rows(connection: Connection, campaign: int, settings: CampaignSettings, new: Iterable[NewItem]) -> Added:
    """Adds the rows of new items, in the caller's transaction; `keep_quotas` comes after it."""
    added = Added()
    newest = connection.execute(select(func.max(items.c.id)).where(items.c.campaign_id == campaign)).scalar()
    chance = random.Random(f"items {settings.seed} {campaign} {newest or 0}")
    seen: set[tuple[str, str]] = set()
    given = iter(new)
    while part := [_row(checked(item), campaign, settings, chance) for item in islice(given, _ROWS)]:
        known = select(items.c.phase, items.c.key).where(items.c.campaign_id == campaign)
        known = known.where(items.c.phase.in_({row["phase"] for row in part}))
        known = known.where(items.c.key.in_([row["key"] for row in part]))
        seen |= {(row.phase, row.key) for row in connection.execute(known)}
        fresh = []
        for row in part:
            if (row["phase"], row["key"]) not in seen:
                seen.add((row["phase"], row["key"]))
                fresh.append(row)
        added.again += len(part) - len(fresh)
        added.items += len(fresh)
        insert_rows(connection, items, fresh)
        look_over(connection, items)
    return added


def _row(item: NewItem, campaign: int, settings: CampaignSettings, chance: random.Random) -> dict[str, Any]:
    if abs(item.priority) > _MOST_PRIORITY:
        raise FeedbackError(f"priority {item.priority} is out of range; use -{_MOST_PRIORITY} to {_MOST_PRIORITY}")
    return {
        "campaign_id": campaign,
        "key": item.key,
        "prompt": pack_prompt(item.prompt),
        "answers": [pack_answer(each) for each in item.answers],
        "slice": {name: str(value) for name, value in item.slice.items()},
        "batch": None if item.batch is None else storable(item.batch)[:200],
        "priority": item.priority,
        "place": place_of(item.priority, chance.randrange(_DRAWS)),
        "phase": item.phase,
        "gold": None if item.gold is None else dict(item.gold),
        "wanted": settings.overlap,
        "done": 0,
        "held": 0,
        "skips": 0,
        "state": "open",
    }


def place_of(priority: int, draw: int) -> int:
    """Where an item stands in the order of handing out: higher priorities first, at random within one."""
    return -priority * _DRAWS + draw


def keep_quotas(connection: Connection, campaign: int, settings: CampaignSettings) -> int:
    """Opens as many items of each slice as its quota says, in the order of handing out; the rest is kept in reserve.

    Items that were closed or failed to be labelled make room for one from the reserve. Returns the size of the reserve.
    """
    if not settings.quotas:
        return 0
    columns = (items.c.id, items.c.slice, items.c.state, items.c.done, items.c.held, items.c.place)
    here = (items.c.campaign_id == campaign) & (items.c.phase == "work") & (items.c.state != "closed")
    rows = connection.execute(select(*columns).where(here)).all()
    begun = {row.id for row in rows if row.state not in ("open", "spare") or row.done or row.held}
    taken: Counter[tuple[str, str]] = Counter()
    changes: dict[str, list[int]] = {"open": [], "spare": []}
    spare = 0
    for row in sorted(rows, key=lambda r: (r.id not in begun, r.place)):
        limits = [
            (name, row.slice.get(name)) for name in settings.quotas if row.slice.get(name) in settings.quotas[name]
        ]
        full = any(taken[limit] >= settings.quotas[limit[0]][limit[1]] for limit in limits)
        if row.id in begun or not full:
            taken.update(limits)
        state = row.state if row.id in begun else "spare" if full else "open"
        spare += state == "spare"
        if state != row.state:
            changes[state].append(row.id)
    for state, ids in changes.items():
        for part in _parts(ids):
            connection.execute(update(items).where(items.c.id.in_(part)).values(state=state))
    return spare


def _parts(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), _ROWS):
        yield ids[start : start + _ROWS]
