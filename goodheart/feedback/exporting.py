"""Labels out of the store and into it: as records, and as files in every layout that goodheart writes.

    export(store, campaign.id, "labels.jsonl")                        # everything: layout "ranked"
    export(store, campaign.id, "pairs.parquet", "trl-preference")
    import_judgements(store, campaign.id, read_records("old.jsonl", "preference").records)

Records come item by item, so that all labels of a prompt stand together and can go into one split. Answers, ranks and
shown orders are in the order of the item. Nothing is held in memory but a few hundred items with their labels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from sqlalchemy import JSON, Connection, Text, cast, select

from goodheart.data.layouts import to_rows
from goodheart.data.messages import RowError
from goodheart.data.notes import write_notes
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.data.rows import row
from goodheart.data.shapes import Record
from goodheart.data.writing import write_rows
from goodheart.feedback.campaigns import load
from goodheart.feedback.items import unpack_answer, unpack_prompt
from goodheart.feedback.store import Store
from goodheart.feedback.tables import guidelines, items, labels, people

_TEXTS = ("prompt", "completions")  # columns of layout "ranked" that all labels of an item share
_ITEMS = 500  # read at a time, with their labels
_COLUMNS = tuple(
    # JSON comes as its text: of a million labels most say the same few things, which are read once (`_read`).
    cast(labels.c[name], Text).label(name) if isinstance(labels.c[name].type, JSON) else labels.c[name]
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
    left_out: int = 0  # that the layout cannot hold


@dataclass(frozen=True, slots=True)
class _Rater:
    name: str
    attributes: Mapping[str, Any]


def export(
    store: Store,
    campaign: int,
    path: str | Path,
    layout: str = "ranked",
    *,
    weights: Mapping[str, float] | None = None,
    phases: Sequence[str] = ("work",),
    overruled: bool = False,
) -> Exported:
    """Writes the labels of a campaign into a file. Arguments as `judgements`.

    Args:
        layout: one of goodheart.data.layouts.LAYOUTS.

    Raises:
        DataError: the file cannot be written.
        MissingError: there is no such campaign.
    """
    return write(path, judgements(store, campaign, weights=weights, phases=phases, overruled=overruled), layout)


def write(path: str | Path, found: Iterable[Record], layout: str) -> Exported:
    """Writes records into a file; those that the layout cannot hold are counted and left out.

    Raises:
        DataError: the file cannot be written.
    """
    done = Exported()
    if layout == "ranked":
        done.rows = write_rows(path, ranked_rows(found, done), shared=_TEXTS)
    else:
        done.rows = write_rows(path, _rows(found, layout, done))
    return done


def _rows(found: Iterable[Record], layout: str, done: Exported) -> Iterator[dict[str, Any]]:
    for record in found:
        done.judgements += 1
        try:
            yield from to_rows(record, layout)
        except RowError:
            done.left_out += 1


def ranked_rows(found: Iterable[Record], done: Exported) -> Iterator[dict[str, Any]]:
    """What `to_rows` gives in layout "ranked", quicker: the texts that all labels of an item share are made once."""
    last: Judgement | None = None
    texts: dict[str, Any] = {}
    for each in found:
        if last is not None and _shares_texts(each, last):
            done.judgements += 1
            yield row({**texts, "ranks": list(each.ranks), **write_notes(each)}, each.prompt.meta)
        else:
            last = None
            for whole in _rows([each], "ranked", done):
                texts, last = {name: whole[name] for name in _TEXTS}, each if isinstance(each, Judgement) else None
                yield whole


def _shares_texts(record: Record, last: Judgement) -> TypeGuard[Judgement]:
    return isinstance(record, Judgement) and record.answers is last.answers and record.prompt is last.prompt


def judgements(
    store: Store,
    campaign: int,
    *,
    weights: Mapping[str, float] | None = None,
    phases: Sequence[str] = ("work",),
    overruled: bool = False,
) -> Iterator[Judgement]:
    """The labels that count, item by item; those of items that were closed do not count.

    Args:
        weights: trust in each person by name, 1 for who is not named; it multiplies the label's weight. A label of
            weight 0 is left out. Adjudications are decisions, and are not weighed.
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
            yield from _judgements(item, given, raters, named, weights, overruled)


def _by_item(connection: Connection, campaign: int, phases: Sequence[str]) -> Iterator[tuple[Any, list[Any]]]:
    """Items that have labels, with those that count."""
    last = 0
    here = (items.c.campaign_id == campaign) & items.c.phase.in_(phases) & (items.c.state != "closed")
    of_item = select(items.c.id, items.c.prompt, items.c.answers).where(here).order_by(items.c.id).limit(_ITEMS)
    while found := connection.execute(of_item.where(items.c.id > last)).all():
        first, last = found[0].id, found[-1].id
        near = (labels.c.item_id >= first) & (labels.c.item_id <= last)
        # "+ 0": or SQLite would go by the index of campaigns, and read all labels for each piece.
        said = select(*_COLUMNS).where(near, labels.c.campaign_id + 0 == campaign, labels.c.live)
        given: defaultdict[int, list[Any]] = defaultdict(list)
        for label in connection.execute(said.order_by(labels.c.item_id, labels.c.id)):
            given[label.item_id].append(label)
        for item in found:
            if item.id in given:
                yield item, given[item.id]


def _judgements(
    item: Any,
    given: Sequence[Any],
    raters: Mapping[int, _Rater],
    versions: Mapping[int, str],
    weights: Mapping[str, float] | None,
    overruled: bool,
) -> list[Judgement]:
    if not overruled and any(row.kind == "adjudication" for row in given):
        given = [row for row in given if row.kind == "adjudication"]
    asked, answers = unpack_prompt(item.prompt), tuple(unpack_answer(each) for each in item.answers)
    made = [_judgement(each, asked, answers, raters, versions) for each in given]
    if weights is None:
        return made
    weighed = [
        each if each.kind == "adjudication" else replace(each, weight=each.weight * weights.get(each.rater or "", 1.0))
        for each in made
    ]
    return [each for each in weighed if each.weight > 0]


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
