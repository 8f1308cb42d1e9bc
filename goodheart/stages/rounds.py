"""Rounds of rejection sampling: what a round leaves behind, and what it takes up of those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from goodheart.data.files import read_rows
from goodheart.data.messages import RowError
from goodheart.data.records import Answer, Prompt
from goodheart.errors import ConfigError, DataError, Interrupted
from goodheart.stages.draw import Judging, sampled
from goodheart.stages.kept import Kept, identity
from goodheart.stages.selection import OF_ANSWERS, Candidate
from goodheart.train.files import sha256_of
from goodheart.train.session import Session

ANSWERS = "answers.jsonl"  # of a run folder
DRAWN = "drawn"  # what is kept there until the run is done

_CHUNK = 128  # answers scored between two writes to disk


def answers_of(name: str) -> Path:
    """Where an earlier run keeps its answers.

    Raises:
        ConfigError: it has none.
    """
    place = Path(name).expanduser()
    file = place / ANSWERS if place.is_dir() else place
    if not file.is_file():
        raise ConfigError(f"history {name}: no {ANSWERS} there; give run folders of `goodheart rejection`")
    return file


def answers_row(group: Sequence[Candidate]) -> dict[str, Any]:
    """All answers to one prompt for a file, in the shape of `goodheart sample`."""
    prompt = group[0].prompt
    terms = {"terms": [dict(each.terms) for each in group]} if group[0].terms else {}
    return {
        **prompt.meta,
        "prompt": prompt.as_column(),
        "completions": [each.answer.text for each in group],
        "scores": [each.score for each in group],
        "finish": [each.answer.meta.get("finish") for each in group],
        **terms,
    }


def recall(name: str, file: Path, judging: Judging, session: Session, work: str) -> list[Candidate]:
    """The answers of an earlier round, scored by this round's reward: scores of different rewards do not compare.

    Args:
        name: of that round.
        work: identity of this one; scores are kept under it as they come.

    Raises:
        DataError: a row is not as `answers_row` writes it.
        Interrupted: asked to stop; the scores so far are kept.
    """
    pairs = list(_read(file))
    key = f"{work}-{identity(sha256_of(file))[:8]}-{session.world.rank}"
    kept = Kept(session.run.path / DRAWN / f"{key}.jsonl", key)
    scores: dict[int, dict[str, Any]] = {i: row for line in kept.rows for i, row in line}
    left = [i for i in session.world.shard(range(len(pairs))) if i not in scores]
    with session.run.progress(len(left), f"scoring {name}", "answers", patient=True) as bar:
        for start in range(0, len(left), _CHUNK):
            chunk = left[start : start + _CHUNK]
            rows = judging([pairs[i][0] for i in chunk], [pairs[i][1] for i in chunk])
            found = [(i, dict(row)) for i, row in zip(chunk, rows, strict=True)]
            kept.add(found)
            scores |= found
            bar.advance(len(chunk))
            if session.stop.requested:
                raise Interrupted(f"stopped; {len(scores)} scores are kept and the same command continues")
    everything = {i: row for part in session.world.gather_objects(scores) for i, row in part.items()}
    return [
        Candidate(*pairs[i], everything[i]["score"], everything[i].get("terms", {}), name) for i in sorted(everything)
    ]


def _read(file: Path) -> Iterator[tuple[Prompt, Answer]]:
    for row in read_rows(file):
        try:
            if row.error is not None or "completions" not in row.data:
                raise RowError(row.error or "it has no `completions`")
            prompt, answers = sampled(row.data)
        except RowError as error:
            raise DataError(f"{row.source}:{row.number}: {error}") from error
        prompt = replace(prompt, meta={k: v for k, v in prompt.meta.items() if k not in OF_ANSWERS})
        yield from ((prompt, answer) for answer in answers)
