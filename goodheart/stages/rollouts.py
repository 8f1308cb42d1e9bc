"""Answers of the policy with all that PPO learns from: generated, scored, and passed over once by every network.

Letters: B rows (answers), T time (tokens). Everything is token-aligned and padded on the right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from goodheart.data.batches import Example, micro_batches, pad
from goodheart.data.records import Answer, Prompt
from goodheart.data.template import Template
from goodheart.errors import DataError
from goodheart.generate.engine import Generation
from goodheart.judges.load import Judge
from goodheart.judges.reward import RewardJudge
from goodheart.models.causal import completion_logprobs
from goodheart.stages.actors import Actors
from goodheart.stages.writer import Writer
from goodheart.train.parallel import World

if TYPE_CHECKING:
    from goodheart.stages.ppo import PPOConfig


@dataclass
class Rollouts:
    """This process's rows of one batch of answers.

    rows: answers in the batch over all processes; row g lives on process g % size.
    mask_BT: sampled tokens; all False where the judge had no opinion.
    """

    rows: int
    world: World
    ids_BT: Tensor
    mask_BT: Tensor
    lengths_B: Tensor
    scores_B: Tensor  # what is optimised: normalised, end penalty taken off
    raw_scores_B: Tensor
    ended_B: Tensor  # 1 where the answer came to its own end
    sampler_logps_BT: Tensor
    old_logps_BT: Tensor
    ref_logps_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    prompts: list[Prompt]
    answers: list[Answer]

    def local(self, rows: Sequence[int]) -> list[int]:
        """Places here of those batch rows that this process holds."""
        return [row // self.world.size for row in rows if row % self.world.size == self.world.rank]

    def select(self, places: Sequence[int]) -> Rollouts:
        """Some rows, cut to the longest of them."""
        index = torch.as_tensor(places, device=self.ids_BT.device)
        longest = int(self.lengths_B[index].max())
        cut: dict[str, Any] = {}
        for field in fields(self):
            if field.name.endswith("_BT"):
                cut[field.name] = getattr(self, field.name)[index, :longest]
            elif field.name.endswith("_B"):
                cut[field.name] = getattr(self, field.name)[index]
        return replace(self, **cut)

    def names(self, places: Sequence[int]) -> list[str]:
        """The answers at these places, for an error: what was asked and how the answer begins."""
        asked = [
            self.prompts[i].messages[-1].content if self.prompts[i].is_chat else self.prompts[i].text for i in places
        ]
        return [f"{q!r:.60} -> {self.answers[i].text!r:.60}" for q, i in zip(asked, places, strict=True)]

    def shown(self, template: Template, count: int) -> list[dict[str, Any]]:
        """The first few rows for a reader."""
        kl_B = ((self.old_logps_BT - self.ref_logps_BT) * self.mask_BT).sum(1)
        return [
            {
                "prompt": self.prompts[i].as_column(),
                "completion": self.answers[i].text,
                "score": round(float(self.raw_scores_B[i]), 4),
                "kl": round(float(kl_B[i]), 4),
                "ended": bool(self.ended_B[i]),
            }
            for i in range(min(count, len(self.answers)))
        ]


def draw_prompts(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which prompts step N asks: the prompts in shuffled order, again and again, cut into batches.

    A pure function of its arguments, so that a resumed run asks the same. Every prompt comes once before any comes
    twice, also where a batch is larger than the number of prompts.
    """
    chosen: list[int] = []
    position = step * batch_size
    while len(chosen) < batch_size:
        epoch, place = divmod(position + len(chosen), count)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        chosen += torch.randperm(count, generator=generator).tolist()[place : place + batch_size - len(chosen)]
    return chosen


def collect(
    asked: Sequence[tuple[Prompt, list[int]]],
    actors: Actors,
    writer: Writer,
    judge: Judge,
    config: PPOConfig,
    *,
    world: World,
    seed: int,
) -> tuple[Rollouts, dict[str, float]]:
    """Generates an answer to each prompt, scores it, and records log-probs and values; returns them and the times."""
    mine = world.shard(list(range(len(asked))))
    prompts = [asked[i][0] for i in mine]
    begun = time.perf_counter()
    generations = writer.generate([asked[i][1] for i in mine], config.sampling, seed=seed, sequence_ids=mine)
    generated = time.perf_counter()
    answers = [writer.answer(p, g, config.sampling.stop) for p, g in zip(prompts, generations, strict=True)]
    raw, scores = judge_scores(prompts, answers, generations, judge, actors.template, config)
    if world.sum(float(sum(score is not None for score in raw))) == 0:
        raise DataError(f"reward {config.reward}: no opinion (None) on all of {len(asked)} answers")
    scored = time.perf_counter()
    rollouts = _lay_out(len(asked), world, prompts, answers, generations, raw, scores, actors)
    _record(rollouts, actors, config)
    timing = {
        "generate": generated - begun,
        "score": scored - generated,
        "record": time.perf_counter() - scored,
    }
    return rollouts, timing


def judge_scores(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    generations: Sequence[Generation],
    judge: Judge,
    template: Template,
    config: PPOConfig,
) -> tuple[list[float | None], list[float | None]]:
    """Raw scores, and the scores that are optimised; None where the judge has no opinion."""
    if isinstance(judge, RewardJudge) and judge.reads_tokens_of(template):
        rows = [[*g.prompt_ids, *g.ids] for g in generations]  # as sampled, never tokenised again
        raw: list[float | None] = [float(x) for x in judge.score_tokens(rows).mean(dim=1)]
    else:
        raw = judge.score(prompts, answers)
    scale = judge.normalized if isinstance(judge, RewardJudge) and config.normalize_reward else float
    penalty = config.missing_eos_penalty or 0.0
    scores = [
        None if score is None else scale(score) - (penalty if made.finish == "length" else 0.0)
        for score, made in zip(raw, generations, strict=True)
    ]
    return raw, scores


def _lay_out(
    rows: int,
    world: World,
    prompts: list[Prompt],
    answers: list[Answer],
    generations: Sequence[Generation],
    raw: Sequence[float | None],
    scores: Sequence[float | None],
    actors: Actors,
) -> Rollouts:
    examples = [
        Example([*g.prompt_ids, *g.ids], [False] * len(g.prompt_ids) + [score is not None] * len(g.ids))
        for g, score in zip(generations, scores, strict=True)
    ]
    device = next(actors.policy.parameters()).device
    batch = pad(examples, actors.template.pad_id).to(device)
    sampler_BT = torch.zeros(batch.ids_BT.shape)
    for i, g in enumerate(generations):
        sampler_BT[i, len(g.prompt_ids) : len(g.prompt_ids) + len(g.ids)] = torch.tensor(g.logps)
    zeros_BT = torch.zeros(batch.ids_BT.shape, device=device)
    return Rollouts(
        rows=rows,
        world=world,
        ids_BT=batch.ids_BT,
        mask_BT=batch.mask_BT,
        lengths_B=batch.lengths_B,
        scores_B=torch.tensor([s or 0.0 for s in scores], device=device),
        raw_scores_B=torch.tensor([s or 0.0 for s in raw], device=device),
        ended_B=torch.tensor([float(g.finish != "length") for g in generations], device=device),
        sampler_logps_BT=sampler_BT.to(device),
        old_logps_BT=zeros_BT,
        ref_logps_BT=zeros_BT.clone(),
        values_BT=zeros_BT.clone(),
        advantages_BT=zeros_BT.clone(),
        returns_BT=zeros_BT.clone(),
        prompts=prompts,
        answers=answers,
    )


@torch.no_grad()
def _record(rollouts: Rollouts, actors: Actors, config: PPOConfig) -> None:
    """What every network says of all rows, in pieces that fit the memory.

    In float32 the sampler's log-probabilities are the trainer's within rounding (measured at the first update of every
    step), so the policy is not asked again; in bfloat16 they differ, and the trainer's are the ones that count.
    """
    temperature = config.sampling.temperature
    sampled = actors.dtype == torch.float32 and actors.separate
    for piece in micro_batches(rollouts.lengths_B.tolist(), config.max_tokens):
        part = rollouts.select(piece)
        old_BT, hidden_ND = part.sampler_logps_BT * part.mask_BT, None
        if not sampled:
            old_BT, _, hidden_ND = completion_logprobs(
                actors.policy, part.ids_BT, part.mask_BT, lengths_B=part.lengths_B, temperature=temperature
            )
        values_BT = actors.values(part.ids_BT, part.mask_BT, part.lengths_B, hidden_ND)
        with actors.reference() as reference:
            ref = completion_logprobs(
                reference, part.ids_BT, part.mask_BT, lengths_B=part.lengths_B, temperature=temperature
            )
        index = torch.as_tensor(piece, device=part.ids_BT.device)
        width = part.ids_BT.shape[1]
        rollouts.old_logps_BT[index, :width] = old_BT
        rollouts.values_BT[index, :width] = values_BT
        rollouts.ref_logps_BT[index, :width] = ref.logps_BT
