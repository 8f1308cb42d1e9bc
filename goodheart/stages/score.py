"""Score or compare answers with a reward model or function, row by row (adds columns, keeps the rest)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from goodheart.data.examples import Skipped, require
from goodheart.data.files import read_rows
from goodheart.data.messages import RowError
from goodheart.data.reading import as_sources, parse
from goodheart.data.records import Judgement, Prompt, Text
from goodheart.data.writing import write_rows
from goodheart.errors import TemplateError
from goodheart.judges.load import Judge, load_judge
from goodheart.losses.reward import wilson_interval
from goodheart.train.config import Settings
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.progress import Progress

_CHUNK = 256  # rows between two moves of the progress bar


class ScoreConfig(Settings):
    """Settings of scoring."""

    reward: str  # run folder, sequence-classification folder, or package.module:function
    data: str | list[str]
    out: Path
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = Field(16384, ge=1)
    quiet: bool = False


@dataclass
class Scored:
    """What scoring found: where it wrote, how many rows, and on pairs how often the chosen answer scored higher."""

    out: Path
    rows: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    pairs: int = 0
    right: float = 0.0  # equal scores count half

    @property
    def accuracy(self) -> float | None:
        return self.right / self.pairs if self.pairs else None

    def summary(self) -> str:
        text = f"{self.rows} rows written to {self.out}"
        if self.accuracy is not None:
            low, high = wilson_interval(self.right, self.pairs)
            text += f"\naccuracy {self.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}) on {self.pairs} pairs"
        if self.skipped.total:
            text += f"\nset aside {self.skipped.total} rows: {self.skipped.summary()}"
        return text


def score(config: ScoreConfig) -> Scored:
    """Writes every row with its `score`, or `score_chosen` and `score_rejected` on pairs, or `scores` on K answers.

    Raises:
        DataError: no row could be scored.
    """
    device = World.start(config.device).device
    judge = load_judge(
        config.reward, dtype=resolve_dtype(config.dtype, device), device=device, max_tokens=config.max_tokens
    )
    sources = as_sources(config.data)
    found = Scored(config.out)
    write_rows(config.out, _scored_rows(sources, judge, found, config.quiet))
    require([None] * found.rows, found.skipped, "row", [str(s) for s in sources])
    return found


def _scored_rows(sources: list[str | Path], judge: Judge, found: Scored, quiet: bool) -> Iterator[dict[str, Any]]:
    """Rows with their scores, in order; only a chunk of them is in memory at a time."""
    rows = (row for source in sources for row in read_rows(source))
    with Progress(0, "scoring", unit="rows", shown=not quiet) as bar:
        while chunk := list(islice(rows, _CHUNK)):
            kept: list[tuple[dict[str, Any], Any]] = []
            for row in chunk:
                where = f"{row.source}:{row.number}"
                try:
                    _, records = parse(row, "any")
                    if len(records) != 1 or isinstance(records[0], Prompt | Text):
                        raise RowError("the row has no answer to score")
                    kept.append((row.data, _scores(judge, records[0])))
                except (RowError, TemplateError) as error:
                    found.skipped.add(str(error), where, str(row.data))
            for data, (columns, right) in kept:
                found.rows += 1
                found.pairs += right is not None
                found.right += right or 0.0
                yield {**data, **columns}
            bar.advance(len(chunk))


def _scores(judge: Judge, record: Any) -> tuple[dict[str, Any], float | None]:
    """New columns of a row, and for a pair with a winner whether the judge agrees (0.5 for equal scores)."""
    if not isinstance(record, Judgement):
        return {"score": judge.score([record.prompt], [record.answer])[0]}, None
    scores = judge.score([record.prompt] * len(record.answers), record.answers)
    if len(scores) != 2:
        return {"scores": scores}, None
    good = record.ranks.index(min(record.ranks))
    chosen, rejected = scores[good], scores[1 - good]
    columns = {"score_chosen": chosen, "score_rejected": rejected}
    if record.ranks[0] == record.ranks[1] or chosen is None or rejected is None:
        return columns, None
    return columns, 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
