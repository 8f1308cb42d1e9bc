"""Draw K answers per prompt from one or several models, for people to compare.

Answers are kept as they come (`OUT.partial/`), so an interrupted run continues where it stood.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from goodheart.data.examples import Skipped, list_skipped, prompts, require
from goodheart.data.formats import read_records, write_rows
from goodheart.data.records import Prompt
from goodheart.data.template import Template
from goodheart.errors import ConfigError, Interrupted
from goodheart.models.load import load_causal, resolve
from goodheart.stages.writer import SamplingSettings, Writer
from goodheart.train.config import Settings
from goodheart.train.files import replace_text, sha256_of_folder
from goodheart.train.interrupt import stop_signal
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.progress import Progress

_CHUNK = 128  # answers between two writes to disk

Drawn = dict[tuple[int, int], dict[str, Any]]  # (place of the prompt, k) -> answer


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
    plain_prompts: Literal["raw", "user"] | None = None  # None = as the model was trained, else raw
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
    skipped = Skipped.of(loaded)
    kept = config.out.with_name(config.out.name + ".partial")
    asked = dict(enumerate(loaded.records))  # place -> prompt, less what a model cannot take
    drawn: Drawn = {}
    for place, name in enumerate(models):
        turns = [k for k in range(config.answers) if k % len(models) == place]
        if turns:
            found, asked = _draw(config, name, asked, skipped, turns, kept / f"{place}.jsonl")
            require(list(asked), skipped, "prompt", sources)
            drawn |= found
    write_rows(
        config.out,
        (_row(prompt, [drawn[i, k] for k in range(config.answers)], config) for i, prompt in asked.items()),
    )
    listed = list_skipped(config.out, skipped)
    if listed is not None and not config.quiet:
        print(f"set aside {skipped.total} rows: {skipped.summary()} (listed in {listed})", file=sys.stderr)
    shutil.rmtree(kept, ignore_errors=True)
    return config.out


def _draw(
    config: SampleConfig, name: str, asked: dict[int, Prompt], skipped: Skipped, turns: Sequence[int], kept: Path
) -> tuple[Drawn, dict[int, Prompt]]:
    """The answers of one model, continuing from what `kept` already holds; and the prompts that it can take."""
    device = World.start(config.device).device
    folder = resolve(name)
    template = Template.load(folder, plain_prompts=config.plain_prompts)
    model = load_causal(folder, dtype=resolve_dtype(config.dtype, device), device=device)
    longest = (model.max_length or 2**31) - config.sampling.max_new_tokens
    if longest < 1:
        raise ConfigError(f"max_new_tokens {config.sampling.max_new_tokens} fills the context of {model.max_length}")
    places = list(asked)
    prepared = prompts(list(asked.values()), template, longest, skipped=skipped)
    ids = {places[n]: tokens for n, _, tokens in prepared.items}
    drawn = _continue(kept, _identity(config, folder, asked))
    writer = Writer(model, template, slots=config.slots)
    batches = _batches(writer, config, asked, [(i, k) for i in ids for k in turns if (i, k) not in drawn])
    total = sum(len(batch) for _, batch in batches)
    with stop_signal() as stop, Progress(total, f"sampling {name}", unit="answers", shown=not config.quiet) as bar:
        for sampling, batch in batches:
            generations = writer.generate(
                [ids[i] for i, _ in batch],
                sampling,
                seed=config.seed,
                sequence_ids=[i * config.answers + k for i, k in batch],
                on_finish=lambda _, __: bar.advance(),
            )
            fresh = {}
            for (i, k), made in zip(batch, generations, strict=True):
                text = writer.answer(asked[i], made, sampling.stop).text
                fresh[i, k] = {"text": text, "finish": made.finish, "tokens": len(made.ids), "model": name}
            drawn |= fresh
            _keep(kept, fresh)
            if stop.requested:
                raise Interrupted(f"stopped; {len(drawn)} answers are kept and the same command continues")
    return drawn, {i: asked[i] for i in ids}


def _batches(
    writer: Writer, config: SampleConfig, asked: dict[int, Prompt], wanted: Sequence[tuple[int, int]]
) -> list[tuple[SamplingSettings, Sequence[tuple[int, int]]]]:
    """Answers to draw together and how: those to chats also end at what opens another turn."""
    in_chat = config.sampling.model_copy(update={"stop": [*config.sampling.stop, *writer.template.stop_strings]})
    chats = [(i, k) for i, k in wanted if writer.is_chat(asked[i])]
    others = [(i, k) for i, k in wanted if not writer.is_chat(asked[i])]
    return [
        (sampling, part[start : start + _CHUNK])
        for sampling, part in ((in_chat, chats), (config.sampling, others))
        for start in range(0, len(part), _CHUNK)
    ]


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


def _identity(config: SampleConfig, folder: Path, asked: dict[int, Prompt]) -> str:
    """Equal where the same prompts are answered by the same model in the same way."""
    content = [config.model_dump_json(exclude={"quiet", "out"}), sha256_of_folder(folder)]
    content += [json.dumps(prompt.as_column()) for prompt in asked.values()]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _continue(kept: Path, identity: str) -> Drawn:
    """Answers of an interrupted run of the same identity; another run's are removed."""
    first, *lines = kept.read_text(encoding="utf-8").split("\n") if kept.exists() else [""]
    whole = lines[:-1] if first == identity else []  # what follows the last line end was torn by a kill
    kept.parent.mkdir(parents=True, exist_ok=True)
    replace_text(kept, "".join(line + "\n" for line in (identity, *whole)))
    return {(row["prompt"], row["k"]): row["answer"] for line in whole for row in json.loads(line)}


def _keep(kept: Path, fresh: Drawn) -> None:
    """One line for all that was drawn together, so that after a kill the rest is drawn in the same company: rounding
    may depend on that.
    """
    rows = [{"prompt": i, "k": k, "answer": answer} for (i, k), answer in fresh.items()]
    with kept.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rows, ensure_ascii=False) + "\n")
