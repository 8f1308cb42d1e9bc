"""What is in a data set, and what is wrong with it: the report behind `goodheart data check`.

report = check_data(["train.jsonl", "test.jsonl"])
report.render(Console())
report.ok            # False where rows cannot be used
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from goodheart.data.check_report import CheckReport, Lengths, Overlap, SourceReport
from goodheart.data.files import Row, read_rows
from goodheart.data.kinds import kind_of
from goodheart.data.messages import RowError
from goodheart.data.preferences import IDENTICAL
from goodheart.data.reading import BadRow, Sources, as_sources, bad_row, parse
from goodheart.data.records import Answer, Demonstration, Judgement, Prompt, Rating, Text, Thumb
from goodheart.data.shapes import NoShape, Record, explain
from goodheart.data.splits import opening
from goodheart.data.streams import visible

if TYPE_CHECKING:
    from goodheart.data.mapping import ColumnMap

__all__ = ["CheckReport", "Lengths", "Overlap", "SourceReport", "check_data"]

_KEPT = 1000  # bad rows and damaged rows that are kept with their places; the others are counted
_EMPTY = re.compile(r"^(?!the prompt|the text).* is empty$")
# UTF-8 that was read as Windows-1252 or Latin-1 and saved again ("â€™" for an apostrophe), and its Chinese relatives.
_MOJIBAKE = re.compile(
    "â€[\u0080-\u00bf™œž˜š“”•–—¦¢]|Ã[\u0080-\u00bfƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|Â[\u0080-\u00bf]|ðŸ|ï»¿|ï¿½|锟斤拷|烫烫烫"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")
_DAMAGE: dict[str, Callable[[str], Any]] = {
    "replacement characters (U+FFFD)": lambda text: "\ufffd" in text,
    "text decoded twice (mojibake)": _MOJIBAKE.search,
    "control characters": _CONTROL.search,
}
_UNDECODABLE = "bytes that are no UTF-8"


def check_data(
    sources: Sources,
    *,
    splits: Sequence[str] = (),
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    count_tokens: Callable[[str], int] | None = None,
    mapping: ColumnMap | None = None,
) -> CheckReport:
    """Read everything once and report what is there.

    Args:
        sources: files, folders, patterns or Hub ids; each is one part of the report.
        splits: names of splits to report one by one and to compare, for folders and Hub data sets.
        subset: configuration of a Hub data set.
        columns: new names of columns on reading, {"found": "accepted"}.
        count_tokens: number of tokens of a text, where lengths in tokens are wanted.
        mapping: which columns are what, for files of other columns than known, see `mapping.load_mapping`.

    Raises:
        DataError: a source is missing or cannot be opened at all. Bad rows never raise.
    """
    tallies = []
    for source, split in itertools.product(as_sources(sources), splits or (None,)):
        tally = _Tally(f"{source}:{split}" if split else str(source), count_tokens)
        for row in read_rows(source, split=split, subset=subset):
            tally.add(row, columns, mapping)
        tallies.append(tally)
    overlaps = [
        Overlap(a.part.source, b.part.source, len(a.keys & b.keys), len(a.openings & b.openings))
        for a, b in itertools.combinations(tallies, 2)
    ]
    return CheckReport([tally.report() for tally in tallies], overlaps)


class _Tally:
    """Counts of one source while its rows go by; keeps hashes and lengths, never the rows."""

    def __init__(self, source: str, count_tokens: Callable[[str], int] | None) -> None:
        self.part = SourceReport(source)
        self.keys: set[str] = set()
        self.openings: set[str] = set()
        self._count_tokens = count_tokens
        self._rows: set[bytes] = set()
        self._lengths: dict[str, array[int]] = {}
        self._counters: dict[str, Counter[str]] = {
            name: Counter() for name in ("kinds", "shapes", "columns", "encoding", "reasons")
        }
        self._unshaped: dict[str, None] = {}

    def add(self, row: Row, columns: Mapping[str, str] | None, mapping: ColumnMap | None) -> None:
        self.part.rows += 1
        self._counters["columns"].update(name for name, value in row.data.items() if value is not None)
        self._look_for_damage(row)
        if row.data:
            whole = json.dumps(row.data, sort_keys=True, default=str).encode()
            digest = hashlib.blake2b(whole, digest_size=12).digest()
            self.part.duplicate_rows += digest in self._rows
            self._rows.add(digest)
        try:
            shape, records = parse(row, "any", columns, mapping)
        except RowError as error:
            self._add_bad(row, error)
            return
        self._counters["shapes"][shape] += 1
        for record in records:
            self._add_record(record)

    def _add_bad(self, row: Row, error: RowError) -> None:
        bad = bad_row(row, error)
        self.part.bad_rows += 1
        self._counters["reasons"][bad.reason] += 1
        self.part.identical_pairs += bad.reason == IDENTICAL
        self.part.empty_answers += bool(_EMPTY.match(bad.reason))
        if isinstance(error, NoShape):
            self._unshaped.update(dict.fromkeys(row.data))
        if len(self.part.bad) < _KEPT:
            self.part.bad.append(bad)

    def _look_for_damage(self, row: Row) -> None:
        text = "\n".join(_strings(row.data))
        kinds = [kind for kind, looks in _DAMAGE.items() if looks(text)]
        kinds += [_UNDECODABLE] if row.damaged else []
        for kind in kinds:
            self._counters["encoding"][kind] += 1
        if kinds and len(self.part.damaged) < _KEPT:
            self.part.damaged.append(BadRow(row.source, row.number, ", ".join(kinds), _around(text)))

    def _add_record(self, record: Record) -> None:
        self.part.records += 1
        self._counters["kinds"][kind_of(record)] += 1
        self.openings.add(opening(record))
        if isinstance(record, Text):
            self.keys.add(opening(record))
            self._measure("text", record.text)
            return
        prompt = record if isinstance(record, Prompt) else record.prompt
        self.keys.add(prompt.key)
        self._measure("prompt", prompt.text if prompt.text is not None else "\n\n".join(_contents(prompt)))
        if isinstance(record, Judgement):
            for each in record.answers:
                self._measure("answer", each.words)
            self._compare(record)
        elif isinstance(record, Demonstration | Rating | Thumb):
            self._measure("answer", record.answer.words)

    def _measure(self, what: str, text: str) -> None:
        self._lengths.setdefault(f"{what} characters", array("q")).append(len(text))
        if self._count_tokens is not None:
            self._lengths.setdefault(f"{what} tokens", array("q")).append(self._count_tokens(text))

    def _compare(self, judgement: Judgement) -> None:
        both = zip(judgement.answers, judgement.ranks, strict=True)
        for (first, rank), (second, other) in itertools.combinations(both, 2):
            if rank == other:
                self.part.tied_pairs += 1
                continue
            better, worse = (first, second) if rank < other else (second, first)
            self.part.pairs += 1
            self.part.longer_chosen += _size(better) > _size(worse)
            self.part.same_length += _size(better) == _size(worse)

    def report(self) -> SourceReport:
        for name, counter in self._counters.items():
            setattr(self.part, name, dict(counter.most_common()))
        spread = {what: Lengths.of(values) for what, values in self._lengths.items()}
        self.part.lengths = {what: lengths for what, lengths in spread.items() if lengths is not None}
        self.part.prompts = len(self.keys)
        if self._unshaped and not self.part.records:
            self.part.advice = explain(self._unshaped, "any")
        return self.part


def _contents(prompt: Prompt) -> list[str]:
    return [turn.content for turn in prompt.messages]


def _size(answer: Answer) -> int:
    return len(answer.words)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _around(text: str) -> str:
    """The neighbourhood of the first damage."""
    found = re.search("\ufffd", text) or _MOJIBAKE.search(text) or _CONTROL.search(text)
    start = max(0, found.start() - 30) if found else 0
    return visible(text[start : start + 90], 90)
