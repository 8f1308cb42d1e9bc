"""The job both contenders of the PPO benchmark get: one random model in three roles, a tokenizer, prompts, settings.

Every answer has the same length on both sides: samplers of random weights would end or pad an answer by chance, so the
model gives its special tokens no probability.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import tiny

if TYPE_CHECKING:
    import torch

    from bench.roofline import Job


@dataclass(frozen=True)
class Settings:
    """One PPO job. Every number means the same to both contenders."""

    folder: str  # holds policy/ (also the reference), reward/ (also the start of the value model), prompts.jsonl
    size: str
    dtype: str
    threads: int
    steps: int
    batch_size: int = 32  # answers per PPO step, in one forward pass
    prompt_tokens: int = 32
    new_tokens: int = 64
    ppo_epochs: int = 4
    mini_batches: int = 1
    device: str = "cpu"
    max_tokens: int = 16384  # of a forward pass of ours, at most
    learning_rate: float = 1e-5
    kl_coef: float = 0.05
    temperature: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    seed: int = 1
    fixed_rows: list[list[int]] = field(default_factory=list)  # both contenders score these, to compare models


def build(folder: Path, size: str, *, batch_size: int, prompt_tokens: int, new_tokens: int, seed: int) -> list[Any]:
    """Writes policy, reward model and prompts into `folder`; returns the fixed rows.

    There are exactly `batch_size` prompts, so that every step of both contenders asks the same ones.
    """
    import torch
    from transformers import LlamaForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    policy = tiny.llama(size, seed)
    policy.config.num_labels = 1
    reward = LlamaForSequenceClassification(policy.config)
    tiny.shut_specials(policy)
    with torch.no_grad():
        reward.model.load_state_dict(policy.model.state_dict())
        reward.score.weight.normal_(0, policy.config.hidden_size**-0.5)
    tiny.save(policy, size, folder / "policy")
    tiny.save(reward, size, folder / "reward")
    drawn = random.Random(seed)
    prompts = [tiny.words(drawn, size, prompt_tokens - 1) for _ in range(batch_size)]
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    return [tiny.tokens(drawn, size, prompt_tokens + new_tokens) for _ in range(8)]


def work(job: Settings, dtype: torch.dtype) -> Job:
    """What a step has to compute, whoever does it: answers, one pass of three models over them, and the updates of two.

    Old log-probabilities are the sampler's, and not counted.
    """
    from bench import roofline
    from goodheart.models.architecture import TransformerConfig

    hf = json.loads((Path(job.folder) / "policy" / "config.json").read_text(encoding="utf-8"))
    config = TransformerConfig.from_hf(hf)
    lengths = [job.prompt_tokens + job.new_tokens] * job.batch_size
    answered = job.batch_size * job.new_tokens
    part, parts = lengths[:: job.mini_batches], job.ppo_epochs * job.mini_batches
    learning = [roofline.training(config, part, count, dtype) for count in (answered / job.mini_batches, 0)] * parts
    said = [roofline.forward(config, lengths, count, dtype) for count in (answered, 0, 0)]
    answers = roofline.generation(config, job.prompt_tokens, [job.new_tokens] * job.batch_size, dtype)
    return [*answers, *said, *learning]
