"""The parts of a check report, its verdict, and its plain-data form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from goodheart.data.reading import BadRow

if TYPE_CHECKING:
    from rich.console import Console


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + "s" * (count != 1)


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
                found.append(f"{part.source}: {part.bad_rows} of {_plural(part.rows, 'row')} cannot be used")
        return found

    def warnings(self) -> list[str]:
        """What may be meant, and may not."""
        found = []
        for part in self.sources:
            if part.duplicate_rows:
                found.append(f"{part.source}: {_plural(part.duplicate_rows, 'row')} the same as an earlier one")
            if len(part.kinds) > 1:
                found.append(f"{part.source}: several kinds of rows in one source ({', '.join(part.kinds)})")
            if part.encoding:
                worst = ", ".join(f"{_plural(count, 'row')} with {what}" for what, count in part.encoding.items())
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
                shared = f"{_plural(overlap.prompts, 'prompt')} and {_plural(overlap.conversations, 'conversation')}"
                found.append(
                    f"{overlap.first} and {overlap.second} share {shared}: never train on one and test on the other"
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
