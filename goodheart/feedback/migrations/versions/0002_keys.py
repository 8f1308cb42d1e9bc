"""Keys of items, and names of labels without a rater, as goodheart makes them now.

Both were made otherwise before: a file of items or of labels that was opened again would have come a second time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from goodheart.feedback.importing import nameless, words_of
from goodheart.feedback.items import NewItem, unpack_answer, unpack_prompt
from goodheart.feedback.tables import Moment

revision = "0002"
down_revision = "0001"

_ROWS = 500  # at a time

_items = sa.table(
    "items",
    *(sa.column(name, sa.JSON()) for name in ("prompt", "answers")),
    *(sa.column(name) for name in ("id", "campaign_id", "phase", "key")),
)
_labels = sa.table(
    "labels",
    *(sa.column(name, sa.JSON()) for name in ("ranks", "flags", "ratings", "comment", "notes", "shown")),
    *(sa.column(name) for name in ("id", "item_id", "person_id", "request", "strength", "guideline_id", "seconds")),
    *(sa.column(name) for name in ("batch", "source", "kind")),
    sa.column("gold", sa.Boolean()),
    sa.column("created_at", Moment()),
)


def upgrade() -> None:
    connection = op.get_bind()
    # Of items that came a second time already the oldest gets the key; the others keep this, which is no item's.
    connection.execute(sa.update(_items).values(key=sa.literal("again ") + sa.cast(_items.c.id, sa.String)))
    for rows in _parts(connection, sa.select(_items), _items.c.id):
        _give_keys(connection, rows)
    nobody = sa.select(_labels).where(_labels.c.person_id.is_(None), _labels.c.request.is_(None))
    same: Counter[tuple[int, bytes]] = Counter()
    for rows in _parts(connection, nobody, _labels.c.id):
        _give_names(connection, rows, same)


def _parts(connection: sa.Connection, query: Any, number: Any) -> Iterator[list[Any]]:
    """The rows in the order of their ids, some at a time."""
    last = 0
    while rows := list(connection.execute(query.where(number > last).order_by(number).limit(_ROWS))):
        yield rows
        last = rows[-1].id


def _give_keys(connection: sa.Connection, rows: list[Any]) -> None:
    made = {row.id: NewItem(unpack_prompt(row.prompt), tuple(map(unpack_answer, row.answers))).key for row in rows}
    where = (_items.c.campaign_id, _items.c.phase, _items.c.key)
    there = {tuple(row) for row in connection.execute(sa.select(*where).where(_items.c.key.in_(set(made.values()))))}
    changes = []
    for row in rows:
        place = (row.campaign_id, row.phase, made[row.id])
        if place not in there:
            there.add(place)
            changes.append({"of": row.id, "now_key": made[row.id]})
    if changes:
        of = sa.update(_items).where(_items.c.id == sa.bindparam("of"))
        connection.execute(of.values(key=sa.bindparam("now_key")), changes)


def _give_names(connection: sa.Connection, rows: list[Any], same: Counter[tuple[int, bytes]]) -> None:
    changes = []
    for row in rows:
        words = words_of({name: value for name, value in row._mapping.items() if name != "id"})
        one = (row.item_id, hashlib.sha256(words.encode("utf-8", "surrogatepass")).digest())
        same[one] += 1
        changes.append({"of": row.id, "now_request": nameless(same[one], words)})
    of = sa.update(_labels).where(_labels.c.id == sa.bindparam("of"))
    connection.execute(of.values(request=sa.bindparam("now_request")), changes)
