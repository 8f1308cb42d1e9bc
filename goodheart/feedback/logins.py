"""Ways in: invitations by link, log-in by password, sessions by cookie."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from goodheart.errors import FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.membership import join_in
from goodheart.feedback.passwords import hash_password, hash_token, is_password, new_token, turn
from goodheart.feedback.people import (
    Person,
    checked_name,
    checked_password,
    find_person,
    insert_person,
    person_from,
    person_of,
)
from goodheart.feedback.store import Store, take_turn, utcnow
from goodheart.feedback.tables import ROLES, attempts, invites, people, sessions

SESSION_DAYS = 14
INVITE_DAYS = 14
WINDOW = timedelta(minutes=15)
MOST_BY_NAME = 10  # failed log-ins of one name in a window
MOST_BY_ADDRESS = 50  # and from one address, behind which may be a whole office
_SEEN_EVERY = timedelta(minutes=5)  # a session's last use is written no more often
_USED_UP = "this invitation does not work (any more); ask for a new one"


_SESSION = (
    select(*(column for column in people.c if column is not people.c.password))
    .add_columns(sessions.c.csrf, sessions.c.expires_at, sessions.c.seen_at)
    .join_from(sessions, people, people.c.id == sessions.c.person_id)
    .where(sessions.c.token_hash == bindparam("token"))
)


class TooMany(FeedbackError):
    """So many log-ins failed that the next must wait."""


@dataclass(frozen=True, slots=True)
class Invite:
    """What a link that was not yet used gives."""

    role: str
    campaign: int | None
    name: str | None
    expires_at: datetime
    key: str  # hash of its token, by which it is named without giving it away


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is logged in. `token` is for the cookie and known only just after log-in (else empty)."""

    person: Person
    csrf: str
    expires_at: datetime
    token: str = ""


def invite(
    store: Store,
    role: str = "labeller",
    *,
    campaign: int | None = None,
    name: str | None = None,
    by: int | None = None,
    days: float = INVITE_DAYS,
    now: datetime | None = None,
) -> str:
    """Makes a link that works once.

    Args:
        role: what they will be.
        campaign: which they will join.
        name: under which they will appear; None lets them choose.
        days: how long the link works.

    Returns:
        The token of the link. It is shown once; only its hash is kept.
    """
    if role not in ROLES:
        raise FeedbackError(f"there is no role {role!r}; use {', '.join(ROLES)}")
    token, now = new_token(), now or utcnow()
    name = None if name is None else checked_name(name)
    values: dict[str, Any] = {"role": role, "campaign_id": campaign, "name": name, "created_by": by}
    with store.begin() as connection:
        times = {"created_at": now, "expires_at": now + timedelta(days=days)}
        connection.execute(insert(invites).values(token_hash=hash_token(token), **values, **times))
        audit.note(connection, by, "invite", {"role": role, "campaign": campaign, "name": name}, now)
    return token


def look_up(store: Store, token: str, *, now: datetime | None = None) -> Invite:
    """What a link gives, for the page that asks for name and password.

    Raises:
        MissingError: no such link, used already, or too old.
    """
    with store.read() as connection:
        return _open_invite(connection, token, now or utcnow())


def _open_invite(connection: Connection, token: str, now: datetime) -> Invite:
    row = connection.execute(select(invites).where(invites.c.token_hash == hash_token(token))).first()
    if row is None or row.used_at is not None or row.expires_at <= now:
        raise MissingError(_USED_UP)
    if row.created_by is not None and not _may_invite(person_of(connection, row.created_by)):
        raise MissingError(_USED_UP)
    return Invite(row.role, row.campaign_id, row.name, row.expires_at, row.token_hash)


def _may_invite(person: Person) -> bool:
    """What somebody may do ends with their account or their role, and then also through the links they gave."""
    return person.disabled_at is None and person.may("manager")


def accept(
    store: Store,
    token: str,
    name: str,
    password: str,
    *,
    language: str | None = None,
    attributes: dict[str, Any] | None = None,
    now: datetime | None = None,
) -> Person:
    """Uses up a link: makes the person, and lets them join the campaign it was for.

    Raises:
        MissingError: the link does not work.
        ConflictError: the name is taken; the link still works.
        FeedbackError: name or password will not do, or too many others join (`passwords.Busy`); the link still works.
    """
    now = now or utcnow()
    look_up(store, token, now=now)  # before the hash, which takes its time
    checked_password(password)
    with turn():
        hashed = hash_password(password)
    with store.begin() as connection:
        found = _open_invite(connection, token, now)
        chosen = found.name or name
        if found.campaign is not None:
            take_turn(connection, found.campaign)  # before there is a person whom an import may name too
        person = insert_person(connection, chosen, found.role, hashed, language, attributes, now)
        still = (invites.c.token_hash == hash_token(token)) & invites.c.used_at.is_(None)
        if not connection.execute(update(invites).where(still).values(used_by=person, used_at=now)).rowcount:
            raise MissingError(_USED_UP)  # somebody else used it at the same instant
        if found.campaign is not None:
            join_in(connection, found.campaign, person, now)
        audit.note(connection, person, "accept", {"role": found.role, "campaign": found.campaign}, now)
        return person_of(connection, person)


def log_in(store: Store, name: str, password: str, *, address: str = "", now: datetime | None = None) -> Session:
    """Opens a session by name and password.

    Args:
        address: where the request comes from; failed log-ins are counted by it and by name.

    Raises:
        TooMany: too many log-ins failed within a quarter of an hour.
        FeedbackError: name or password is wrong (which of them is not said), or too many others log in
            (`passwords.Busy`).
    """
    now = now or utcnow()
    keys = {hash_token(f"name {_counted_as(name)}"): MOST_BY_NAME, hash_token(f"from {address}"): MOST_BY_ADDRESS}
    with turn():
        _check_attempts(store, keys, now)  # within: those who wait see the failures of those before them
        row = None
        person = find_person(store, name)
        if person is not None and person.disabled_at is None:
            with store.read() as connection:
                row = connection.execute(select(people.c.password).where(people.c.id == person.id)).scalar()
        if not is_password(password, row) or person is None:
            with store.begin() as connection:
                connection.execute(delete(attempts).where(attempts.c.at < now - WINDOW))
                connection.execute(insert(attempts), [{"key": key, "at": now} for key in keys])
            raise FeedbackError("name or password is wrong")
    return open_session(store, person.id, now=now)


def _counted_as(name: str) -> str:
    """Under which name failures are counted: one for all ways of writing a name that find the same person."""
    try:
        return checked_name(name).casefold()
    except FeedbackError:
        return name.strip().casefold()  # nobody has such a name


def _check_attempts(store: Store, keys: dict[str, int], now: datetime) -> None:
    with store.read() as connection:
        for key, most in keys.items():
            recent = (attempts.c.key == key) & (attempts.c.at > now - WINDOW)
            if connection.execute(select(func.count()).select_from(attempts).where(recent)).scalar_one() >= most:
                raise TooMany("too many log-ins failed; wait a quarter of an hour, or ask a manager for a new password")


def open_session(store: Store, person: int, *, now: datetime | None = None) -> Session:
    """A session without a password: for the one user on their own machine, and after `log_in`."""
    token, csrf, now = new_token(), new_token(), now or utcnow()
    times = {"created_at": now, "expires_at": now + timedelta(days=SESSION_DAYS), "seen_at": now}
    with store.begin() as connection:
        found = person_of(connection, person)
        connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
        connection.execute(insert(sessions).values(token_hash=hash_token(token), person_id=person, csrf=csrf, **times))
    return Session(found, csrf, times["expires_at"], token)


def session(store: Store, token: str, *, now: datetime | None = None) -> Session | None:
    """Who is logged in by that cookie; None for one that is unknown, too old, or of somebody disabled."""
    now = now or utcnow()
    hashed = hash_token(token)
    row = next(iter(store.ask(_SESSION, {"token": hashed})), None)
    if row is None or row.expires_at <= now or row.disabled_at is not None:
        return None
    if now - row.seen_at > _SEEN_EVERY:
        with store.begin() as connection:
            connection.execute(update(sessions).where(sessions.c.token_hash == hashed).values(seen_at=now))
    return Session(person_from(row), row.csrf, row.expires_at)


def log_out(store: Store, token: str) -> None:
    """Ends one session."""
    with store.begin() as connection:
        connection.execute(delete(sessions).where(sessions.c.token_hash == hash_token(token)))


def open_invites(store: Store, *, campaign: int | None = None, now: datetime | None = None) -> list[Invite]:
    """Links that were not used and still work, newest first."""
    given = invites.outerjoin(people, invites.c.created_by == people.c.id)
    may_invite = people.c.disabled_at.is_(None) & (people.c.role == "manager")  # as `_may_invite`
    works = (invites.c.used_at.is_(None), invites.c.expires_at > (now or utcnow()))
    query = select(invites).select_from(given).where(*works, invites.c.created_by.is_(None) | may_invite)
    if campaign is not None:
        query = query.where(invites.c.campaign_id == campaign)
    with store.read() as connection:
        rows = connection.execute(query.order_by(invites.c.created_at.desc())).all()
    return [Invite(row.role, row.campaign_id, row.name, row.expires_at, row.token_hash) for row in rows]


def revoke(store: Store, campaign: int | None, key: str, *, by: int | None = None, now: datetime | None = None) -> None:
    """A link of a campaign that was not used works no more.

    Args:
        key: `Invite.key`.

    Raises:
        MissingError: there is no such link (any more).
    """
    with store.begin() as connection:
        this = (invites.c.token_hash == key) & (invites.c.campaign_id == campaign) & invites.c.used_at.is_(None)
        row = connection.execute(select(invites).where(this)).first()
        if row is None or not connection.execute(delete(invites).where(this)).rowcount:
            raise MissingError(_USED_UP)
        audit.note(connection, by, "revoke invite", {"role": row.role, "campaign": campaign}, now or utcnow())
