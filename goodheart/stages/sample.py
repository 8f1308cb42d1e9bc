"""Draw K answers per prompt from one or several models, for people to compare.

Answers are kept as they come (`OUT.partial/`), so an interrupted run continues where it stood. With `best_of` n each of
the K is the best of n by a reward.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goodheart.data.examples import Skipped, list_skipped, prompts, require
from goodheart.data.formats import read_records, write_rows
from goodheart.data.records import Prompt
from goodheart.data.template import Template
from goodheart.errors import ConfigError
from goodheart.judges.load import load_judge
from goodheart.judges.settings import judge_names
from goodheart.models.load import load_causal, resolve
from goodheart.stages.draw import Drawn, draw, scoring
from goodheart.stages.kept import Kept, identity
from goodheart.stages.settings.sample import SampleConfig
from goodheart.stages.writer import Writer
from goodheart.train.config import listed
from goodheart.train.files import sha256_of_folder
from goodheart.train.interrupt import stop_signal
from goodheart.train.lineage import content
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.progress import Progress

__all__ = ["SampleConfig", "sample"]


def sample(config: SampleConfig) -> Path:
    """Writes one row per prompt with its K answers and how they were drawn; returns the file.

    Raises:
        DataError: no usable prompt.
        Interrupted: asked to stop; what was drawn is kept for the same command.
    """
    models = listed(config.model)
    if not models:
        raise ConfigError("`model` names no model")
    sources = listed(config.prompts)
    loaded = read_records(sources, "prompt", limit=config.limit)
    skipped = Skipped.of(loaded)
    kept = config.out.with_name(config.out.name + ".partial")
    asked = dict(enumerate(loaded.records))  # place -> prompt, less what a model cannot take
    drawn: Drawn = {}
    n = config.best_of
    for place, name in enumerate(models):
        turns = [k * n + j for k in range(config.answers) if k % len(models) == place for j in range(n)]
        if turns:
            found, asked = _draw(config, name, asked, skipped, turns, kept / f"{place}.jsonl")
            require(list(asked), skipped, "prompt", sources)
            drawn |= found
    write_rows(
        config.out,
        (
            _row(prompt, [_best([drawn[i, k * n + j] for j in range(n)]) for k in range(config.answers)], config)
            for i, prompt in asked.items()
        ),
    )
    file = list_skipped(config.out, skipped)
    if file is not None and not config.quiet:
        print(f"set aside {skipped.total} rows: {skipped.summary()} (listed in {file})", file=sys.stderr)
    shutil.rmtree(kept, ignore_errors=True)
    return config.out


def _draw(
    config: SampleConfig, name: str, asked: dict[int, Prompt], skipped: Skipped, turns: Sequence[int], kept: Path
) -> tuple[Drawn, dict[int, Prompt]]:
    """The answers of one model, continuing from what `kept` already holds; and the prompts that it can take."""
    device = World.start(config.device).device
    dtype = resolve_dtype(config.dtype, device)
    folder = resolve(name)
    template = Template.load(folder, plain_prompts=config.plain_prompts)
    model = load_causal(folder, dtype=dtype, device=device)
    longest = (model.max_length or 2**31) - config.sampling.max_new_tokens
    if longest < 1:
        raise ConfigError(
            f"sampling.max_new_tokens {config.sampling.max_new_tokens} fills the context of {model.max_length}: "
            "set it lower, so that prompts have room"
        )
    places = list(asked)
    prepared = prompts(list(asked.values()), template, longest, skipped=skipped)
    usable = {places[n]: (prompt, ids) for n, prompt, ids in prepared.items}
    judging = None if config.reward is None else scoring(load_judge(config.reward, dtype=dtype, device=device))
    with stop_signal() as stop:
        drawn = draw(
            Writer(model, template, slots=config.slots),
            usable,
            turns,
            each=config.answers * config.best_of,
            sampling=config.sampling,
            seed=config.seed,
            kept=Kept(kept, _identity(config, folder, asked)),
            stop=stop,
            show=lambda total: Progress(total, f"sampling {name}", unit="answers", shown=not config.quiet),
            judging=judging,
        )
    return {place: answer | {"model": name} for place, answer in drawn.items()}, {i: p for i, (p, _) in usable.items()}


def _best(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The one with the highest score, the earliest of equals; one without a score only where none has one."""
    return max(answers, key=lambda a: -float("inf") if a.get("score") is None else a["score"])


def _row(prompt: Prompt, answers: Sequence[dict[str, Any]], config: SampleConfig) -> dict[str, Any]:
    scores = {} if config.reward is None else {"scores": [a["score"] for a in answers], "best_of": config.best_of}
    return {
        **prompt.meta,
        "prompt": prompt.as_column(),
        "completions": [a["text"] for a in answers],
        "models": [a["model"] for a in answers],
        "finish": [a["finish"] for a in answers],
        "tokens": [a["tokens"] for a in answers],
        **scores,
        "settings": {**config.sampling.model_dump(), "seed": config.seed},
    }


def _identity(config: SampleConfig, folder: Path, asked: dict[int, Prompt]) -> str:
    """Equal where the same prompts are answered by the same model in the same way."""
    judges = {} if config.reward is None else judge_names(config.reward)
    return identity(
        config.model_dump_json(exclude={"quiet", "out"}),
        sha256_of_folder(folder),
        *(str(content(judge)) for judge in judges.values()),
        *(json.dumps(prompt.as_column()) for prompt in asked.values()),
    )
