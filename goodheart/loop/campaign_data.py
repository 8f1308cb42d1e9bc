"""Labels of a campaign as a file, and a file as labels of a campaign: `goodheart data export` and `data import`.

A campaign is named by its store and its name: `goodheart.db/helpful`, `postgresql://user@host/labels/helpful`. The name
may be left out where the store has one campaign only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goodheart.data.gather import read_weights
from goodheart.data.layouts import LAYOUTS
from goodheart.data.reading import read_records
from goodheart.data.writing import unwritable, write_rows
from goodheart.errors import ConfigError, DataError, MissingError
from goodheart.feedback import campaigns, importing
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.exporting import Exported, exported_rows, shared_columns
from goodheart.feedback.store import Store, open_store
from goodheart.feedback.tables import PHASES

if TYPE_CHECKING:
    from goodheart.data.mapping import ColumnMap


@dataclass(frozen=True, slots=True)
class Place:
    """Where a campaign is kept."""

    store: str  # a file of SQLite, or an address
    campaign: str | None  # None: the only one

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that `STORE/CAMPAIGN` names.

        Raises:
            ConfigError: it names no store.
        """
        scheme, mark, rest = text.partition("://")
        if mark and scheme != "sqlite":
            host, _, inside = rest.partition("/")
            database, _, name = inside.partition("/")
            if not (host and database):
                raise ConfigError(f"{text}: write {scheme}://user@host/DATABASE/CAMPAIGN")
            return cls(f"{scheme}://{host}/{database}", name or None)
        path = Path(rest.removeprefix("/") if mark else text).expanduser()
        for store in (path, *path.parents):
            if store.is_file():
                name = str(path.relative_to(store)) if store != path else ""
                return cls(str(store), name or None)
        raise ConfigError(
            f"{text}: no store of labels there; write STORE/CAMPAIGN, such as goodheart.db/helpful "
            "(`goodheart label` makes a store)"
        )


def export_labels(
    where: str,
    out: Path,
    *,
    to: str = "ranked",
    labels: str = "each",
    weights: Path | None = None,
    trust: bool = False,
    phases: tuple[str, ...] = ("work",),
) -> str:
    """Writes the labels of a campaign into a file; returns what was done, in words.

    Arguments as `goodheart.feedback.exporting.exported_rows`; weights is a file, see `read_weights`.

    Raises:
        ConfigError: no such store, layout, labels or phase, or `out` is a kind of file that is not written.
        MissingError: no such campaign.
        DataError: nothing was labelled that the layout can hold, or a rater has no weight.
    """
    if to not in LAYOUTS:
        raise ConfigError(f"unknown layout {to!r}; known are {', '.join(LAYOUTS)}")
    if why := unwritable(out, []):
        raise ConfigError(why)
    if unknown := sorted(set(phases) - set(PHASES)):
        raise ConfigError(f"unknown phase {unknown[0]!r}; known are {', '.join(PHASES)}")
    given = None if weights is None else read_weights(weights)
    done = Exported()
    with _opened(where) as (store, campaign):
        rows = exported_rows(store, campaign.id, done, to, labels=labels, weights=given, trust=trust, phases=phases)
        rows = _some(rows, done, f"{where}: nothing was written: ", to)
        write_rows(out, rows, shared=shared_columns(to))
    said = [f"{done.judgements} labels of campaign {campaign.name!r} read, {done.rows} rows written"]
    said += [f"left out {number} that {to} cannot hold: {why}" for why, number in done.left_out.most_common()]
    return "\n".join(said)


def _some(rows: Iterator[dict[str, Any]], done: Exported, what: str, to: str) -> Iterator[dict[str, Any]]:
    """The rows; where there are none it raises, so that what was exported before stays."""
    yield from rows
    if not done.rows:
        why = f"none of the labels can be held by {to}" if done.judgements else "nobody has labelled there yet"
        raise DataError(what + why)


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
    said += [f"{done.again} labels without a rater were there already"] if done.again else []
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
        raise ConfigError(f"{where}: write STORE/CAMPAIGN, such as goodheart.db/helpful")
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
            raise MissingError(f"{where}: name the campaign, as in {where}/NAME; there are: {names}")
        yield store, known[0]
    finally:
        store.close()
