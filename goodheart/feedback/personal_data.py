"""What is kept about a person: for them to read, as far as they may know it while they label, and to be erased."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select, update

from goodheart.errors import MissingError
from goodheart.feedback import audit
from goodheart.feedback.campaigns import load
from goodheart.feedback.items import pack_answer, pack_prompt, unpack_prompt
from goodheart.feedback.membership import take_places
from goodheart.feedback.people import keep_a_manager, person_of
from goodheart.feedback.store import Store, take_turn, utcnow
from goodheart.feedback.tables import assignments, invites, items, labels, members, people, sessions
from goodheart.feedback.tables import audit as audit_log
from goodheart.feedback.tasks import answers_of

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
        rows = connection.execute(select(audit_log).where(audit_log.c.person_id == person)).mappings()
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


def erase(store: Store, person: int, *, by: int | None = None, now: datetime | None = None) -> None:
    """Takes away everything that is about a person. Their labels stay, without a name.

    Gone are name, password, language, attributes, sessions, invitations to them, drafts, reasons and comments. The
    audit log keeps that something was done, with their number in place of their name.
    """
    with store.begin() as connection:
        take_turn(connection)  # imports touch their labels too
        take_places(connection, [person])
        if person_of(connection, person).role == "manager":
            keep_a_manager(connection, person)
        nobody: dict[str, Any] = {"name": f"erased-{person}", "password": None, "language": None, "attributes": {}}
        nobody |= {"role": "labeller", "disabled_at": now or utcnow()}
        old = person_of(connection, person).name
        connection.execute(delete(sessions).where(sessions.c.person_id == person))
        connection.execute(
            update(invites).where((invites.c.used_by == person) | (invites.c.name == old)).values(name=None)
        )
        mine = assignments.c.person_id == person
        connection.execute(update(assignments).where(mine).values(draft=None, reason=None))
        # The one change of past labels: what a person has the right to have erased goes before an unbroken history.
        connection.execute(update(labels).where(labels.c.person_id == person).values(comment=None))
        _erase_from_notes(connection, person)
        # After their labels: who decides anew changes theirs first, and then asks whether the person is there.
        connection.execute(update(people).where(people.c.id == person).values(**nobody))
        connection.execute(update(members).where(members.c.person_id == person).values(reason=None))
        _erase_from_log(connection, person, old)
        audit.note(connection, by, "erase", {"person": person}, now)


def _erase_from_log(connection: Connection, person: int, old: str) -> None:
    for row in connection.execute(select(audit_log.c.id, audit_log.c.action, audit_log.c.what)).all():
        what = dict(row.what)
        if what.get("person") == person:
            what.pop("reason", None)  # somebody's words about them
        if row.action in ("add person", "invite") and what.get("name") == old:
            what["name"] = f"erased-{person}"
        if what != row.what:
            connection.execute(update(audit_log).where(audit_log.c.id == row.id).values(what=what))


def _erase_from_notes(connection: Connection, person: int) -> None:
    """Of imported labels: what was told of the rater goes; weight, margin and the like are about the label."""
    noted = select(labels.c.id, labels.c.notes).where(labels.c.person_id == person, labels.c.notes.is_not(None))
    for row in connection.execute(noted).all():
        kept = {name: value for name, value in row.notes.items() if name != "rater_attributes"}
        if kept != row.notes:
            connection.execute(update(labels).where(labels.c.id == row.id).values(notes=kept or None))
