"""The tables of the label store (SQLAlchemy Core). docs/store.md says what each is for.

Times are UTC. What people and models wrote is kept in JSON columns as ASCII text with escapes, so that every text
comes back as it was, NUL and half a surrogate pair included, from either database. (PostgreSQL's JSONB refuses both.)
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    text,
)

ROLES = ("labeller", "adjudicator", "manager")
PHASES = ("training", "qualification", "gold", "work")
# spare: over the quota of its slice, kept in reserve. disputed: people do not agree. settled: an adjudicator decided.
ITEM_STATES = ("open", "spare", "done", "disputed", "settled", "closed")
ASSIGNMENT_STATES = ("given", "done", "skipped", "expired")
MEMBER_STATES = ("training", "qualifying", "working", "paused", "failed", "removed")
CAMPAIGN_STATES = ("open", "paused", "closed")
SOURCES = ("person", "ai", "simulated", "import")
KINDS = ("label", "adjudication")


class Moment(TypeDecorator[datetime]):
    """A time with its zone, kept in UTC; SQLite, which knows no zones, gets and gives UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _json(name: str, **more: Any) -> Column[Any]:
    return Column(name, JSON(none_as_null=True), **more)


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("role", String(20), nullable=False),
    Column("password", String(300)),  # as goodheart/feedback/passwords.py hashes it; null: cannot log in
    Column("language", String(20)),
    _json("attributes", nullable=False),  # culture, age group, ... of the rater
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
    _one_of("role", ROLES),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("person_id", ForeignKey("people.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("seen_at", Moment, nullable=False),
)

attempts = Table(  # log-ins that failed, to slow down guessing
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False),  # hash of the name or the address
    Column("at", Moment, nullable=False),
    Index("ix_attempts_key_at", "key", "at"),
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    _json("settings", nullable=False),
    Column("state", String(20), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("deadline", Moment),
    Column("budget", Float),  # in the money of pay_per_hour
    _one_of("state", CAMPAIGN_STATES),
)

invites = Table(
    "invites",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("role", String(20), nullable=False),
    Column("campaign_id", ForeignKey("campaigns.id", ondelete="CASCADE")),
    Column("name", String(100)),
    Column("created_by", ForeignKey("people.id")),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("used_by", ForeignKey("people.id")),
    Column("used_at", Moment),
    _one_of("role", ROLES),
)

guidelines = Table(  # only added to
    "guidelines",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("campaign_id", ForeignKey("campaigns.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("name", String(100), nullable=False),  # the version in words; another store's name where it was imported
    _json("text", nullable=False),  # Markdown
    _json("note"),  # what changed and why
    Column("created_by", ForeignKey("people.id")),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("campaign_id", "version"),
    UniqueConstraint("campaign_id", "name"),
)

items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("campaign_id", ForeignKey("campaigns.id"), nullable=False),
    Column("key", String(64), nullable=False),  # hash of prompt and answers: the same comparison is not put in twice
    _json("prompt", nullable=False),
    _json("answers", nullable=False),  # a list; ranks, shown orders and flags count in its order
    _json("slice", nullable=False),  # {"topic": ..., "language": ...}: for quotas and for statistics by slice
    Column("batch", String(200)),
    Column("priority", Integer, nullable=False),  # higher comes first
    Column("place", BigInteger, nullable=False),  # order of handing out: priority, then a random draw
    Column("phase", String(20), nullable=False),
    _json("gold"),  # {"ranks": [...], "why": "..."}
    Column("wanted", Integer, nullable=False),  # labels of different people
    Column("done", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    Column("skips", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    UniqueConstraint("campaign_id", "phase", "key"),
    _one_of("phase", PHASES),
    _one_of("state", ITEM_STATES),
    CheckConstraint("done >= 0 AND held >= 0", name="counted"),
    CheckConstraint("phase <> 'work' OR done + held <= wanted", name="wanted"),
    Index("ix_items_campaign_id_state", "campaign_id", "phase", "state"),
)
# Only what can still be handed out, in the order of handing out: stays small and fast as a campaign fills. (The column
# stands first in the last condition: the other way round SQLite does not see that a query has the same one.)
WAITING = "phase = 'work' AND state = 'open' AND wanted > done + held"
Index(
    "ix_items_waiting",
    items.c.campaign_id,
    items.c.place,
    sqlite_where=text(WAITING),
    postgresql_where=text(WAITING),
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("campaign_id", ForeignKey("campaigns.id"), nullable=False),
    _json("shown", nullable=False),  # answers from left to right, as indices into items.answers
    Column("given_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("state", String(20), nullable=False),
    _json("draft"),
    _json("reason"),  # why it was skipped
    UniqueConstraint("item_id", "person_id"),  # no item twice to one person
    _one_of("state", ASSIGNMENT_STATES),
    Index("ix_assignments_person", "campaign_id", "person_id", "state", "given_at", "id"),
)
Index(
    "ix_assignments_locks",
    assignments.c.campaign_id,
    assignments.c.expires_at,
    sqlite_where=text("state = 'given'"),
    postgresql_where=text("state = 'given'"),
)

labels = Table(  # only added to; `live` is the one thing that ever changes, and only to false
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("campaign_id", ForeignKey("campaigns.id"), nullable=False),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("person_id", ForeignKey("people.id")),
    Column("assignment_id", ForeignKey("assignments.id")),
    Column("request", String(64)),  # made by the client: the same save sent twice is one label
    _json("ranks"),  # one per answer, 0 is best, equal numbers tie; null: withdrawn
    Column("strength", Integer),  # 1 negligibly, 2 slightly, 3 better, 4 significantly
    _json("flags", nullable=False),
    _json("ratings"),
    _json("comment"),
    _json("notes"),  # of imported labels: margin, weight and what else has no column
    Column("guideline_id", ForeignKey("guidelines.id")),
    _json("shown"),
    Column("seconds", Float),
    Column("gold", Boolean, nullable=False),
    Column("batch", String(200)),
    Column("source", String(20), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("live", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("person_id", "request"),
    _one_of("source", SOURCES),
    _one_of("kind", KINDS),
    CheckConstraint("strength BETWEEN 1 AND 4", name="strength"),
    Index("ix_labels_item", "item_id"),
    Index("ix_labels_person", "campaign_id", "person_id", "id"),
)
Index(  # one label that counts per item and person, whatever goes wrong above the database
    "uq_labels_live",
    labels.c.item_id,
    labels.c.person_id,
    labels.c.kind,
    unique=True,
    sqlite_where=text("live"),
    postgresql_where=text("live"),
)

members = Table(
    "members",
    metadata,
    Column("campaign_id", ForeignKey("campaigns.id"), primary_key=True),
    Column("person_id", ForeignKey("people.id"), primary_key=True),
    Column("state", String(20), nullable=False),
    _json("reason"),
    Column("gold_seen", Integer, nullable=False),
    Column("gold_right", Integer, nullable=False),
    Column("turns", Integer, nullable=False),  # tasks given so far: where the next gold item comes is drawn from it
    Column("cursor", BigInteger),  # nothing before this place is left for them, as far as is known
    Column("resumes", String(20)),  # of who is paused: the state they go on in
    Column("gold_from", Integer),  # id of the newest label when they last went on: gold before it pauses them no more
    Column("since", Moment, nullable=False),
    _one_of("state", MEMBER_STATES),
)

audit = Table(  # only added to
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Moment, nullable=False, index=True),
    Column("person_id", ForeignKey("people.id")),  # null: a program
    Column("action", String(60), nullable=False),
    _json("what", nullable=False),
)
