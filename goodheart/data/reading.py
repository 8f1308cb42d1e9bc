"""Rows to records, with the bad ones set aside, counted and named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from goodheart.data.files import Row, read_rows
from goodheart.data.kinds import WrongKind, as_kind
from goodheart.data.messages import RowError
from goodheart.data.rankings import merged
from goodheart.data.shapes import NoShape, Record, explain, shape_of
from goodheart.data.streams import visible
from goodheart.errors import DataError

if TYPE_CHECKING:
    from goodheart.data.mapping import ColumnMap

Kind = Literal["any", "demonstration", "preference", "prompt", "text", "rating", "thumb"]
Sources = str | Path | Sequence[str | Path]
_COUNTS = ("rows", "records", "bad", "skipped", "damaged")
_GIVE_UP = 1000  # rows without one of a known shape, after which a file is refused without reading on


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was set aside."""

    source: str
    line: int  # line, or row number where the format has no lines
    reason: str
    excerpt: str = ""  # the beginning of the row, safe to print

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}" + (f": {self.excerpt}" if self.excerpt else "")


@dataclass(slots=True)
class Loaded:
    """What was read.

    `counts` has "rows", "records", "bad", "skipped" (good rows that hold nothing of the wanted kind, such as thumbs
    down where demonstrations were asked for) and "damaged" (rows with bytes that are no UTF-8).
    """

    records: list[Any] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    shapes: dict[str, int] = field(default_factory=dict)  # rows of each shape, by the shape's name
    places: list[tuple[str, int]] = field(default_factory=list)  # source and line of each record, from `read_records`

    def reasons(self) -> dict[str, int]:
        """How many rows are bad for each reason, most frequent first."""
        return dict(Counter(bad.reason for bad in self.bad).most_common())


def parse(
    row: Row, kind: Kind = "any", columns: Mapping[str, str] | None = None, mapping: ColumnMap | None = None
) -> tuple[str, Sequence[Record]]:
    """Shape name and records of one row; `mapping` explains rows that are of no known shape.

    Raises:
        RowError: the row is bad; the text says why.
    """
    if row.error is not None:
        raise RowError(row.error)
    data = {columns.get(name, name): value for name, value in row.data.items()} if columns else row.data
    name, read = ("mapped", mapping.read) if mapping is not None else _known(data, kind)
    try:
        return name, [view for record in read(data) for view in as_kind(record, kind)]
    except RowError:
        raise
    # a cell of a type that no reader foresaw
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise RowError(f"cannot be read as {name} ({type(error).__name__}: {visible(str(error))})") from error


def _known(data: Mapping[str, Any], kind: Kind) -> tuple[str, Callable[[Mapping[str, Any]], Sequence[Record]]]:
    shape = shape_of(data, kind)
    return shape.name, shape.read


def iter_records(
    sources: Sources,
    kind: Kind,
    *,
    loaded: Loaded | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    subset: str | None = None,
    streaming: bool = False,
    mapping: ColumnMap | None = None,
) -> Iterator[Record]:
    """Records one by one in constant memory; counts and bad rows go to `loaded` (its `records` stay empty).

    Arguments and errors as for `read_records`.
    """
    placed = _placed_records(
        sources,
        kind,
        Loaded() if loaded is None else loaded,
        columns=columns,
        split=split,
        subset=subset,
        streaming=streaming,
        mapping=mapping,
    )
    return (record for _, record in placed)


def _placed_records(sources: Sources, kind: Kind, loaded: Loaded, **options: Any) -> Iterator[tuple[Row, Record]]:
    """Records with their rows; pairs cut from one ranking, standing together, are that ranking again."""
    placed = _parsed(sources, kind, loaded, **options)
    for each in merged(placed, lambda item: item[1], lambda item, whole: (item[0], whole)):
        loaded.counts["records"] += 1
        yield each


def _parsed(
    sources: Sources,
    kind: Kind,
    loaded: Loaded,
    *,
    columns: Mapping[str, str] | None,
    split: str | None,
    subset: str | None,
    streaming: bool,
    mapping: ColumnMap | None,
) -> Iterator[tuple[Row, Record]]:
    for source in as_sources(sources):
        before, good, shaped = loaded.counts["rows"], 0, False
        seen: dict[str, None] = {}  # columns of rows that fit nothing
        # A list of prompts as plain text has one on each line; documents go over many.
        rows = read_rows(source, split=split, subset=subset, streaming=streaming, text_lines=kind == "prompt")
        for row in rows:
            loaded.counts["rows"] += 1
            loaded.counts["damaged"] += row.damaged
            try:
                shape, records = parse(row, kind, columns, mapping)
            except RowError as error:
                loaded.bad.append(bad_row(row, error))
                loaded.counts["bad"] += 1
                if isinstance(error, NoShape | WrongKind):
                    seen.update(dict.fromkeys(row.data))
                shaped = shaped or not (isinstance(error, NoShape) or row.error)
                if not good and not shaped and loaded.counts["rows"] - before >= _GIVE_UP:
                    break
                continue
            good, shaped = good + 1, True
            loaded.shapes[shape] = loaded.shapes.get(shape, 0) + 1
            loaded.counts["skipped"] += not records
            yield from ((row, record) for record in records)
        _refuse_useless(source, kind, loaded, loaded.counts["rows"] - before, good, list(seen))


def bad_row(row: Row, error: RowError) -> BadRow:
    """Where a row lies, what is wrong with it and how it begins, safe to print."""
    excerpt = row.raw
    if row.data and not excerpt:
        excerpt = visible(json.dumps(row.data, ensure_ascii=False, default=str)[:400])
    return BadRow(row.source, row.number, visible(str(error), 300), excerpt)


def _refuse_useless(source: str | Path, kind: str, loaded: Loaded, rows: int, good: int, unshaped: list[str]) -> None:
    if not rows:
        raise DataError(f"{source}: the file is empty; it has no rows")
    if good:
        return
    first = loaded.bad[-rows]
    wanted = "row of a known shape" if kind == "any" else f"row that gives a {kind}"
    if unshaped:
        raise DataError(f"{source}: no {wanted} among {rows} rows: {first.reason}. {explain(unshaped, kind)}")
    raise DataError(f"{source}: no {wanted}: all {rows} rows are bad. Line {first.line}: {first.reason}. "
                    "`goodheart data check` lists the others")  # fmt: skip


def as_sources(sources: Sources) -> list[str | Path]:
    """One or several sources as a list.

    Raises:
        DataError: there is none.
    """
    listed = [sources] if isinstance(sources, str | Path) else list(sources)
    if not listed:
        raise DataError("no data given: name at least one file, folder or Hub id")
    return listed


def read_records(
    sources: Sources,
    kind: Kind,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    subset: str | None = None,
    streaming: bool = False,
    mapping: ColumnMap | None = None,
) -> Loaded:
    """Read records of one kind from files, folders, patterns or Hub ids, in order.

    Args:
        sources: one source or a list of them, see `files.read_rows`.
        kind: what is wanted. Rows of other kinds are turned into it where that has a plain meaning: a demonstration
            is the chosen answer of a pair, a prompt is the prompt of anything, thumbs are the two ends of a ranking.
            "any" gives each row as what it is.
        limit: stop after this many records.
        columns: new names of columns, {"found": "accepted"}, for files that fit no shape as they are.
        split: split of folders and Hub data sets; None takes "train" where there are several.
        subset: configuration of a Hub data set.
        streaming: read Hub data sets over the network row by row.
        mapping: which columns are what, for files that fit no shape by renaming alone, see `mapping.load_mapping`.

    Raises:
        DataError: a source is missing, empty, unreadable, of other columns than known, or all its rows are bad.
    """
    loaded = Loaded()
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, found {limit}")
    placed = _placed_records(
        sources, kind, loaded, columns=columns, split=split, subset=subset, streaming=streaming, mapping=mapping
    )
    for row, record in placed:
        loaded.records.append(record)
        loaded.places.append((row.source, row.number))
        if limit is not None and len(loaded.records) == limit:
            break
    loaded.counts["records"] = len(loaded.records)
    return loaded
