"""Campaigns: which items are labelled by how many people, under which rules.

settings = CampaignSettings(name="helpful", overlap=3, gold_share=0.1)
campaign = create(store, settings, read_items("answers.jsonl"), guideline="Which answer helps more?")
add_items(store, campaign.id, read_items("gold.jsonl", phase="gold"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.exc import IntegrityError

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit
from goodheart.feedback.campaign_items import Added, add_rows, keep_quotas
from goodheart.feedback.guidelines import insert_version, one_at_a_time
from goodheart.feedback.items import NewItem
from goodheart.feedback.people import checked_name
from goodheart.feedback.store import Store, insert_row, is_id, storable, take_turn, utcnow
from goodheart.feedback.tables import campaigns, items, members

FLAGS = ("harmful", "wrong", "off_topic")


class CampaignSettings(BaseModel):
    """The rules of a campaign."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    overlap: int = Field(1, ge=1, le=100)  # labels of different people per item
    # Share of labellers that must agree on an item, from `overlap` of them on; where they do not, one more is asked, up
    # to `max_overlap`, and then an adjudicator. None: `overlap` labels and no more.
    until_agreement: float | None = Field(None, gt=0.5, le=1)
    max_overlap: int | None = Field(None, ge=1, le=100)  # None: overlap + 2
    at_once: int | None = Field(None, ge=2, le=50)  # answers shown at a time; None: as many as a row has
    lock_minutes: float = Field(20.0, gt=0, le=7 * 24 * 60)  # how long an item is kept for who has it open
    gold_share: float = Field(0.1, ge=0, le=0.5)  # of the tasks, while there is gold they have not seen
    gold_pause_below: float = Field(0.7, ge=0, le=1)  # 0: never paused
    gold_window: int = Field(20, ge=5, le=1000)  # newest gold answers that count
    training: int = Field(0, ge=0)  # items with the answer shown after each, before all else
    qualification: int = Field(0, ge=0)  # items of the test that follows
    qualification_pass: float = Field(0.8, ge=0, le=1)  # share of it that must be right
    quotas: dict[str, dict[str, int]] = Field(default_factory=dict)  # {"language": {"en": 200, "zh": 100}}: items
    strength: bool = True  # ask how much better (1 negligibly, 2 slightly, 3 better, 4 significantly)
    flags: tuple[str, ...] = FLAGS  # what can be ticked for an answer; "both_bad" is always there
    rubric: dict[str, str] = Field(default_factory=dict)  # name -> what is rated from 1 to 5 for each answer
    languages: tuple[str, ...] = ()  # of the prompts
    blind: bool = True  # labellers are not told which model wrote what
    max_skips: int = Field(3, ge=1)  # people who skip an item before an adjudicator sees it
    pay_per_hour: float | None = Field(None, ge=0)
    budget: float | None = Field(None, ge=0)  # in the same money; the forecast says whether it will do
    deadline: datetime | None = None  # with its zone
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        # Each of these has a type and names its field: the studio says it in its own words, beside the field.
        if self.until_agreement is not None and self.overlap < 2:
            said = "until_agreement needs an overlap of 2 or more: one person always agrees with themselves"
            raise PydanticCustomError("agreement_alone", said, {"field": "until_agreement"})
        if self.max_overlap is not None and self.max_overlap < self.overlap:
            told = {"field": "max_overlap", "most": self.max_overlap, "overlap": self.overlap}
            raise PydanticCustomError("overlap_less", "max_overlap {most} is less than overlap {overlap}", told)
        if self.max_overlap is not None and self.until_agreement is None and self.max_overlap > self.overlap:
            said = "max_overlap says how far until_agreement may go; set until_agreement too"
            raise PydanticCustomError("overlap_alone", said, {"field": "max_overlap"})
        if "both_bad" in self.flags or len(set(self.flags)) < len(self.flags):
            said = "flags are named once each, and both_bad is always there"
            raise PydanticCustomError("flags_twice", said, {"field": "flags"})
        if any(count < 1 for values in self.quotas.values() for count in values.values()):
            raise PydanticCustomError("quota_none", "a quota is a number of items, 1 or more", {"field": "quotas"})
        if self.deadline is not None and self.deadline.tzinfo is None:
            raise ValueError("deadline needs its zone, such as 2026-12-01T18:00+01:00")
        return self

    @property
    def most_labels(self) -> int:
        """Labels that one item can get."""
        if self.until_agreement is None:
            return self.overlap
        return self.overlap + 2 if self.max_overlap is None else self.max_overlap

    def cut_by(self, named: Iterable[str]) -> tuple[str, ...]:
        """The columns that cut items into slices: those named, and those of the quotas, which count slices alone."""
        return tuple(dict.fromkeys([*named, *self.quotas]))


# What may be changed once labels are there; the rest would make old and new labels different things.
CHANGEABLE = frozenset(
    {"lock_minutes", "gold_share", "gold_pause_below", "gold_window", "pay_per_hour", "budget", "deadline", "languages",
     "until_agreement", "max_overlap", "max_skips", "flags", "rubric", "strength", "qualification_pass"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign as it is now."""

    id: int
    settings: CampaignSettings
    state: str  # open, paused, closed
    created_at: datetime

    @property
    def name(self) -> str:
        return self.settings.name


def create(
    store: Store,
    settings: CampaignSettings,
    new: Iterable[NewItem] = (),
    guideline: str = "",
    *,
    by: int | None = None,
    now: datetime | None = None,
) -> Campaign:
    """Makes a campaign with its items and the first version of its guidelines: all of it or nothing.

    Raises:
        ConflictError: there is a campaign of that name.
        FeedbackError: an item will not do, or no item is left for labelling where some were given.
    """
    now = now or utcnow()
    settings = settings.model_copy(update={"name": checked_name(settings.name)})
    with store.begin() as connection:
        if connection.execute(select(campaigns.c.id).where(campaigns.c.name == settings.name)).first():
            raise ConflictError(f"there is a campaign named {settings.name!r} already; choose another name")
        values = {"name": settings.name, "state": "open", "created_at": now, **_columns(settings)}
        try:
            campaign = insert_row(connection, campaigns, values)
        except IntegrityError as error:
            raise ConflictError(f"there is a campaign named {settings.name!r} already; choose another name") from error
        insert_version(connection, campaign, guideline, by=by, now=now)
        added = add_rows(connection, campaign, settings, new)
        keep_quotas(connection, campaign, settings)
        audit.note(connection, by, "create campaign", {"campaign": campaign, "items": added.items}, now)
        return load(connection, campaign)


def _columns(settings: CampaignSettings) -> dict[str, Any]:
    kept = settings.model_dump(mode="json")
    return {"settings": kept, "deadline": settings.deadline, "budget": settings.budget}


def add_items(
    store: Store, campaign: int, new: Iterable[NewItem], *, by: int | None = None, now: datetime | None = None
) -> Added:
    """Adds items; comparisons that are there already are left out.

    Raises:
        FeedbackError: an item will not do; nothing was added.
        MissingError: there is no such campaign.
    """
    with store.begin() as connection:
        found = load(connection, campaign)
        take_turn(connection, campaign)
        added = add_rows(connection, campaign, found.settings, new)
        # New items may come before the place where members stand. Their rows are locked before those of items that are
        # there, as whoever labels does.
        connection.execute(update(members).where(members.c.campaign_id == campaign).values(cursor=None))
        added.spare = keep_quotas(connection, campaign, found.settings)
        what = {"campaign": campaign, "items": added.items, "again": added.again}
        audit.note(connection, by, "add items", what, now)
    return added


def load(connection: Connection, campaign: int) -> Campaign:
    """A campaign as it is now, in the caller's transaction.

    Raises:
        MissingError: there is none with that id.
    """
    row = connection.execute(select(campaigns).where(campaigns.c.id == campaign)).first() if is_id(campaign) else None
    if row is None:
        raise MissingError(f"there is no campaign number {campaign}")
    return campaign_from(row)


def get(store: Store, name: str | int) -> Campaign:
    """A campaign by its name or its id.

    Raises:
        MissingError: there is none.
    """
    with store.read() as connection:
        if isinstance(name, int):
            return load(connection, name)
        shows = storable(name) == name
        row = connection.execute(select(campaigns).where(campaigns.c.name == name)).first() if shows else None
    if row is None:
        raise MissingError(
            f"there is no campaign {name!r}; there are: {', '.join(c.name for c in listing(store)) or '-'}"
        )
    return campaign_from(row)


def listing(store: Store) -> list[Campaign]:
    """All campaigns, newest first."""
    with store.read() as connection:
        return [campaign_from(row) for row in connection.execute(select(campaigns).order_by(campaigns.c.id.desc()))]


def campaign_from(row: Row[Any]) -> Campaign:
    """A campaign out of a row with its columns."""
    settings: Mapping[str, Any] = {**row.settings, "deadline": row.deadline, "budget": row.budget}
    return Campaign(row.id, CampaignSettings.model_validate(settings), row.state, row.created_at)


def pause(store: Store, campaign: int, *, by: int | None = None) -> None:
    """No new tasks are given; what people have open they may still save."""
    _set_state(store, campaign, "paused", by)


def resume(store: Store, campaign: int, *, by: int | None = None) -> None:
    """Tasks are given again."""
    _set_state(store, campaign, "open", by)


def close(store: Store, campaign: int, *, by: int | None = None) -> None:
    """As `pause`, and meant for good."""
    _set_state(store, campaign, "closed", by)


def _set_state(store: Store, campaign: int, state: str, by: int | None) -> None:
    with store.begin() as connection:
        before = load(connection, campaign).state
        connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(state=state))
        audit.note(connection, by, "campaign state", {"campaign": campaign, "from": before, "to": state})


def change(
    store: Store,
    campaign: int,
    changes: Mapping[str, Any],
    *,
    by: int | None = None,
    after: CampaignSettings | None = None,
) -> Campaign:
    """Changes rules of a running campaign (`CHANGEABLE`).

    Args:
        after: the rules that were edited.

    Raises:
        ConflictError: somebody changed them since `after`.
        FeedbackError: a rule that cannot change any more, or a value that will not do.
    """
    if fixed := sorted(set(changes) - CHANGEABLE):
        raise FeedbackError(f"{', '.join(fixed)} cannot change once a campaign runs; make a new campaign")
    with store.begin() as connection:
        one_at_a_time(connection, campaign)
        now = load(connection, campaign).settings
        if after is not None and now != after:
            raise ConflictError("the rules were changed while they were edited; put the changes together")
        try:
            settings = CampaignSettings.model_validate(now.model_dump() | dict(changes))
        except ValidationError as error:
            raise FeedbackError(reasons(error)) from error
        before, then = now.model_dump(mode="json"), settings.model_dump(mode="json")
        said = {name: then[name] for name in changes if then[name] != before[name]}
        if said:
            connection.execute(update(campaigns).where(campaigns.c.id == campaign).values(**_columns(settings)))
            audit.note(connection, by, "change campaign", {"campaign": campaign, **said})
        return load(connection, campaign)


def reasons(error: ValidationError) -> str:
    """What is wrong with settings, in one line for people."""
    found = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
    return "; ".join(f"{where}: {what}" if where else what for where, what in found)


def close_item(store: Store, item: int, *, by: int | None = None) -> None:
    """Takes an item out of a campaign, such as one that cannot be answered, or a gold item whose answer is wrong.

    What was said of it stays in its history, and counts no more: not in exports and statistics, and not for or against
    who answered it. Of work, one from the reserve of its slice takes its place.

    Raises:
        MissingError: there is no such item.
    """
    with store.begin() as connection:
        columns = (items.c.campaign_id, items.c.state)
        row = connection.execute(select(*columns).where(items.c.id == item)).first() if is_id(item) else None
        if row is None:
            raise MissingError(f"there is no item number {item}")
        if row.state == "closed":
            return
        settings = load(connection, row.campaign_id).settings
        take_turn(connection, row.campaign_id)
        connection.execute(update(items).where(items.c.id == item).values(state="closed"))
        keep_quotas(connection, row.campaign_id, settings)
        audit.note(connection, by, "close item", {"item": item, "campaign": row.campaign_id})
