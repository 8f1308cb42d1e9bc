"""One file format into another, with what is lost on the way counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goodheart.data.layouts import LAYOUTS, NOTHING, losses, to_rows
from goodheart.data.messages import RowError
from goodheart.data.reading import BadRow, Loaded, Sources, as_sources, iter_records
from goodheart.data.shapes import Record
from goodheart.data.sources import file_kind
from goodheart.data.writing import is_read, write_rows
from goodheart.errors import ConfigError, DataError

if TYPE_CHECKING:
    from goodheart.data.mapping import ColumnMap

_SHOWN = 10  # bad rows named in the printed summary


@dataclass(slots=True)
class Converted:
    """What became of the rows: `rows` read, `written`, rows `bad` on reading, and records the layout could not hold."""

    rows: int = 0
    written: int = 0
    bad: list[BadRow] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> records that are not in the output
    lost: dict[str, int] = field(default_factory=dict)  # what -> records that are there, but without it

    def __str__(self) -> str:
        parts = [f"{self.rows} rows read, {self.written} written"]
        parts += [f"set aside {row}" for row in self.bad[:_SHOWN]]
        parts += [f"... and {len(self.bad) - _SHOWN} more bad rows"] if len(self.bad) > _SHOWN else []
        parts += [f"left out {count}: {reason}" for reason, count in self.left_out.items()]
        parts += [f"{count} records lost {what}" for what, count in self.lost.items()]
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        bad = [{"source": row.source, "line": row.line, "reason": row.reason} for row in self.bad]
        return {"rows": self.rows, "written": self.written, "bad": bad, "left_out": self.left_out, "lost": self.lost}


def convert(
    sources: Sources,
    out: str | Path,
    *,
    to: str,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    subset: str | None = None,
    mapping: ColumnMap | None = None,
    through: Callable[[Iterable[Record]], Iterable[Record]] | None = None,
) -> Converted:
    """Read rows of any known shape and write them in one layout.

    Args:
        sources: what to read, see `reading.read_records`.
        out: file to write; its suffix names the file format (see `writing.write_rows`).
        to: layout, one of `layouts.LAYOUTS`.
        columns: new names of columns on reading, {"found": "accepted"}.
        split: split of folders and Hub data sets.
        subset: configuration of a Hub data set.
        mapping: which columns are what, for files of other columns than known, see `mapping.load_mapping`.
        through: what is done to all records together on the way, such as `partial(gather, labels="majority")`.

    Returns:
        Counts of what was written, left out and lost.

    Raises:
        ConfigError: unknown layout.
        DataError: unreadable or unwritable files, or no record that the layout can hold.
    """
    if to not in LAYOUTS:
        raise ConfigError(f"unknown layout {to!r}; known are {', '.join(LAYOUTS)}")
    if is_read(Path(out), as_sources(sources)):
        raise DataError(f"{out} is what is read; choose another file")
    loaded = Loaded()
    flat = file_kind(Path(out)) in (".csv", ".tsv")
    left_out: Counter[str] = Counter()
    lost: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        count = 0
        read = iter_records(sources, "any", loaded=loaded, columns=columns, split=split, subset=subset, mapping=mapping)
        for record in read if through is None else through(read):
            try:
                made = to_rows(record, to)
                if flat:
                    _check_flat(made)
            except RowError as error:
                left_out[str(error)] += 1
                continue
            if not made:
                left_out[NOTHING] += 1
            lost.update(losses(record, to) if made else ())
            count += len(made)
            yield from made
        if not count:
            reasons = "; ".join(f"{reason} ({times})" for reason, times in left_out.most_common(3))
            raise DataError(f"{out}: nothing to write as {to}: {reasons}")

    written = write_rows(out, rows())
    return Converted(loaded.counts["rows"], written, loaded.bad, dict(left_out), dict(lost))


def _check_flat(rows: list[dict[str, Any]]) -> None:
    """Ranked outputs would come back from a CSV cell as the text of an answer."""
    for row in rows:
        if "instruction" in row and isinstance(row.get("output"), list):
            raise RowError("a CSV file cannot hold ranked outputs; write .jsonl or .parquet")
