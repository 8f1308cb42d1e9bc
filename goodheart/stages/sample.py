"""Draw K answers per prompt from one or several models, for people to compare (MISSION C1).

Answers are kept as they come (`OUT.partial/`), so an interrupted run continues where it stood.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from goodheart.data.examples import prompts, require
from goodheart.data.formats import read_records, write_rows
from goodheart.data.records import Prompt
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import ConfigError, Interrupted
from goodheart.models.load import load_causal, resolve
from goodheart.stages.writer import SamplingSettings, Writer
from goodheart.train.config import Settings
from goodheart.train.files import sha256_of_folder
from goodheart.train.interrupt import stop_signal
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.progress import Progress

_CHUNK = 128  # prompts between two writes to disk


class SampleConfig(Settings):
    """Settings of sampling."""

    model: str | list[str]  # run folders, Hugging Face folders or Hub ids; several models take the K answers in turn
    prompts: str | list[str]
    out: Path  # .jsonl, .json, .csv, .parquet; rows {"prompt", "completions": [...], ...}
    answers: int = Field(4, ge=1)  # K per prompt
    limit: int | None = Field(None, ge=1)  # only the first so many prompts
    sampling: SamplingSettings = SamplingSettings()
    slots: int = Field(64, ge=1)  # answers generated side by side
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    plain_prompts: Literal["raw", "user"] = "raw"
    quiet: bool = False


def sample(config: SampleConfig) -> Path:
    """Writes one row per prompt with its K answers and how they were drawn; returns the file.

    Raises:
        DataError: no usable prompt.
        Interrupted: asked to stop; what was drawn is kept for the same command.
    """
    models = [config.model] if isinstance(config.model, str) else config.model
    if not models:
        raise ConfigError("`model` names no model")
    sources = [config.prompts] if isinstance(config.prompts, str) else config.prompts
    loaded = read_records(sources, "prompt", limit=config.limit)
    kept = config.out.with_name(config.out.name + ".partial")
    drawn: dict[tuple[int, int], dict[str, Any]] = {}  # (prompt, k) -> answer
    for place, name in enumerate(models):
        turns = [k for k in range(config.answers) if k % len(models) == place]
        if turns:
            drawn |= _draw(config, name, loaded.records, sources, turns, kept / f"{place}.jsonl")
    rows = []
    for i, prompt in enumerate(loaded.records):
        answers = [drawn[i, k] for k in range(config.answers) if (i, k) in drawn]
        if len(answers) == config.answers:
            rows.append(_row(prompt, answers, config))
    write_rows(config.out, rows)
    shutil.rmtree(kept, ignore_errors=True)
    return config.out


def _draw(
    config: SampleConfig, name: str, asked: Sequence[Prompt], sources: Sequence[str], turns: Sequence[int], kept: Path
) -> dict[tuple[int, int], dict[str, Any]]:
    """All answers of one model, continuing from what `kept` already holds."""
    device = World.start(config.device).device
    folder = resolve(name)
    template = Template(load_tokenizer(folder), plain_prompts=config.plain_prompts)
    identity = hashlib.sha256(f"{config.model_dump_json(exclude={'quiet', 'out'})}{sha256_of_folder(folder)}".encode())
    drawn = _continue(kept, identity.hexdigest())
    model = load_causal(folder, dtype=resolve_dtype(config.dtype, device), device=device)
    longest = (model.max_length or 2**31) - config.sampling.max_new_tokens
    if longest < 1:
        raise ConfigError(f"max_new_tokens {config.sampling.max_new_tokens} fills the context of {model.max_length}")
    prepared = prompts(asked, template, longest)
    require(prepared.items, prepared.skipped, "prompt", sources)
    if prepared.skipped.total and not config.quiet:
        print(f"set aside {prepared.skipped.total} prompts: {prepared.skipped.summary()}")
    writer = Writer(model, template, slots=config.slots)
    sampling = config.sampling
    if all(prompt.is_chat for _, prompt, _ in prepared.items):  # a plain-text template cannot always tell the end apart
        sampling = sampling.model_copy(update={"stop": [*sampling.stop, *template.stop_strings]})
    todo = [(n, i, k) for n, (i, _, _) in enumerate(prepared.items) for k in turns if (i, k) not in drawn]
    with stop_signal() as stop, Progress(len(todo), f"sampling {name}", unit="answers", shown=not config.quiet) as bar:
        for start in range(0, len(todo), _CHUNK):
            piece = todo[start : start + _CHUNK]
            generations = writer.generate(
                [prepared.items[n][2] for n, _, _ in piece],
                sampling,
                seed=config.seed,
                sequence_ids=[i * config.answers + k for _, i, k in piece],
            )
            fresh = {}
            for (n, i, k), made in zip(piece, generations, strict=True):
                answer = writer.answer(prepared.items[n][1], made, sampling.stop)
                fresh[i, k] = {"text": answer.text, "finish": made.finish, "tokens": len(made.ids), "model": name}
            drawn |= fresh
            _keep(kept, fresh)
            bar.advance(len(piece))
            if stop.requested:
                raise Interrupted(f"stopped; {len(drawn)} answers are kept and the same command continues")
    return drawn


def _row(prompt: Prompt, answers: Sequence[dict[str, Any]], config: SampleConfig) -> dict[str, Any]:
    return {
        **prompt.meta,
        "prompt": prompt.as_column(),
        "completions": [a["text"] for a in answers],
        "models": [a["model"] for a in answers],
        "finish": [a["finish"] for a in answers],
        "tokens": [a["tokens"] for a in answers],
        "settings": {**config.sampling.model_dump(), "seed": config.seed},
    }


def _continue(kept: Path, identity: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Answers of an interrupted run of the same settings and model; another run's are removed."""
    if kept.exists():
        first, *lines = kept.read_text(encoding="utf-8").split("\n")
        if first == identity:
            whole = [json.loads(line) for line in lines[:-1]]  # the last one may be cut and has no line end
            return {(row["prompt"], row["k"]): row["answer"] for row in whole}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(identity + "\n", encoding="utf-8")
    return {}


def _keep(kept: Path, fresh: dict[tuple[int, int], dict[str, Any]]) -> None:
    with kept.open("a", encoding="utf-8") as file:
        for (i, k), answer in fresh.items():
            file.write(json.dumps({"prompt": i, "k": k, "answer": answer}, ensure_ascii=False) + "\n")
