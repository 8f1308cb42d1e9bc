"""Score or compare answers with a reward model or function, row by row (adds columns, keeps the rest)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from goodheart.data.examples import Skipped, require
from goodheart.data.files import Row, read_rows
from goodheart.data.messages import RowError
from goodheart.data.reading import as_sources, parse
from goodheart.data.records import Answer, Judgement, Prompt, Text
from goodheart.data.writing import write_rows
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
            records = [_record(row, found) for row in chunk]
            prompts = [r.prompt for r in records if r is not None for _ in _answers(r)]
            answers = [a for r in records if r is not None for a in _answers(r)]
            refused: dict[int, str] = {}
            scores = judge.score(prompts, answers, refused.__setitem__)
            start = 0
            for row, record in zip(chunk, records, strict=True):
                if record is None:
                    continue
                stop = start + len(_answers(record))
                reason = next((refused[i] for i in range(start, stop) if i in refused), None)
                if reason is None:
                    yield {**row.data, **_columns(record, scores[start:stop], found)}
                else:
                    found.skipped.add(reason, f"{row.source}:{row.number}", str(row.data))
                start = stop
            bar.advance(len(chunk))


def _record(row: Row, found: Scored) -> Any:
    """The row's record with at least one answer; None where it has none (noted in `found`)."""
    try:
        _, records = parse(row, "any")
        if len(records) != 1 or isinstance(records[0], Prompt | Text):
            raise RowError("the row has no answer to score")
        return records[0]
    except RowError as error:
        found.skipped.add(str(error), f"{row.source}:{row.number}", str(row.data))
        return None


def _answers(record: Any) -> Sequence[Answer]:
    return record.answers if isinstance(record, Judgement) else (record.answer,)


def _columns(record: Any, scores: Sequence[float | None], found: Scored) -> dict[str, Any]:
    """New columns of a row; a pair with a winner counts towards the accuracy."""
    found.rows += 1
    if not isinstance(record, Judgement):
        return {"score": scores[0]}
    if len(scores) != 2:
        return {"scores": list(scores)}
    good = record.ranks.index(min(record.ranks))
    chosen, rejected = scores[good], scores[1 - good]
    if record.ranks[0] != record.ranks[1] and chosen is not None and rejected is not None:
        found.pairs += 1
        found.right += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
    return {"score_chosen": chosen, "score_rejected": rejected}
