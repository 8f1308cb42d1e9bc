"""Labels out of the store and into it: as records, and as files in every layout that goodheart writes.

    export(store, campaign.id, "labels.jsonl")                        # everything: layout "ranked"
    export(store, campaign.id, "pairs.parquet", "trl-preference", labels="trusted")
    import_judgements(store, campaign.id, read_records("old.jsonl", "preference").records)

Records come item by item, so that all labels of a prompt stand together and can go into one split. Answers, ranks and
shown orders are in the order of the item. Where each label stays as it is,
nothing is held in memory but a few hundred items with their labels.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from sqlalchemy import JSON, Connection, Text, cast, select

from goodheart.data.gather import EVERYBODY_ELSE
from goodheart.data.layouts import NOTHING, to_rows
from goodheart.data.messages import RowError
from goodheart.data.notes import write_notes
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.data.rows import row
from goodheart.data.shapes import Record
from goodheart.data.writing import write_rows
from goodheart.feedback import targets
from goodheart.feedback.campaigns import load
from goodheart.feedback.items import unpack_answer, unpack_prompt
from goodheart.feedback.store import Store
from goodheart.feedback.tables import guidelines, items, people
from goodheart.feedback.tables import labels as label_table
from goodheart.feedback.trust import reliability

_TEXTS = ("prompt", "completions")  # columns of layout "ranked" that all labels of an item share
_ITEMS = 500  # read at a time, with their labels
_COLUMNS = tuple(
    # JSON comes as its text: of a million labels most say the same few things, which are read once (`_read`).
    cast(label_table.c[name], Text).label(name) if isinstance(label_table.c[name].type, JSON) else label_table.c[name]
    for name in (
        "campaign_id", "item_id", "person_id", "guideline_id", "ranks", "shown", "seconds", "flags", "gold", "batch",
        "strength", "ratings", "comment", "source", "kind", "created_at", "notes",
    )
)  # fmt: skip
_SHORT = 100  # characters of JSON that are kept with what they say
_NO_NOTES: Mapping[str, Any] = {}


@dataclass(slots=True)
class Exported:
    """What an export wrote."""

    judgements: int = 0
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> records that the layout cannot hold


@dataclass(frozen=True, slots=True)
class _Rater:
    name: str
    attributes: Mapping[str, Any]


def export(store: Store, campaign: int, path: str | Path, layout: str = "ranked", **how: Any) -> Exported:
    """Writes the labels of a campaign into a file. Arguments and errors as `exported_rows`.

    Raises:
        DataError: the file cannot be written.
    """
    done = Exported()
    write_rows(path, exported_rows(store, campaign, done, layout, **how), shared=shared_columns(layout))
    return done


def count(store: Store, campaign: int, layout: str = "ranked", **how: Any) -> Exported:
    """What `export` would write, and leave out, without a file. Arguments and errors as `exported_rows`."""
    done = Exported()
    for _ in exported_rows(store, campaign, done, layout, **how):
        pass
    return done


def shared_columns(layout: str) -> Sequence[str]:
    """Columns that the rows of an item share in a layout, for `write_rows`."""
    return _TEXTS if layout == "ranked" else ()


def exported_rows(
    store: Store,
    campaign: int,
    done: Exported,
    layout: str = "ranked",
    *,
    labels: str = "each",
    weights: Mapping[str, float] | None = None,
    trust: bool = False,
    phases: Sequence[str] = ("work",),
    overruled: bool = False,
) -> Iterator[dict[str, Any]]:
    """The labels of a campaign as rows.

    Args:
        done: is counted up on the way.
        layout: one of goodheart.data.layouts.LAYOUTS.
        labels: what several labels of the same answers become, one of `targets.KNOWN`; all but "each" hold the whole
            campaign in memory.
        weights: trust in each rater, see `goodheart.data.gather`.
        trust: weigh each rater by how reliable their labels show them to be, in place of `weights`; labels "trusted"
            do so in any case.
        phases, overruled: see `judgements`.

    Raises:
        ConfigError: unknown labels, or weights and trust that do not go together.
        DataError: a rater has no weight.
        MissingError: there is no such campaign.
    """
    through = targets.through(labels, weights, trust=trust)
    if trust and labels != targets.TRUSTED:  # seen in all labels, also in those that an adjudicator overruled
        known = reliability(judgements(store, campaign, phases=phases, overruled=True))
        through = targets.through(labels, {EVERYBODY_ELSE: 1.0, **known})
    found = judgements(store, campaign, phases=phases, overruled=overruled or labels == targets.TRUSTED)
    counted = _counted(found, done)
    for made in _rows(counted if through is None else through(counted), layout, done):
        done.rows += 1
        yield made


def _counted(found: Iterable[Judgement], done: Exported) -> Iterator[Judgement]:
    for judgement in found:
        done.judgements += 1
        yield judgement


def _rows(found: Iterable[Record], layout: str, done: Exported) -> Iterator[dict[str, Any]]:
    return ranked_rows(found, done) if layout == "ranked" else _plain_rows(found, layout, done)


def _plain_rows(found: Iterable[Record], layout: str, done: Exported) -> Iterator[dict[str, Any]]:
    for record in found:
        try:
            made = to_rows(record, layout)
        except RowError as error:
            done.left_out[str(error)] += 1
            continue
        if not made:
            done.left_out[NOTHING] += 1
        yield from made


def ranked_rows(found: Iterable[Record], done: Exported) -> Iterator[dict[str, Any]]:
    """What `to_rows` gives in layout "ranked", quicker: the texts that all labels of an item share are made once."""
    last: Judgement | None = None
    texts: dict[str, Any] = {}
    for each in found:
        if last is not None and _shares_texts(each, last):
            yield row({**texts, "ranks": list(each.ranks), **write_notes(each)}, each.prompt.meta)
        else:
            last = None
            for whole in _plain_rows([each], "ranked", done):
                texts, last = {name: whole[name] for name in _TEXTS}, each if isinstance(each, Judgement) else None
                yield whole


def _shares_texts(record: Record, last: Judgement) -> TypeGuard[Judgement]:
    return isinstance(record, Judgement) and record.answers is last.answers and record.prompt is last.prompt


def judgements(
    store: Store,
    campaign: int,
    *,
    phases: Sequence[str] = ("work",),
    overruled: bool = False,
) -> Iterator[Judgement]:
    """The labels that count, item by item; those of items that were closed do not count.

    Args:
        phases: of the items; gold, training and qualification are left out unless named.
        overruled: also the labels of items on which an adjudicator decided, beside that decision.

    Raises:
        MissingError: there is no such campaign.
    """
    with store.read() as connection:
        load(connection, campaign)
        raters = {row.id: _Rater(row.name, row.attributes) for row in connection.execute(select(people))}
        versions = select(guidelines.c.id, guidelines.c.name).where(guidelines.c.campaign_id == campaign)
        named = {row.id: row.name for row in connection.execute(versions)}
        for item, given in _by_item(connection, campaign, phases):
            yield from _judgements(item, given, raters, named, overruled)


def _by_item(connection: Connection, campaign: int, phases: Sequence[str]) -> Iterator[tuple[Any, list[Any]]]:
    """Items that have labels, with those that count."""
    last = 0
    here = (items.c.campaign_id == campaign) & items.c.phase.in_(phases) & (items.c.state != "closed")
    of_item = select(items.c.id, items.c.prompt, items.c.answers).where(here).order_by(items.c.id).limit(_ITEMS)
    while found := connection.execute(of_item.where(items.c.id > last)).all():
        first, last = found[0].id, found[-1].id
        near = (label_table.c.item_id >= first) & (label_table.c.item_id <= last)
        # "+ 0": or SQLite would go by the index of campaigns, and read all labels for each piece.
        said = select(*_COLUMNS).where(near, label_table.c.campaign_id + 0 == campaign, label_table.c.live)
        given: defaultdict[int, list[Any]] = defaultdict(list)
        for label in connection.execute(said.order_by(label_table.c.item_id, label_table.c.id)):
            given[label.item_id].append(label)
        for item in found:
            if item.id in given:
                yield item, given[item.id]


def _judgements(
    item: Any,
    given: Sequence[Any],
    raters: Mapping[int, _Rater],
    versions: Mapping[int, str],
    overruled: bool,
) -> list[Judgement]:
    if not overruled and any(row.kind == "adjudication" for row in given):
        given = [row for row in given if row.kind == "adjudication"]
    asked, answers = unpack_prompt(item.prompt), tuple(unpack_answer(each) for each in item.answers)
    return [_judgement(each, asked, answers, raters, versions) for each in given]


@lru_cache(maxsize=10_000)
def _short(text: str) -> Any:
    found = json.loads(text)
    return tuple(found) if isinstance(found, list) else found


def _read(text: str | None) -> Any:
    """A value of JSON, which nobody changes; lists as tuples."""
    return None if text is None else _short(text) if len(text) < _SHORT else _short.__wrapped__(text)


def _judgement(
    row: Any, asked: Prompt, answers: tuple[Answer, ...], raters: Mapping[int, _Rater], versions: Mapping[int, str]
) -> Judgement:
    # Taken apart at once: asking a row for each column by its name is slower.
    (campaign, item, person, guideline, ranks, shown, seconds, flags, gold, batch, strength, ratings, comment, source,
     kind, created_at, notes) = row  # fmt: skip
    rater = raters.get(person)
    notes = _read(notes) or _NO_NOTES
    return Judgement(
        asked,
        answers,
        _read(ranks),
        margin=notes.get("margin"),
        weight=notes.get("weight", 1.0),
        rater=None if rater is None else rater.name,
        rater_attributes=notes.get("rater_attributes", {} if rater is None else rater.attributes),
        guideline=versions.get(guideline),
        shown_order=_read(shown),
        seconds=seconds,
        flags=_read(flags),
        gold=gold,
        batch=batch,
        strength=strength,
        probability=notes.get("probability"),
        ratings=_read(ratings) or {},
        comment=_read(comment),
        source=notes.get("source", source),
        kind=kind,
        created_at=notes.get("created_at") or created_at.isoformat(),
        item_id=notes.get("item_id") or f"{campaign}-{item}",
        group_id=notes.get("group_id"),
    )
