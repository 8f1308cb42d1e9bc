"""Stage `simulate`: simulated people rank the answers that a model gave, and what they say is compared with the truth.

Writes one row per labeller and prompt, {"prompt", "completions", "ranks", "rater", ...}, which every stage that learns
from preferences reads; who the people are is written beside it (`NAME.labellers.json`). Pairs may carry a `margin`: how
much better people say the better answer is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from goodheart.data.cells import answer, prompt, spare
from goodheart.data.examples import Compared, Skipped, list_skipped, require
from goodheart.data.files import Row, read_rows
from goodheart.data.formats import write_rows
from goodheart.data.layouts import to_rows
from goodheart.data.messages import RowError, as_list
from goodheart.data.reading import as_sources, bad_row
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.errors import ConfigError, DataError
from goodheart.feedback.agreement import agreement_with_others, raw_agreement
from goodheart.feedback.votes import TIE, comparisons
from goodheart.judges.combined import says
from goodheart.judges.function import FunctionJudge, import_function
from goodheart.judges.reliability import pair_report
from goodheart.loop.settings import SimulateConfig
from goodheart.playground.labellers import Aspects, Guideline, Labeller
from goodheart.playground.population import assign, population
from goodheart.train.config import nearest
from goodheart.train.files import replace_text

__all__ = ["SimulateConfig", "simulate"]

# Columns of an answer file that say how each answer was made; a labeller's row may hold fewer answers.
_ABOUT_ANSWERS = ("models", "finish", "tokens", "settings", "ranks", "scores")
# Degrees of preference that people can state: negligible, slightly, clearly and much better.
_DEGREES = 4
_TOO_FEW = "fewer than two different answers that say something: nothing to rank"

Asked = tuple[Row, Prompt, tuple[Answer, ...]]


@dataclass
class Labelled:
    """What was written, and how good it is."""

    out: Path
    results: dict[str, Any] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    listed: Path | None = None  # where the rows set aside are named

    def summary(self) -> str:
        found = self.results
        lines = [f"{found['labels']} labels of {found['people']} people on {found['prompts']} prompts, in {self.out}"]
        if found["pairs"]:
            lines.append(f"{_rate('accuracy', found)} against the truth on {found['pairs']} untied pairs")
            lines.append(f"{_rate('always_longest', found)}; {_rate('always_first', found)}")
        if found.get("agreement") is not None:
            lines.append(f"{_rate('agreement', found)} between two people; 0.5 by chance")
        if found.get("agreement_with_majority") is not None:
            lines.append(f"{_rate('agreement_with_majority', found)} of the others")
        if self.skipped.total:
            lines.append(f"set aside {self.skipped.total} rows: {self.skipped.summary()} (listed in {self.listed})")
        return "\n".join(lines)


def simulate(config: SimulateConfig) -> Labelled:
    """Writes the labels; returns where they are, how far people agree with each other and with the truth.

    Raises:
        ConfigError: no such function or version of the guidelines, or more `overlap` than people.
        DataError: no usable row, or the aspects are not what the labellers' weights name.
    """
    done = Labelled(config.out)
    asked = list(_read(config, done.skipped))
    require(asked, done.skipped, "prompt with answers", [str(s) for s in as_sources(config.answers)])
    people = population(config.population, config.seed)
    guideline = config.population.guideline(config.guideline)
    scored = _aspects(config, asked)
    judgements: list[Judgement] = []
    truths: list[list[float]] = []
    for row, chosen in enumerate(assign(len(asked), len(people), config.overlap, config.seed)):
        _, question, answers = asked[row]
        common = [config.population.common.taste(a, guideline) for a in scored[row]]
        for i in chosen:
            chance = Random(f"label {config.seed} {people[i].name} {row}")
            judgement = people[i].compare(question, answers, scored[row], chance, guideline)
            if config.margin:
                judgement = with_margin(judgement, people[i], scored[row], guideline, config.margin)
            judgements.append(judgement)
            truths.append(common)
    if config.truth is not None:
        truths = _truths(config.truth, judgements)
    write_rows(config.out, _rows(judgements))
    listed = [asdict(person) for person in people]
    replace_text(beside(config.out, "labellers"), json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    done.listed = list_skipped(config.out, done.skipped)
    done.results = {"labels": len(judgements), "people": len(people)} | _quality(judgements, truths)
    return done


def with_margin(
    judgement: Judgement, person: Labeller, aspects: Sequence[Aspects], guideline: Guideline | None, most: float
) -> Judgement:
    """The judgement of a pair with how much better the person says the better answer is.

    They state one of four degrees: by which quarter of the scale their own taste for the two answers differs. Where
    taste and choice disagree (a slip, haste, no look at all) they are not sure: the lowest degree, 0.

    Args:
        aspects: of the two answers.
        most: margin of the highest degree; Llama 2 (arXiv:2307.09288, table 27) has 0, 1, 2 and 3 thirds of 1, or of 3.
    """
    if judgement.ranks[0] == judgement.ranks[1]:
        return judgement
    better, worse = sorted((0, 1), key=lambda k: judgement.ranks[k])
    difference = person.taste(aspects[better], guideline) - person.taste(aspects[worse], guideline)
    degree = min(max(int(_DEGREES * difference), 0), _DEGREES - 1)
    return replace(judgement, margin=most * degree / (_DEGREES - 1))


def beside(out: Path, what: str) -> Path:
    """`labels.jsonl` -> `labels.WHAT.json`."""
    name = out.name.removesuffix(".gz").removesuffix(".zst")
    return out.with_name(f"{Path(name).stem}.{what}.json")


def _read(config: SimulateConfig, skipped: Skipped) -> Iterator[Asked]:
    """What is shown at a time: at least two different answers; an empty answer is not shown to anybody."""
    count = 0
    for source in as_sources(config.answers):
        for row in read_rows(source):
            try:
                found = _asked(row)
                if config.only is not None and not says(found[1], config.only):
                    continue
                yield from _parts(found, config.at_once)
            except RowError as error:
                skipped.add_bad([bad_row(row, error)])
                continue
            count += 1
            if count == config.limit:
                return


def _asked(row: Row) -> Asked:
    if row.error is not None:
        raise RowError(row.error)
    said = as_list(row.data.get("completions"))
    if said is None:
        raise RowError("there is no column `completions` with a list of answers")
    models, ends = (_beside(row, name, len(said)) for name in ("models", "finish"))
    meta = spare(row.data, "prompt", "completions", *_ABOUT_ANSWERS)
    question = prompt(row.data.get("prompt"), meta, system=row.data.get("system"))
    answers = tuple(
        replace(answer(text, f"answer {i}"), model=model, meta={} if end is None else {"finish": end})
        for i, (text, model, end) in enumerate(zip(said, models, ends, strict=True), 1)
        if not (isinstance(text, str) and not text.strip())
    )
    return row, question, answers


def _parts(asked: Asked, at_once: int | None) -> list[Asked]:
    """The answers of a row in groups of `at_once`, those with nothing to compare left out.

    Raises:
        RowError: none is left.
    """
    row, question, answers = asked
    size = at_once or max(len(answers), 1)
    groups = [answers[i : i + size] for i in range(0, len(answers), size)]
    parts = [(row, question, group) for group in groups if len({a.words for a in group}) > 1]
    if not parts:
        raise RowError(_TOO_FEW)
    return parts


def _beside(row: Row, column: str, count: int) -> list[Any]:
    """A column with one value per answer; None for each where there is no such column."""
    values = as_list(row.data.get(column)) or [None] * count
    if len(values) != count:
        raise RowError(f"{count} completions but {len(values)} {column}")
    return values


def _rows(judgements: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    """The labels; `finish` says of each answer how it ended, so that one that was cut off is not taken for complete."""
    for judgement in judgements:
        ends = [a.meta.get("finish") for a in judgement.answers]
        for row in to_rows(judgement, "ranked"):
            yield row | ({"finish": ends} if all(ends) else {})


def _aspects(config: SimulateConfig, asked: Sequence[Asked]) -> list[list[Aspects]]:
    """For each row, each answer's aspects, from one call of the user's function."""
    function = _function("aspects", config.aspects)
    prompts = [question for _, question, answers in asked for _ in answers]
    given = function.call(prompts, [one for _, _, answers in asked for one in answers])
    known: set[str] = set()
    for i, aspects in enumerate(given):
        if not isinstance(aspects, Mapping) or not all(_is_score(value) for value in aspects.values()):
            raise DataError(
                f"aspects {config.aspects}: result {i} is {aspects!r:.200}; return a dict of finite numbers or None"
            )
        known |= aspects.keys()
    for name, weight in config.population.weights.items():
        if weight and name not in known:
            raise DataError(
                f"aspects {config.aspects} never gives `{name}`, which population.weights names"
                f"{nearest(name, sorted(known))}"
            )
    rest = iter(given)
    return [[next(rest) for _ in answers] for _, _, answers in asked]


def _function(setting: str, named: str) -> FunctionJudge:
    """The function that a setting names; what is wrong with it is said of that setting."""
    try:
        return FunctionJudge(import_function(named), name=named)
    except ConfigError as error:
        raise ConfigError(f"{setting} {str(error).removeprefix('reward ')}") from error


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _truths(function: str, judgements: Sequence[Judgement]) -> list[list[float]]:
    judge = _function("truth", function)
    prompts = [j.prompt for j in judgements for _ in j.answers]
    scores = iter(judge.score(prompts, [a for j in judgements for a in j.answers]))
    found = [[next(scores) for _ in j.answers] for j in judgements]
    if any(score is None for row in found for score in row):
        raise DataError(f"truth {function}: it gives None for some answers; truth needs a number for each")
    return [[float(score or 0.0) for score in row] for row in found]


def _quality(judgements: Sequence[Judgement], truths: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Agreement of the labels with the truth, beside two rulers, and of people with each other."""
    compared = []
    for j in judgements:
        lengths = tuple(len(a.words) for a in j.answers)
        compared.append(Compared((), j.ranks, prompt_key=j.prompt.key, sizes=lengths, shown_order=j.shown_order))
    report = pair_report(compared, truths)
    names = [f"{name}{end}" for name in ("accuracy", "always_longest", "always_first") for end in ("", "_low", "_high")]
    numbers = {name: report[name] for name in ("prompts", "pairs", "ties", *names) if name in report}
    return numbers | _agreement(judgements)


def _agreement(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Between two people, and of each with most of the others, on pairs that both have an opinion of; each prompt
    weighs one. By chance both are 0.5. None where no two people judged the same answers."""
    found: dict[str, Any] = {"agreement": None, "agreement_with_majority": None}
    pairs = comparisons(judgements)
    if (pairs.outcome_N == TIE).all():
        return found
    votes = pairs.untied().votes()
    for name, measure in (
        ("agreement", raw_agreement(votes)),
        ("agreement_with_majority", agreement_with_others(votes)),
    ):
        if measure.value is not None:
            found |= {name: measure.value, f"{name}_low": measure.low, f"{name}_high": measure.high}
    return found


def _rate(name: str, found: Mapping[str, Any]) -> str:
    low, high = found[f"{name}_low"], found[f"{name}_high"]
    return f"{name.replace('_', ' ')} {found[name]:.3f} (95 % interval {low:.3f} to {high:.3f})"
