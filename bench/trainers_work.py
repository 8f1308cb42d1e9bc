"""What a step of the jobs in bench/trainers_job.py has to compute, whoever does it.

A reference that can be asked once before the first step is not counted (`dpo`, `kto`), nor are old log-probabilities
that the sampler knows. Answers of `grpo` and `rloo` all run to their limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import roofline
from bench.trainers_job import LEARNS_FROM, Settings
from goodheart.models.architecture import TransformerConfig


@dataclass(frozen=True)
class Step:
    """tokens: of the rows that are learnt from, prompts included. job: what has to be computed."""

    tokens: int
    job: roofline.Job


def step_of(task: Settings) -> Step:
    """The work of a step, by the model and the rows in the job's folder."""
    folder = Path(task.folder)
    config = TransformerConfig.from_hf(json.loads((folder / "policy" / "config.json").read_text(encoding="utf-8")))
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    lengths = list(_lengths(rows, task))
    answered = sum(length - task.prompt_tokens for length in lengths)
    dtype = torch.float32
    jobs: dict[str, list[roofline.Work]] = {
        "reward": [roofline.training(config, lengths, 0, dtype)],
        "sft": (learning := [roofline.training(config, lengths, answered, dtype)]),
        "dpo": learning,
        "kto": [roofline.forward(config, lengths, answered, dtype), *learning],  # the baseline's rows are as long
    }
    if task.task in jobs:
        return Step(sum(lengths), jobs[task.task])
    prompts = task.batch_size // task.num_generations
    answers = roofline.generation(config, task.prompt_tokens, [task.new_tokens] * task.batch_size, dtype, prompts)
    return Step(sum(lengths), [*answers, roofline.forward(config, lengths, answered, dtype), *learning])


def _lengths(rows: list[Mapping[str, Any]], task: Settings) -> Iterator[int]:
    """Tokens of each row that a step learns from; a word is a token, and an answer ends with one more."""
    if LEARNS_FROM[task.task] == "prompts":
        yield from [task.prompt_tokens + task.new_tokens] * task.batch_size
    for row in rows:
        for name in ("completion", "chosen", "rejected"):
            if name in row:
                yield task.prompt_tokens + len(row[name].split()) + 1
