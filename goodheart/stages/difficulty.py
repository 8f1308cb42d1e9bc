"""How hard each prompt is for a model, or each pair for a judge, from answers that have been scored.

Of answers (`goodheart sample`, then `goodheart score`) it writes the prompts with measured columns; of scored pairs and
rankings the rows as they are with one more. A `curriculum` reads these columns.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goodheart.data.cells import number
from goodheart.data.examples import Skipped, list_skipped, require
from goodheart.data.files import Row, read_rows
from goodheart.data.messages import RowError, as_list
from goodheart.data.reading import as_sources, bad_row, parse
from goodheart.data.records import Judgement, Prompt, Text
from goodheart.data.writing import write_rows
from goodheart.errors import DataError
from goodheart.judges.difficulty import LARGEST, middles, of_answers, pairs_report, prompts_report, ranking_margin
from goodheart.stages.draw import sampled
from goodheart.stages.selection import OF_ANSWERS, question
from goodheart.stages.settings.difficulty import DifficultyConfig
from goodheart.train.files import replace_text

__all__ = ["DifficultyConfig", "difficulty"]

# Columns that say nothing of the prompt: what was said to it, by whom, and how good it was.
_ABOUT_ANSWERS = (
    *OF_ANSWERS,
    *("completion", "score", "models", "model", "tokens", "settings", "best_of", "scores_given", "score_given"),
    *("pass_rate", "reward_mean", "reward_std", "answers_measured", "round"),
)
_NO_SCORE = "no score: let `goodheart score` write them first"
_NO_OPINION = "an answer of the pair has no score"
_TIED = "all answers tie: nothing is preferred to anything"
_BAR_WIDTH = 30  # characters
_MOST_KINDS = 20  # values of a column that are printed; the figures hold all


@dataclass
class Measured:
    """Where the rows are, and what they are like."""

    out: Path
    results: dict[str, Any] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    listed: Path | None = None  # where the rows set aside are named

    def summary(self) -> str:
        found = self.results
        lines = list(_about_prompts(found) if "prompts" in found else _about_pairs(found))
        kinds = list(found.get("kinds", {}).items())
        lines += [f"  {name}: {_line(row)}" for name, row in kinds[:_MOST_KINDS]]
        if len(kinds) > _MOST_KINDS:
            lines.append(f"  and {len(kinds) - _MOST_KINDS} more values of that column")
        if self.skipped.total:
            lines.append(f"set aside {self.skipped.total}: {self.skipped.summary()} (listed in {self.listed})")
        return "\n".join([*lines, f"written to {self.out}, the figures to {beside(self.out)}"])


def difficulty(config: DifficultyConfig) -> Measured:
    """Measures; returns where the rows are and what they are like.

    Prompts get `pass_rate`, `reward_mean`, `reward_std` (of a sample; empty with one answer) and `answers_measured`;
    rows that ask the same to the letter, with the same columns, are one prompt, and columns that are named as those of
    answers (`_ABOUT_ANSWERS`: `score`, `model`, `round` and others) are neither compared nor kept. Pairs and
    rankings get `margin_measured`.

    Raises:
        DataError: nothing can be measured, or the data hold both kinds.
    """
    found = Measured(config.out)
    sources = as_sources(config.data)
    asked: dict[str, _Asked] = {}
    pairs: list[dict[str, Any]] = []
    for row in (row for source in sources for row in read_rows(source)):
        try:
            if _is_ranked(row):
                pairs.append(_pair(row))
            else:
                _add_answers(asked, row)
        except RowError as error:
            found.skipped.add_bad([bad_row(row, error)])
        if asked and pairs:
            raise DataError(f"{row.source}:{row.number}: the data hold answers and pairs: measure them apart")
    if pairs:
        found.results = pairs_report([row["margin_measured"] for row in pairs], _kinds(pairs, config.kind))
        write_rows(config.out, pairs)
    else:
        enough = list(_enough(asked.values(), config.min_answers, found.skipped))
        require(enough, found.skipped, "row with scores", [str(s) for s in sources])
        scores = [each.scores for each in enough]
        rows = [{**each.prompt.meta, "prompt": each.prompt.as_column()} for each in enough]
        bar = config.bar if config.bar is not None else _mean([x for own in scores for x in own])
        measured = [of_answers(own, bar) for own in scores]
        found.results = prompts_report(measured, bar, _kinds(rows, config.kind))
        write_rows(config.out, [row | each.columns() for row, each in zip(rows, measured, strict=True)])
    replace_text(beside(config.out), json.dumps(found.results, indent=1, ensure_ascii=False) + "\n")
    found.listed = list_skipped(config.out, found.skipped)
    return found


def beside(out: Path) -> Path:
    """`prompts.jsonl` -> `prompts.difficulty.json`."""
    name = out.name.removesuffix(".gz").removesuffix(".zst")
    return out.with_name(f"{Path(name).stem}.difficulty.json")


@dataclass
class _Asked:
    """A prompt, where it first stands, and the scores of its answers that have one."""

    prompt: Prompt
    where: str
    scores: list[float] = field(default_factory=list)


def _is_ranked(row: Row) -> bool:
    return row.error is None and (row.data.get("ranks") is not None or "score_chosen" in row.data)


def _add_answers(asked: dict[str, _Asked], row: Row) -> None:
    """Adds the scores of a row to those of its prompt."""
    if row.error is not None:
        raise RowError(row.error)
    if as_list(row.data.get("completions")):
        prompt, answers = sampled(row.data)
        given = as_list(row.data.get("scores"))
        if given is not None and len(given) != len(answers):
            raise RowError(f"{len(given)} scores for {len(answers)} answers")
    else:
        _, records = parse(row, "any")
        if len(records) != 1 or isinstance(records[0], Prompt | Text):
            raise RowError("the row has no answer")
        prompt = records[0].prompt
        given = [row.data["score"]] if "score" in row.data else None
    if given is None:
        raise RowError(_NO_SCORE)
    kept = {name: value for name, value in prompt.meta.items() if name not in _ABOUT_ANSWERS}
    bare = Prompt(messages=prompt.messages, text=prompt.text, meta=kept)
    scores = [_score(score) for score in given if score is not None and score != ""]
    asked.setdefault(question(bare), _Asked(bare, f"{row.source}:{row.number}")).scores += scores


def _pair(row: Row) -> dict[str, Any]:
    """The row with how far the judge puts better answers over worse ones."""
    _, records = parse(row, "preference")
    if len(records) != 1 or not isinstance(records[0], Judgement):
        raise RowError("the row holds no preference")
    ranks = records[0].ranks
    if len(set(ranks)) == 1:
        raise RowError(_TIED)
    if "score_chosen" in row.data and len(ranks) == 2:
        good = ranks.index(min(ranks))
        named = {good: row.data["score_chosen"], 1 - good: row.data.get("score_rejected")}
        given: Sequence[Any] = [named[i] for i in range(2)]
    else:
        given = as_list(row.data.get("scores")) or []
    if len(given) != len(ranks):
        raise RowError(_NO_SCORE)
    if any(score is None or score == "" for score in given):
        raise RowError(_NO_OPINION)
    return {**row.data, "margin_measured": ranking_margin(ranks, [_score(score) for score in given])}


def _score(value: Any) -> float:
    found = number(value, "score")
    if abs(found) > LARGEST:
        raise RowError(f"score cannot be {found:g}")
    return found


def _enough(asked: Iterable[_Asked], least: int, skipped: Skipped) -> Iterator[_Asked]:
    for each in asked:
        if len(each.scores) >= least:
            yield each
        else:
            reason = f"fewer than {least} answers with a score" if least > 1 else "no answer has a score"
            skipped.add(reason, each.where, json.dumps(each.prompt.as_column(), ensure_ascii=False))


def _kinds(rows: Sequence[Mapping[str, Any]], column: str | None) -> dict[str, list[int]]:
    """Places of the rows of each value of a column; a row without one is of kind "-".

    Raises:
        DataError: no row has the column.
    """
    if column is None:
        return {}
    if not any(column in row for row in rows):
        raise DataError(f"kind: no row has a column `{column}`; there are {', '.join(sorted(rows[0]))}")
    found: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        value = row.get(column, "-")
        found[value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)].append(place)
    return dict(sorted(found.items()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _about_prompts(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['prompts']} prompts, {found['answers']} answers; a pass is a score over {found['bar']:.4g}"
    yield _line(found)
    yield (
        f"all answers pass: {found['all_pass']:.1%} of the prompts; none: {found['none_pass']:.1%}; "
        f"no spread of scores: {found['no_spread']:.1%}"
    )
    if found["reliability"] is not None:
        yield f"reliability of the mean scores {found['reliability']:.2f}: share of their variance that is no noise"
    yield from _histogram("pass rate", found["histogram"])


def _about_pairs(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['pairs']} pairs; {_line(found)}"
    yield from _histogram("margin", found["histogram"])


def _line(row: Mapping[str, Any]) -> str:
    if "margin" in row:
        return f"{row['pairs']} rows, mean margin {row['margin']:.3f}, the judge prefers the other {row['against']:.1%}"
    spread = "" if row["reward_std"] is None else f", spread within a prompt {row['reward_std']:.3f}"
    return f"{row['prompts']} prompts, pass rate {row['pass_rate']:.3f}, mean score {row['reward_mean']:.3f}{spread}"


def _histogram(title: str, found: Mapping[str, Any]) -> Iterator[str]:
    most = max(found["counts"])
    yield f"{title} (middle of each bin), rows:"
    for middle, count in zip(middles(found), found["counts"], strict=True):
        yield f"  {middle:8.2f}  {count:6d}  {'#' * round(_BAR_WIDTH * count / most)}".rstrip()
