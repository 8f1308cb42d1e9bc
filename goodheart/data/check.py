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
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

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
    from rich.console import Console

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


@dataclass(frozen=True, slots=True)
class Lengths:
    """Spread of a set of lengths, in characters or tokens."""

    count: int
    shortest: int
    median: int
    p95: int
    longest: int
    total: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Lengths | None:
        """None where there is nothing to measure."""
        if not values:
            return None
        ordered = sorted(values)
        at = [ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95)]
        return cls(len(ordered), ordered[0], at[0], at[1], ordered[-1], sum(ordered))


@dataclass(slots=True)
class SourceReport:
    """One source. All counts are of rows unless the name says otherwise."""

    source: str
    rows: int = 0
    records: int = 0
    kinds: dict[str, int] = field(default_factory=dict)  # records of each kind
    shapes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)  # rows in which a column is present and not null
    lengths: dict[str, Lengths] = field(default_factory=dict)  # "prompt characters", "answer tokens", ...
    prompts: int = 0  # distinct ones
    duplicate_rows: int = 0  # rows equal to an earlier row in every column
    identical_pairs: int = 0
    pairs: int = 0  # ordered pairs of answers in all comparisons
    tied_pairs: int = 0
    longer_chosen: int = 0  # pairs whose better answer has more characters
    same_length: int = 0
    empty_answers: int = 0
    encoding: dict[str, int] = field(default_factory=dict)  # kind of damage -> rows
    damaged: list[BadRow] = field(default_factory=list)
    bad_rows: int = 0
    bad: list[BadRow] = field(default_factory=list)  # the first ones
    reasons: dict[str, int] = field(default_factory=dict)
    advice: str = ""  # what columns would do, where no row fits a known shape

    @property
    def longest_baseline(self) -> float | None:
        """How often "the longer answer is better" is right; equal lengths count half. None without comparisons."""
        return (self.longer_chosen + self.same_length / 2) / self.pairs if self.pairs else None


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two sources share: distinct prompts, and conversations (their first questions)."""

    first: str
    second: str
    prompts: int
    conversations: int


@dataclass(slots=True)
class CheckReport:
    """The whole report: one part for each source, what they share, and what to do about it."""

    sources: list[SourceReport]
    overlaps: list[Overlap]

    @property
    def ok(self) -> bool:
        """Whether every row can be used."""
        return not self.problems()

    def problems(self) -> list[str]:
        """What has to be looked at before training."""
        found = []
        for part in self.sources:
            if not part.rows:
                found.append(f"{part.source}: empty")
            elif not part.records:
                found.append(f"{part.source}: no row can be used. {part.advice}".rstrip())
            elif part.bad_rows:
                found.append(f"{part.source}: {part.bad_rows} of {part.rows} rows cannot be used and are set aside")
        return found

    def warnings(self) -> list[str]:
        """What may be meant, and may not."""
        found = []
        for part in self.sources:
            if part.duplicate_rows:
                found.append(f"{part.source}: {part.duplicate_rows} rows repeat an earlier row")
            if len(part.kinds) > 1:
                found.append(f"{part.source}: several kinds of rows in one source ({', '.join(part.kinds)})")
            if part.encoding:
                worst = ", ".join(f"{count} rows with {what}" for what, count in part.encoding.items())
                found.append(f"{part.source}: {worst}")
            share = part.longest_baseline
            if share is not None and part.pairs >= 50 and not 0.4 <= share <= 0.6:
                word = "longer" if share > 0.5 else "shorter"
                found.append(
                    f"{part.source}: the {word} answer is the better one in {max(share, 1 - share):.1%} of pairs; "
                    "a reward model can score that by length alone"
                )
        for overlap in self.overlaps:
            if overlap.prompts or overlap.conversations:
                found.append(
                    f"{overlap.first} and {overlap.second} share {overlap.prompts} prompts and {overlap.conversations} "
                    "conversations: never train on one and test on the other"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        parts = [{**asdict(part), "longest_baseline": part.longest_baseline} for part in self.sources]
        overlaps = [asdict(overlap) for overlap in self.overlaps]
        notes = {"ok": self.ok, "problems": self.problems(), "warnings": self.warnings()}
        return {**notes, "sources": parts, "overlaps": overlaps}

    def render(self, console: Console, *, rows: int = 10) -> None:
        """Print the report; at most `rows` bad rows of each source are shown."""
        from goodheart.data.check_view import render

        render(self, console, rows)


def check_data(
    sources: Sources,
    *,
    splits: Sequence[str] = (),
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> CheckReport:
    """Read everything once and report what is there.

    Args:
        sources: files, folders, patterns or Hub ids; each is one part of the report.
        splits: names of splits to report one by one and to compare, for folders and Hub data sets.
        subset: configuration of a Hub data set.
        columns: new names of columns on reading, {"found": "accepted"}.
        count_tokens: number of tokens of a text, where lengths in tokens are wanted.

    Raises:
        DataError: a source is missing or cannot be opened at all. Bad rows never raise.
    """
    tallies = []
    for source, split in itertools.product(as_sources(sources), splits or (None,)):
        tally = _Tally(f"{source}:{split}" if split else str(source), count_tokens)
        for row in read_rows(source, split=split, subset=subset):
            tally.add(row, columns)
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

    def add(self, row: Row, columns: Mapping[str, str] | None) -> None:
        self.part.rows += 1
        self._counters["columns"].update(name for name, value in row.data.items() if value is not None)
        self._look_for_damage(row)
        if row.data:
            whole = json.dumps(row.data, sort_keys=True, default=str).encode()
            digest = hashlib.blake2b(whole, digest_size=12).digest()
            self.part.duplicate_rows += digest in self._rows
            self._rows.add(digest)
        try:
            shape, records = parse(row, "any", columns)
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
