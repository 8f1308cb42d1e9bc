"""What labellers are told to look for: versions that are only added to, so that each label knows its own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, ScalarSelect, func, select

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.store import Store, insert_row, utcnow
from goodheart.feedback.tables import campaigns, guidelines, people

MOST = 200_000  # characters of one version


@dataclass(frozen=True, slots=True)
class Guideline:
    """One version of the guidelines of a campaign."""

    id: int
    campaign: int
    version: int  # 1, 2, ...
    name: str  # the version in words: its number unless it was imported under another name
    text: str  # Markdown
    note: str | None  # what changed and why
    by: str | None
    at: datetime


def current(store: Store, campaign: int) -> Guideline:
    """The newest version.

    Raises:
        MissingError: there is no such campaign.
    """
    found = versions(store, campaign)
    if not found:
        raise MissingError(f"there is no campaign number {campaign}")
    return found[-1]


def versions(store: Store, campaign: int) -> list[Guideline]:
    """All versions, oldest first."""
    query = select(guidelines, people.c.name.label("by")).outerjoin(people, people.c.id == guidelines.c.created_by)
    with store.read() as connection:
        rows = connection.execute(query.where(guidelines.c.campaign_id == campaign).order_by(guidelines.c.version))
        return [_guideline(row) for row in rows]


def add_version(
    store: Store,
    campaign: int,
    text: str,
    *,
    note: str | None = None,
    by: int | None = None,
    after: int | None = None,
    now: datetime | None = None,
) -> int:
    """Adds a version; labels from now on are given under it.

    Args:
        after: the version that was edited.

    Returns:
        The new version's number.

    Raises:
        ConflictError: somebody added another version since `after`.
    """
    if len(text) > MOST:
        raise FeedbackError(f"guidelines of {len(text)} characters; {MOST} are the most")
    with store.begin() as connection:
        one_at_a_time(connection, campaign)
        newest = _newest(connection, campaign)
        if after is not None and newest != after:
            raise ConflictError(f"version {newest} was added while version {after} was edited; put the two together")
        insert_version(connection, campaign, text, note=note, by=by, now=now)
        audit.note(connection, by, "edit guidelines", {"campaign": campaign, "version": newest + 1}, now)
    return newest + 1


def insert_version(
    connection: Connection,
    campaign: int,
    text: str,
    *,
    name: str | None = None,
    note: str | None = None,
    by: int | None = None,
    now: datetime | None = None,
) -> int:
    """Adds the row of a version, in the caller's transaction; returns its id."""
    one_at_a_time(connection, campaign)
    version = _newest(connection, campaign) + 1
    values: dict[str, Any] = {"campaign_id": campaign, "version": version, "name": name or str(version)}
    return insert_row(
        connection, guidelines, values | {"text": text, "note": note, "created_by": by, "created_at": now or utcnow()}
    )


def newest_of(campaign: Any) -> ScalarSelect[int]:
    """The id of the newest version, within a statement that has the campaign's id in a column."""
    newest = select(guidelines.c.id).where(guidelines.c.campaign_id == campaign).order_by(guidelines.c.version.desc())
    return newest.limit(1).scalar_subquery()


def current_id(connection: Connection, campaign: int) -> int | None:
    """The id of the newest version, in the caller's transaction."""
    return connection.execute(select(newest_of(campaign))).scalar()


def diff(old: str, new: str) -> list[tuple[str, str]]:
    """What changed between two texts, line by line: ("same" | "gone" | "new", line)."""
    signs = {"  ": "same", "- ": "gone", "+ ": "new"}
    lines = difflib.ndiff(old.splitlines(), new.splitlines())
    return [(signs[line[:2]], line[2:]) for line in lines if line[:2] in signs]


def one_at_a_time(connection: Connection, campaign: int) -> None:
    """Locks the campaign's row for this transaction, so that no two number a version alike or change rules at once."""
    connection.execute(select(campaigns.c.id).where(campaigns.c.id == campaign).with_for_update(key_share=True))


def _newest(connection: Connection, campaign: int) -> int:
    query = select(func.max(guidelines.c.version)).where(guidelines.c.campaign_id == campaign)
    return connection.execute(query).scalar() or 0


def _guideline(row: Row[Any]) -> Guideline:
    at = row.created_at
    return Guideline(row.id, row.campaign_id, row.version, row.name, row.text, row.note, row.by, at)
