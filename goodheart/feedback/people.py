"""Who labels, adjudicates and manages: people and their roles. A person is named by their id."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update
from sqlalchemy.exc import IntegrityError

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.passwords import LEAST, hash_password
from goodheart.feedback.store import Store, insert_row, is_id, utcnow
from goodheart.feedback.tables import (
    ROLES,
    people,
    sessions,
)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, or a program (an AI judge, a simulated labeller), who labels or manages."""

    id: int
    name: str
    role: str  # labeller, adjudicator (may do what a labeller does), manager (may do all)
    language: str | None
    attributes: Mapping[str, Any]  # what they told of themselves: culture, age group, ...
    created_at: datetime
    disabled_at: datetime | None

    def may(self, role: str) -> bool:
        """Whether they are at least that: manager > adjudicator > labeller."""
        return self.disabled_at is None and ROLES.index(self.role) >= ROLES.index(role)


def add_person(
    store: Store,
    name: str,
    role: str = "labeller",
    *,
    password: str | None = None,
    language: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    by: int | None = None,
    now: datetime | None = None,
) -> Person:
    """Adds a person. Without a password they cannot log in until they have one.

    Raises:
        FeedbackError: no such role, or a name or password that will not do.
        ConflictError: the name is taken.
    """
    hashed = None if password is None else hash_password(checked_password(password))
    with store.begin() as connection:
        found = insert_person(connection, name, role, hashed, language, attributes, now)
        audit.note(connection, by, "add person", {"person": found, "name": name, "role": role}, now)
        return person_of(connection, found)


def insert_person(
    connection: Connection,
    name: str,
    role: str,
    password: str | None,
    language: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> int:
    """Adds the row of a person, in the caller's transaction; returns the id."""
    if role not in ROLES:
        raise FeedbackError(f"there is no role {role!r}; use {', '.join(ROLES)}")
    name = checked_name(name)
    values = {"name": name, "role": role, "password": password, "language": language}
    if connection.execute(select(people.c.id).where(people.c.name == name)).first():
        raise ConflictError(f"there is a person named {name!r} already; choose another name")
    try:
        more = {"attributes": dict(attributes or {}), "created_at": now or utcnow()}
        return insert_row(connection, people, values | more)
    except IntegrityError as error:  # somebody took the name between the two statements
        raise ConflictError(f"there is a person named {name!r} already; choose another name") from error


def checked_name(name: str) -> str:
    """The name in normal form (NFC, no spaces around).

    Raises:
        FeedbackError: empty, longer than 100 characters, or with characters that do not show.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not 0 < len(name) <= 100:
        raise FeedbackError("a name has 1 to 100 characters")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name):
        raise FeedbackError("a name has characters that do not show; write it without them")
    return name


def checked_password(password: str) -> str:
    """The password as it is.

    Raises:
        FeedbackError: too short.
    """
    if len(password) < LEAST:
        raise FeedbackError(f"a password has at least {LEAST} characters; a few words do well")
    return password


def get_person(store: Store, person: int) -> Person:
    """The person with that id.

    Raises:
        MissingError: there is none.
    """
    with store.read() as connection:
        return person_of(connection, person)


def find_person(store: Store, name: str) -> Person | None:
    """The person of that name."""
    try:
        name = checked_name(name)
    except FeedbackError:
        return None  # nobody has such a name
    with store.read() as connection:
        found = connection.execute(select(people).where(people.c.name == name)).first()
    return None if found is None else person_from(found)


def listing(store: Store) -> list[Person]:
    """Everybody, by name."""
    with store.read() as connection:
        return [person_from(row) for row in connection.execute(select(people).order_by(people.c.name))]


def person_of(connection: Connection, person: int) -> Person:
    """The person with that id, in the caller's transaction."""
    row = connection.execute(select(people).where(people.c.id == person)).first() if is_id(person) else None
    if row is None:
        raise MissingError(f"there is no person number {person}")
    return person_from(row)


def person_from(row: Row[Any]) -> Person:
    """The person of a row of `people`."""
    return Person(row.id, row.name, row.role, row.language, row.attributes, row.created_at, row.disabled_at)


def set_password(store: Store, person: int, password: str, *, by: int | None = None) -> None:
    """Gives a person a new password and ends their sessions."""
    hashed = hash_password(checked_password(password))
    with store.begin() as connection:
        person_of(connection, person)
        connection.execute(update(people).where(people.c.id == person).values(password=hashed))
        connection.execute(delete(sessions).where(sessions.c.person_id == person))
        audit.note(connection, by, "set password", {"person": person})


def set_language(store: Store, person: int, language: str | None) -> None:
    """In which language the pages are shown to them."""
    with store.begin() as connection:
        connection.execute(update(people).where(people.c.id == person).values(language=language))


def change_role(store: Store, person: int, role: str, *, by: int | None = None) -> None:
    """Raises FeedbackError where there is no such role or nobody would be left who may manage."""
    if role not in ROLES:
        raise FeedbackError(f"there is no role {role!r}; use {', '.join(ROLES)}")
    with store.begin() as connection:
        before = person_of(connection, person).role
        if before == "manager" != role:
            keep_a_manager(connection, person)
        connection.execute(update(people).where(people.c.id == person).values(role=role))
        audit.note(connection, by, "change role", {"person": person, "from": before, "to": role})


def disable(store: Store, person: int, *, by: int | None = None, now: datetime | None = None) -> None:
    """They can log in no more, and their sessions end."""
    with store.begin() as connection:
        if person_of(connection, person).role == "manager":
            keep_a_manager(connection, person)
        connection.execute(update(people).where(people.c.id == person).values(disabled_at=now or utcnow()))
        connection.execute(delete(sessions).where(sessions.c.person_id == person))
        audit.note(connection, by, "disable", {"person": person}, now)


def enable(store: Store, person: int, *, by: int | None = None) -> None:
    """Undoes `disable`."""
    with store.begin() as connection:
        person_of(connection, person)
        connection.execute(update(people).where(people.c.id == person).values(disabled_at=None))
        audit.note(connection, by, "enable", {"person": person})


def keep_a_manager(connection: Connection, person: int) -> None:
    """Raises FeedbackError where nobody but this person may manage."""
    # Locked in one order: of two managers who demote each other at once the second sees what the first did.
    managers = select(people.c.id).where(people.c.role == "manager", people.c.disabled_at.is_(None))
    found = connection.execute(managers.order_by(people.c.id).with_for_update(key_share=True)).scalars()
    if not set(found) - {person}:
        raise FeedbackError("they are the only manager; make somebody else a manager first")
