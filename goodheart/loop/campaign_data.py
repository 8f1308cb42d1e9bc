"""Labels of a campaign as a file (`goodheart data export`, the stage `export`), and a file as labels of a campaign.

A campaign is named by its store and its name: `goodheart.db/helpful`, `postgresql://user@host/labels/helpful`. Of what
is exported the name may be left out where the store has one campaign only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from goodheart.data.gather import read_weights
from goodheart.data.reading import read_records
from goodheart.data.writing import write_rows
from goodheart.errors import ConfigError, DataError, MissingError
from goodheart.feedback import campaigns, importing
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.exporting import Exported, exported_rows, shared_columns
from goodheart.feedback.store import Store, open_store
from goodheart.feedback.tables import audit, labels
from goodheart.loop.campaign_place import Place, shown
from goodheart.loop.settings import ExportConfig

if TYPE_CHECKING:
    from goodheart.data.mapping import ColumnMap


@dataclass(frozen=True)
class Written:
    """What was exported."""

    out: Path
    campaign: str
    labels: int  # that were read
    rows: int
    left_out: dict[str, int]  # why the layout cannot hold a record -> how many

    def summary(self) -> str:
        said = [f"{self.labels} labels of campaign {self.campaign!r} read, {self.rows} rows in {self.out}"]
        by_number = sorted(self.left_out.items(), key=lambda each: -each[1])
        return "\n".join(said + [f"left out {number}: {why}" for why, number in by_number])


def export(config: ExportConfig) -> Written:
    """Writes the labels of a campaign into a file.

    Raises:
        MissingError: no such campaign.
        DataError: nothing was labelled that the layout can hold, or a rater has no weight.
    """
    given = None if config.weights is None else read_weights(config.weights)
    done = Exported()
    with _opened(config.campaign) as (store, campaign):
        how: dict[str, Any] = {
            "labels": config.labels,
            "weights": given,
            "trust": config.trust,
            "phases": config.phases,
        }
        rows = _some(exported_rows(store, campaign.id, done, config.to, **how), done, config)
        write_rows(config.out, rows, shared=shared_columns(config.to))
    return Written(config.out, campaign.name, done.judgements, done.rows, dict(done.left_out))


def digest(where: str) -> str:
    """Another text for other labels: what a pipeline knows by whether an export must be made anew.

    Labels are only added to; what else makes a difference (items closed, people erased) is in the log of who did what.
    Both are counted: on PostgreSQL a row that is committed late may have a lower number than the newest.
    """
    with _opened(where) as (store, campaign), store.read() as connection:
        of_labels = select(func.max(labels.c.id), func.count()).where(labels.c.campaign_id == campaign.id)
        label, many = connection.execute(of_labels).one()
        log, lines = connection.execute(select(func.max(audit.c.id), func.count()).select_from(audit)).one()
    return f"campaign {campaign.id}, label {label or 0} of {many}, log {log or 0} of {lines}"


def _some(rows: Iterator[dict[str, Any]], done: Exported, config: ExportConfig) -> Iterator[dict[str, Any]]:
    """The rows; where there are none it raises, so that what was exported before stays."""
    yield from rows
    if not done.rows:
        held = f"none of the labels can be held by {config.to}"
        why = held if done.judgements else "nobody has labelled there yet"
        raise DataError(f"{config.campaign}: nothing was written: {why}")


def import_labels(source: str, where: str, *, mapping: ColumnMap | None = None) -> str:
    """Adds the comparisons of a file to a campaign, which is made where there is none; returns what was done, in words.

    Raises:
        ConfigError: `where` names no store or no campaign.
        DataError: the source holds no comparison.
    """
    place = _new_place(where)
    loaded = read_records(source, "preference", mapping=mapping)
    store = open_store(place.store)
    try:
        assert place.campaign is not None
        known = {each.name: each for each in campaigns.listing(store)}
        campaign = known.get(place.campaign) or campaigns.create(store, CampaignSettings(name=place.campaign))
        done = importing.import_judgements(store, campaign.id, loaded.records)
    finally:
        store.close()
    said = [f"{done.labels} labels on {done.items} new items, of {done.people} new people"]
    said += [f"{done.replaced} labels took the place of older ones"] if done.replaced else []
    said += [f"{done.again} labels were there already"] if done.again else []
    said += [f"left out {done.left_out}: nothing to compare"] if done.left_out else []
    said += [f"set aside {row}" for row in loaded.bad[:10]]
    return "\n".join(said)


def _new_place(where: str) -> Place:
    """As `Place.of`, for a store that may yet be made.

    Raises:
        ConfigError: it names no campaign.
    """
    with contextlib.suppress(ConfigError):
        place = Place.of(where)
        if place.campaign is not None:
            return place
    path = Path(where).expanduser()
    if "://" in where or path.is_file() or path.parent.suffix != ".db":
        raise ConfigError(f"{shown(where)}: write STORE/CAMPAIGN, such as goodheart.db/helpful")
    return Place(str(path.parent), path.name)


@contextlib.contextmanager
def _opened(where: str) -> Iterator[tuple[Store, Campaign]]:
    place = Place.of(where)
    store = open_store(place.store)
    try:
        if place.campaign is not None:
            yield store, campaigns.get(store, place.campaign)
            return
        known = campaigns.listing(store)
        if len(known) != 1:
            names = ", ".join(each.name for each in known) or "none"
            example = shown(place.named("NAME"))
            raise MissingError(f"{shown(where)}: name the campaign, as in {example}; there are: {names}")
        yield store, known[0]
    finally:
        store.close()
