"""The jobs that goodheart's stages and TRL's trainers both get: models, rows, settings; nothing of either inside.

There are exactly as many rows as a step takes, so that every step of both sides sees the same ones. Answers end with
the end token. In a file of thumbs rows go from short to long, all lengths different: both sides then put the same
answers behind the same other prompts to measure KTO's baseline.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import tiny

LEARNS_FROM = {
    "sft": "demonstrations",
    "reward": "pairs",
    "dpo": "pairs",
    "kto": "thumbs",
    "grpo": "prompts",
    "rloo": "prompts",
}
OFFLINE = ("sft", "reward", "dpo", "kto")


@dataclass(frozen=True)
class Settings:
    """One job. Every number means the same to both contenders; the learning rate is constant, nothing decays."""

    task: str
    folder: str  # holds policy/ (also the reference), reward/ (where a reward model starts), rows.jsonl
    threads: int
    steps: int
    batch_size: int = 32  # demonstrations, pairs, thumbs or answers of a step, in one forward pass
    prompt_tokens: int = 32
    new_tokens: int = 64  # of an answer; offline the most, with the end token
    least_new_tokens: int = 17  # offline
    num_generations: int = 4
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    beta: float = 0.1  # dpo, kto
    kl_in_loss: float = 0.04  # grpo
    kl_in_reward: float = 0.05  # rloo
    center_coefficient: float = 0.01  # reward
    precomputed: bool = False  # TRL passes its reference over the data once, as we do, and not at every step
    device: str = "cpu"
    dtype: str = "float32"  # that is computed in
    peer_weights: str = "float32"  # that TRL keeps its weights in; ours are in `dtype`, with a float32 copy to update
    max_tokens: int = 16384  # of a forward pass of ours, at most
    seed: int = 1
    fixed_rows: list[list[int]] = field(default_factory=list)  # both score these, to compare models


def build(job: Settings, size: str) -> list[list[int]]:
    """Writes models and rows into the job's folder; returns the fixed rows."""
    from transformers.utils.logging import disable_progress_bar

    from goodheart.data.template import Template, load_tokenizer
    from goodheart.models.load import new_reward, save_reward

    disable_progress_bar()
    folder = Path(job.folder)
    policy = tiny.llama(size, job.seed)
    if job.task not in OFFLINE:
        tiny.shut_specials(policy)
    tiny.save(policy, size, folder / "policy")
    if job.task == "reward":  # the head that our stage will start from, for a trainer that cannot make it
        template = Template(load_tokenizer(folder / "policy"))
        save_reward(new_reward(folder / "policy", seed=job.seed), folder / "reward", {}, pad_token_id=template.pad_id)
        template.save(folder / "reward")
    drawn = random.Random(job.seed)
    rows = "".join(json.dumps(row) + "\n" for row in _ROWS[LEARNS_FROM[job.task]](job, size, drawn))
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    return [tiny.tokens(drawn, size, job.prompt_tokens + job.new_tokens) for _ in range(8)]


def _prompt(job: Settings, size: str, drawn: random.Random) -> str:
    return tiny.words(drawn, size, job.prompt_tokens - 1)  # the text starts with <s>


def _answer(job: Settings, size: str, drawn: random.Random, tokens: int | None = None) -> str:
    tokens = drawn.randint(job.least_new_tokens, job.new_tokens) if tokens is None else tokens
    return " " + tiny.words(drawn, size, tokens - 1)  # both sides put </s> behind it


def _demonstrations(job: Settings, size: str, drawn: random.Random) -> Iterator[dict[str, Any]]:
    for _ in range(job.batch_size):
        yield {"prompt": _prompt(job, size, drawn), "completion": _answer(job, size, drawn)}


def _pairs(job: Settings, size: str, drawn: random.Random) -> Iterator[dict[str, Any]]:
    for _ in range(job.batch_size):
        answers = {name: _answer(job, size, drawn) for name in ("chosen", "rejected")}
        yield {"prompt": _prompt(job, size, drawn), **answers}


def _thumbs(job: Settings, size: str, drawn: random.Random) -> Iterator[dict[str, Any]]:
    lengths = sorted(drawn.sample(range(job.least_new_tokens, job.new_tokens + 1), job.batch_size))
    for place, tokens in enumerate(lengths):
        answer = _answer(job, size, drawn, tokens)
        yield {"prompt": _prompt(job, size, drawn), "completion": answer, "label": place % 2 == 0}


def _prompts(job: Settings, size: str, drawn: random.Random) -> Iterator[dict[str, Any]]:
    for _ in range(job.batch_size // job.num_generations):
        yield {"prompt": _prompt(job, size, drawn)}


_ROWS: dict[str, Callable[[Settings, str, random.Random], Iterator[dict[str, Any]]]] = {
    "demonstrations": _demonstrations,
    "pairs": _pairs,
    "thumbs": _thumbs,
    "prompts": _prompts,
}
