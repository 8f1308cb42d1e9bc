"""Who labels, adjudicates and manages: people, their roles, and their place in each campaign.

A person is named by their id. What they did stays when they go: `erase` takes the name, the password and everything
told about them, and leaves their labels to a person without a name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.passwords import LEAST, hash_password
from goodheart.feedback.store import Store, insert_row, is_id, utcnow
from goodheart.feedback.tables import (
    MEMBER_STATES,
    ROLES,
    assignments,
    campaigns,
    invites,
    labels,
    members,
    people,
    sessions,
)
from goodheart.feedback.tables import audit as audit_log


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


@dataclass(frozen=True, slots=True)
class Member:
    """A person in a campaign."""

    person: Person
    state: str  # training, qualifying, working, paused, failed, removed
    reason: str | None
    gold_seen: int  # gold items answered while working
    gold_right: int
    since: datetime


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
    return None if found is None else _person(found)


def listing(store: Store) -> list[Person]:
    """Everybody, by name."""
    with store.read() as connection:
        return [_person(row) for row in connection.execute(select(people).order_by(people.c.name))]


def person_of(connection: Connection, person: int) -> Person:
    """The person with that id, in the caller's transaction."""
    row = connection.execute(select(people).where(people.c.id == person)).first() if is_id(person) else None
    if row is None:
        raise MissingError(f"there is no person number {person}")
    return _person(row)


def _person(row: Row[Any]) -> Person:
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
            _keep_a_manager(connection, person)
        connection.execute(update(people).where(people.c.id == person).values(role=role))
        audit.note(connection, by, "change role", {"person": person, "from": before, "to": role})


def disable(store: Store, person: int, *, by: int | None = None, now: datetime | None = None) -> None:
    """They can log in no more, and their sessions end."""
    with store.begin() as connection:
        if person_of(connection, person).role == "manager":
            _keep_a_manager(connection, person)
        connection.execute(update(people).where(people.c.id == person).values(disabled_at=now or utcnow()))
        connection.execute(delete(sessions).where(sessions.c.person_id == person))
        audit.note(connection, by, "disable", {"person": person}, now)


def enable(store: Store, person: int, *, by: int | None = None) -> None:
    """Undoes `disable`."""
    with store.begin() as connection:
        person_of(connection, person)
        connection.execute(update(people).where(people.c.id == person).values(disabled_at=None))
        audit.note(connection, by, "enable", {"person": person})


def _keep_a_manager(connection: Connection, person: int) -> None:
    # Locked in one order: of two managers who demote each other at once the second sees what the first did.
    managers = select(people.c.id).where(people.c.role == "manager", people.c.disabled_at.is_(None))
    found = connection.execute(managers.order_by(people.c.id).with_for_update(key_share=True)).scalars()
    if not set(found) - {person}:
        raise FeedbackError("they are the only manager; make somebody else a manager first")


def join(store: Store, campaign: int, person: int, *, by: int | None = None, now: datetime | None = None) -> None:
    """Makes a person a labeller of a campaign. Does nothing where they are one already."""
    with store.begin() as connection:
        if join_in(connection, campaign, person, now):
            audit.note(connection, by, "join", {"campaign": campaign, "person": person}, now)


def join_in(connection: Connection, campaign: int, person: int, now: datetime | None = None) -> bool:
    """`join` in the caller's transaction; whether they were new."""
    if connection.execute(select(campaigns.c.id).where(campaigns.c.id == campaign)).first() is None:
        raise MissingError(f"there is no campaign number {campaign}")
    person_of(connection, person)
    values = {"campaign_id": campaign, "person_id": person, "since": now or utcnow(), "state": "training"}
    add = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(members)
    new = add.values(**values, gold_seen=0, gold_right=0, turns=0).on_conflict_do_nothing()
    return connection.execute(new.returning(members.c.person_id)).first() is not None


def member(store: Store, campaign: int, person: int) -> Member | None:
    """A person's place in a campaign; None where they have none."""
    return next(iter(_members(store, (members.c.campaign_id == campaign) & (members.c.person_id == person))), None)


def list_members(store: Store, campaign: int) -> list[Member]:
    """Everybody in a campaign, by name."""
    return _members(store, members.c.campaign_id == campaign)


def campaigns_of(store: Store, person: int) -> list[int]:
    """The campaigns they are in, newest first."""
    mine = (members.c.person_id == person) & (members.c.state != "removed")
    with store.read() as connection:
        found = select(members.c.campaign_id).where(mine).order_by(members.c.campaign_id.desc())
        return list(connection.execute(found).scalars())


def _members(store: Store, condition: Any) -> list[Member]:
    query = select(people, members).join(members, members.c.person_id == people.c.id).where(condition)
    with store.read() as connection:
        rows = connection.execute(query.order_by(people.c.name)).all()
    return [Member(_person(row), row.state, row.reason, row.gold_seen, row.gold_right, row.since) for row in rows]


def set_member(
    store: Store, campaign: int, person: int, state: str, reason: str | None = None, *, by: int | None = None
) -> None:
    """Pauses a member, lets them go on, or removes them; what they hold is free for others when its lock ends.

    "working" lets a paused member go on where they were, be it in training or qualification. Their gold answers up to
    then pause them no more.

    Raises:
        FeedbackError: no such state.
        MissingError: they are not in the campaign.
    """
    if state not in MEMBER_STATES:
        raise FeedbackError(f"there is no state {state!r} of a member; use {', '.join(MEMBER_STATES)}")
    here = (members.c.campaign_id == campaign) & (members.c.person_id == person)
    with store.begin() as connection:
        before = connection.execute(select(members).where(here).with_for_update()).first()
        if before is None:
            raise MissingError(f"person {person} is not in campaign {campaign}; let them join first")
        changes: dict[str, Any] = {"reason": reason, "resumes": None}
        if state == "paused":
            changes["resumes"] = before.resumes if before.state == "paused" else before.state
        elif state == "working":
            state = (before.resumes or state) if before.state == "paused" else state
            theirs = (labels.c.campaign_id == campaign) & (labels.c.person_id == person)
            changes["gold_from"] = connection.execute(select(func.max(labels.c.id)).where(theirs)).scalar()
        connection.execute(update(members).where(here).values(state=state, **changes))
        what = {"campaign": campaign, "person": person, "state": state, "reason": reason}
        audit.note(connection, by, "set member", what)


def erase(store: Store, person: int, *, by: int | None = None, now: datetime | None = None) -> None:
    """Takes away everything that is about a person. Their labels stay, without a name.

    Gone are name, password, language, attributes, sessions, invitations to them, drafts, reasons and comments. The
    audit log keeps that something was done, with their number in place of their name.
    """
    with store.begin() as connection:
        if person_of(connection, person).role == "manager":
            _keep_a_manager(connection, person)
        nobody: dict[str, Any] = {"name": f"erased-{person}", "password": None, "language": None, "attributes": {}}
        nobody |= {"role": "labeller", "disabled_at": now or utcnow()}
        old = person_of(connection, person).name
        connection.execute(update(people).where(people.c.id == person).values(**nobody))
        connection.execute(delete(sessions).where(sessions.c.person_id == person))
        connection.execute(
            update(invites).where((invites.c.used_by == person) | (invites.c.name == old)).values(name=None)
        )
        mine = assignments.c.person_id == person
        connection.execute(update(assignments).where(mine).values(draft=None, reason=None))
        # The one change of past labels: what a person has the right to have erased goes before an unbroken history.
        connection.execute(update(labels).where(labels.c.person_id == person).values(comment=None))
        _erase_from_notes(connection, person)
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
