"""Compare models by their answers to the same prompts: win rates, leaderboard, aspects, tics, examples.

1 read     the answer files; only prompts that all of them answer
2 score    every answer by the judge that decides wins, and by the function that gives aspects
3 compare  all pairs of models
4 write    results.json, and scored.jsonl with every answer and its scores
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from goodheart.data.records import Answer, Prompt
from goodheart.data.writing import write_rows
from goodheart.errors import DataError
from goodheart.evaluate.answers import Answers, read_answers
from goodheart.evaluate.aspects import aspects_of, check_names
from goodheart.evaluate.examples import choose_examples
from goodheart.evaluate.interval import (
    Bootstrap,
    Samples,
    is_yes_no,
    measures,
    prompt_means,
    select,
    surely_differs,
    within_unit,
)
from goodheart.evaluate.leaderboard import leaderboard
from goodheart.evaluate.reward_model import against_judge, against_labels, probe
from goodheart.evaluate.settings import LOWER, EvaluateConfig
from goodheart.evaluate.style import tic_measures, tics_changed, tics_of
from goodheart.evaluate.wins import Entry, by_prompt, mirrored, pairs, win_record
from goodheart.judges.load import Judge, load_judge
from goodheart.train.config import listed
from goodheart.train.lineage import plain
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.run import Run

__all__ = ["EvaluateConfig", "evaluate"]

SCORE = "score"  # the name of the deciding judge's scores among the aspects


def evaluate(config: EvaluateConfig) -> Path:
    """Runs the stage; returns its folder with `results.json`.

    Raises:
        DataError: a file cannot be read, no prompt is shared, or the judge has no opinion on anything.
        ConfigError: no such function, or `lower_is_better` names no aspect. ModelError: no such model.
    """
    files = [str(file) for file in config.answers.values()]
    files += listed(config.labels)
    judges = {"score": config.score, "aspects": config.aspects, "reward": config.reward}
    parents = {role: name for role, name in judges.items() if name is not None}
    settings = config.model_dump(mode="json")
    with Run.open(
        config.out,
        stage="evaluate",
        config=settings,
        parents=parents,
        data=files,
        seed=config.seed,
        quiet=config.quiet,
    ) as run:
        if not run.finished:
            found = read_answers(config.answers)
            scored = _score(config, found, run)
            write_rows(run.path / "scored.jsonl", _rows(found, scored))
            run.finish(plain(results(config, found, scored) | _reward_model(config, found, scored[SCORE], run)))
        return run.path


def results(config: EvaluateConfig, found: Answers, scored: Mapping[str, dict[str, Samples]]) -> dict[str, Any]:
    """Everything that results.json holds; `scored`: aspect -> model -> values per prompt and answer."""
    bootstrap = Bootstrap(len(found.prompts), config.resamples, config.seed)
    tics = tics_of(found.models)
    wins, rates = _wins(found, scored[SCORE], tics["length"], bootstrap, config.tie)
    last = found.names[-1]
    changes = config.changes or [(name, last) for name in found.names[:-1]]
    return {
        "prompts": len(found.prompts),
        "left_out": found.left_out,
        "models": _table(scored, bootstrap),
        "differences": _differences(found, scored, bootstrap),
        "wins": wins,
        "leaderboard": leaderboard(found.names, rates, bootstrap),
        "tics": tic_measures(tics, bootstrap),
        "tics_changed": [row for start, to in changes for row in tics_changed(tics, start, to, bootstrap)],
        "by_kind": _by(found, scored, bootstrap, "kind"),
        "by_language": _by(found, scored, bootstrap, "language"),
        "examples": choose_examples(found, scored, config.examples),
        "judge": config.score,
        "lower_is_better": [aspect for aspect in config.lower_is_better if aspect in scored],
        "yes_no": [aspect for aspect, models in scored.items() if is_yes_no(*models.values())],
        "unit_interval": [aspect for aspect, models in scored.items() if within_unit(*models.values())],
    }


def _score(config: EvaluateConfig, found: Answers, run: Run) -> dict[str, dict[str, Samples]]:
    scored: dict[str, dict[str, Samples]] = {SCORE: {}}
    flat = {name: _flat(found, name) for name in found.names}
    if config.aspects is not None:
        for name, (asked, said) in flat.items():
            for aspect, values in aspects_of(config.aspects, asked, said).items():
                scored.setdefault(aspect, {})[name] = _split(values, found.models[name])
    check_names(config.lower_is_better, scored, unasked=LOWER)
    judge = _judge(config, config.score)
    with run.progress(len(flat), "scoring", "models") as bar:
        for name, (asked, said) in flat.items():
            scored[SCORE][name] = _split(judge.score(asked, said), found.models[name])
            bar.advance()
    for name, scores in scored[SCORE].items():
        if not any(x is not None for own in scores for x in own):
            raise DataError(f"{config.answers[name]}: {config.score} has no opinion on any answer of `{name}`")
    # An aspect that the function gave for some models only does not apply to the others.
    blank: dict[str, Samples] = {name: [[None] * len(own) for own in samples] for name, samples in found.models.items()}
    return {aspect: {name: own.get(name, blank[name]) for name in found.models} for aspect, own in scored.items()}


def _flat(found: Answers, name: str) -> tuple[list[Prompt], list[Answer]]:
    """Every answer of a model beside its prompt."""
    pairs = [(p, a) for p, own in zip(found.prompts, found.models[name], strict=True) for a in own]
    return [p for p, _ in pairs], [a for _, a in pairs]


def _judge(config: EvaluateConfig, name: str) -> Judge:
    device = World.start(config.device).device
    return load_judge(name, dtype=resolve_dtype(config.dtype, device), device=device, max_tokens=config.max_tokens)


def _reward_model(
    config: EvaluateConfig, found: Answers, truth: Mapping[str, Samples], run: Run
) -> dict[str, dict[str, Any]]:
    """What the report says of the reward model; nothing where none is named."""
    if config.reward is None:
        return {}
    model = _judge(config, config.reward)
    chosen = range(0, len(found.prompts), -(-len(found.prompts) // config.reward_prompts))  # spread over all kinds
    with run.progress(3 if config.labels else 2, "examining the reward model", "parts") as bar:
        agreement = against_judge(model, found, truth, chosen)
        bar.advance()
        # one answer to each prompt, of every model in turn
        turns = {i: found.models[found.names[n % len(found.names)]][i][:1] for n, i in enumerate(chosen)}
        prompts, said = [found.prompts[i] for i in chosen], list(turns.values())
        probes = probe(model, prompts, said, resamples=config.resamples, seed=config.seed)
        bar.advance()
        report = {"model": config.reward, "against_judge": agreement, "probes": probes}
        if config.labels:
            report["against_labels"] = against_labels(model, config.labels)
            bar.advance()
    return {"reward_model": report}


def _split(values: Sequence[float | None], samples: Sequence[Sequence[Any]]) -> Samples:
    place = iter(values)
    return [[next(place) for _ in own] for own in samples]


def _table(scored: Mapping[str, dict[str, Samples]], bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """model -> aspect -> measure."""
    table: dict[str, dict[str, Any]] = {}
    for aspect, models in scored.items():
        for name, measure in measures(models, bootstrap).items():
            table.setdefault(name, {})[aspect] = measure.as_dict()
    return table


def _by(
    found: Answers, scored: Mapping[str, dict[str, Samples]], bootstrap: Bootstrap, column: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """model -> value of the prompts' column -> aspect -> measure; aspects that do not apply are left out."""
    groups = list(dict.fromkeys(str(p.meta[column]) for p in found.prompts if p.meta.get(column) is not None))
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for group in groups:
        inside = [str(p.meta.get(column)) == group for p in found.prompts]
        part: dict[str, dict[str, Samples]] = {
            aspect: {name: select(samples, inside.__getitem__) for name, samples in models.items()}
            for aspect, models in scored.items()
        }
        for name, found_here in _table(part, bootstrap).items():
            table.setdefault(name, {})[group] = {aspect: m for aspect, m in found_here.items() if m["n"]}
    return table


def _differences(
    found: Answers, scored: Mapping[str, dict[str, Samples]], bootstrap: Bootstrap
) -> dict[str, dict[str, dict[str, Any]]]:
    """a -> b -> aspect -> mean over prompts of a's value minus b's, for every later a and earlier b.

    `sure`: whether it is one even if all differences of a, from every other model in every aspect, are looked at.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for earlier, later in combinations(found.names, 2):
        looks = len(scored) * found.names.index(later)
        table.setdefault(later, {})[earlier] = {
            aspect: _difference(models[later], models[earlier], bootstrap, looks, is_yes_no(*models.values()))
            for aspect, models in scored.items()
        }
    return table


def _difference(later: Samples, earlier: Samples, bootstrap: Bootstrap, looks: int, yes_no: bool) -> dict[str, Any]:
    after, before = prompt_means(later), prompt_means(earlier)
    sure = surely_differs(after, before, bootstrap, looks=looks, yes_no=yes_no)
    return bootstrap.difference(after, before).as_dict() | {"sure": sure}


def _wins(
    found: Answers, scores: dict[str, Samples], lengths: dict[str, Samples], bootstrap: Bootstrap, tie: float
) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], Any]]:
    """Every pair of models, told from both sides; and the shares won by prompt."""
    table: dict[str, dict[str, Any]] = {name: {} for name in found.names}
    rates = {}
    entries = {name: _entries(found.models[name], scores[name], lengths[name]) for name in found.names}
    for a, b in combinations(found.names, 2):
        compared = pairs(entries[a], entries[b], tie)
        rates[a, b] = by_prompt(compared)
        table[a][b] = win_record(compared, bootstrap)
        table[b][a] = mirrored(table[a][b])
    return table, rates


def _entries(answers: Sequence[Sequence[Answer]], scores: Samples, lengths: Samples) -> list[list[Entry]]:
    return [
        [Entry(a.words, x, n or 0.0) for a, x, n in zip(said, own, long, strict=True)]
        for said, own, long in zip(answers, scores, lengths, strict=True)
    ]


def _rows(found: Answers, scored: Mapping[str, dict[str, Samples]]) -> Any:
    for i, prompt in enumerate(found.prompts):
        for name, samples in found.models.items():
            yield {
                "prompt": prompt.as_column(),
                "model": name,
                "completions": [a.words for a in samples[i]],
                **{aspect: list(models[name][i]) for aspect, models in scored.items()},
            }
