"""What is kept about a person, for them to read: only what they may know while they label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from goodheart.errors import MissingError
from goodheart.feedback.assignment import answers_of
from goodheart.feedback.campaigns import load
from goodheart.feedback.items import pack_answer, pack_prompt, unpack_prompt
from goodheart.feedback.store import Store
from goodheart.feedback.tables import assignments, audit, items, labels, members, people, sessions

# Hashes and tokens; and what would tell which items are gold, or who wrote an answer.
_HIDDEN = ("password", "token_hash", "csrf", "gold", "batch", "gold_seen", "gold_right", "gold_from", "turns", "cursor")


def export_person(store: Store, person: int) -> dict[str, Any]:
    """Everything that is kept about a person, as plain values for a JSON file.

    Left out are hashes and tokens, and what a labeller must not know: which items are gold, and in a blind campaign
    which model gave an answer.

    Raises:
        MissingError: there is no such person.
    """
    with store.read() as connection:
        found = connection.execute(select(people).where(people.c.id == person)).mappings().first()
        if found is None:
            raise MissingError(f"there is no person number {person}")
        data: dict[str, Any] = {"person": _plain(found)}
        for table in (members, assignments, labels, sessions):
            rows = connection.execute(select(table).where(table.c.person_id == person)).mappings()
            data[table.name] = [_plain(row) for row in rows]
        data["items"] = _items(connection, person)
        rows = connection.execute(select(audit).where(audit.c.person_id == person)).mappings()
        data["audit"] = [_plain(row) for row in rows]
    return data


def _items(connection: Connection, person: int) -> list[dict[str, Any]]:
    """What they gave labels on, as it was shown to them."""
    labelled = select(labels.c.item_id).where(labels.c.person_id == person)
    rows = connection.execute(select(items).where(items.c.id.in_(labelled)).order_by(items.c.id)).all()
    where = {row.campaign_id: load(connection, row.campaign_id) for row in rows}
    return [
        {
            "id": row.id,
            "prompt": pack_prompt(replace(unpack_prompt(row.prompt), meta={})),
            "answers": [pack_answer(answer) for answer in answers_of(where[row.campaign_id], row)],
        }
        for row in rows
    ]


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    kept = {str(key): value for key, value in row.items() if key not in _HIDDEN}
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in kept.items()}
