"""Answers of the policy with all that it learns from: generated, scored, and passed over once by every network.

Letters: B rows (answers), T time (tokens). Everything is token-aligned and padded on the right.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from goodheart.data.batches import Example, micro_batches, pad
from goodheart.data.records import Answer, Prompt
from goodheart.data.template import Template
from goodheart.errors import DataError
from goodheart.generate.engine import Generation
from goodheart.judges.combined import Judged
from goodheart.judges.judged import judged
from goodheart.judges.load import Judge
from goodheart.judges.settings import judge_names
from goodheart.losses.baselines import overlong_penalty
from goodheart.losses.metrics import MetricSums
from goodheart.models.causal import before
from goodheart.stages.settings.policy_gradient import PolicyGradientSettings
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.writer import Writer
from goodheart.train.parallel import World

if TYPE_CHECKING:
    from goodheart.stages.actors import Actors

Asked = tuple[Prompt, list[int]]  # a prompt and its tokens


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer and what the judge said of it.

    raw: as the judge said it. score: what is optimised: normalised, penalties taken off. None = no opinion.
    terms: what each of several rewards said, and how they were combined.
    """

    prompt: Prompt
    generation: Generation
    answer: Answer
    raw: float | None
    score: float | None
    terms: Mapping[str, float | None]


@dataclass
class Rollouts:
    """This process's rows of one batch of answers.

    rows: answers in the batch over all processes; row g lives on process g % size.
    mask_BT: sampled tokens; all False where the judge had no opinion.
    terms: of several rewards what each said of every row.
    ref_logps_BT: None where no reference was asked. values_BT, returns_BT: None without a value model.
    importance_BT: weights of the tokens' losses (`updates.weigh`); None = 1.
    kept_N: `models.causal.before` the mask of these rows, where it is known (`select`).
    """

    rows: int
    world: World
    ids_BT: Tensor
    mask_BT: Tensor
    lengths_B: Tensor
    scores_B: Tensor  # what is optimised: normalised, penalties taken off
    raw_scores_B: Tensor
    ended_B: Tensor  # 1 where the answer came to its own end
    sampler_logps_BT: Tensor
    old_logps_BT: Tensor
    advantages_BT: Tensor
    prompts: list[Prompt]
    answers: list[Answer]
    terms: dict[str, list[float | None]]
    ref_logps_BT: Tensor | None = None
    values_BT: Tensor | None = None
    returns_BT: Tensor | None = None
    importance_BT: Tensor | None = None
    kept_N: Tensor | None = None
    _fetched: tuple[Tensor, list[int], Tensor] | None = None  # a mask, the lengths, and that mask on the CPU

    def fetch(self) -> tuple[list[int], Tensor]:
        """Lengths of the rows, and their mask on the CPU. A device is waited for once, until the mask is another."""
        if self._fetched is None or self._fetched[0] is not self.mask_BT:
            self._fetched = (self.mask_BT, self.lengths_B.tolist(), self.mask_BT.cpu())
        return self._fetched[1:]

    def local(self, rows: Sequence[int]) -> list[int]:
        """Places here of those batch rows that this process holds."""
        return [row // self.world.size for row in rows if row % self.world.size == self.world.rank]

    def select(self, places: Sequence[int]) -> Rollouts:
        """Some rows, cut to the longest of them."""
        lengths, mask_BT = self.fetch()
        device = self.ids_BT.device
        index, longest = torch.as_tensor(places, device=device), max((lengths[i] for i in places), default=0)
        kept_N = before(mask_BT[list(places), :longest]).to(device, non_blocking=True)
        cut: dict[str, Any] = {"kept_N": kept_N, "_fetched": None}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if field.name.endswith("_BT") and tensor is not None:
                cut[field.name] = tensor[index, :longest]
            elif field.name.endswith("_B"):
                cut[field.name] = tensor[index]
        return replace(self, **cut)

    def names(self, places: Sequence[int]) -> list[str]:
        """The answers at these places, for an error: what was asked and how the answer begins."""
        asked = [
            self.prompts[i].messages[-1].content if self.prompts[i].is_chat else self.prompts[i].text for i in places
        ]
        return [f"{q!r:.60} -> {self.answers[i].text!r:.60}" for q, i in zip(asked, places, strict=True)]

    def kl_BT(self) -> Tensor:
        """log p - log p_ref of every sampled token in nats; only where the reference was asked."""
        assert self.ref_logps_BT is not None
        return (self.old_logps_BT - self.ref_logps_BT) * self.mask_BT

    def measured(self) -> MetricSums:
        """KL, entropy and length of the answers; one the judge had no opinion on does not count."""
        sums = MetricSums()
        mask_BT = self.mask_BT
        rows = mask_BT.any(1).float()
        entropy = -(self.old_logps_BT * mask_BT).sum()
        if self.ref_logps_BT is not None:
            sums.add("objective/kl", self.kl_BT().sum(1).sum(), rows.sum())
        sums.add("objective/raw_scores", (self.raw_scores_B * rows).sum(), rows.sum())
        sums.add("objective/entropy", entropy, rows.sum())
        sums.add("policy/entropy_avg", entropy, mask_BT.sum())
        sums.add("completions/mean_length", mask_BT.sum(), rows.sum())
        return sums

    def shown(self, count: int) -> list[dict[str, Any]]:
        """The first few rows for a reader."""
        kl_B = None if self.ref_logps_BT is None else self.kl_BT().sum(1)
        return [
            {
                "prompt": self.prompts[i].as_column(),
                "completion": self.answers[i].text,
                "score": round(float(self.raw_scores_B[i]), 4),
                **({} if kl_B is None else {"kl": round(float(kl_B[i]), 4)}),
                "ended": bool(self.ended_B[i]),
            }
            for i in range(min(count, len(self.answers)))
        ]


def collect(
    asked: Sequence[Asked],
    actors: Actors,
    writer: Writer,
    judge: Judge,
    config: PolicyGradientSettings,
    *,
    world: World,
    seed: int,
) -> tuple[Rollouts, dict[str, float]]:
    """Generates an answer to each prompt, scores it, and records what every network says; returns it and the times."""
    found, timing = answer(dict(enumerate(asked)), writer, judge, config, config.sampling, world=world, seed=seed)
    return lay_out(found, len(asked), actors, config, world=world, timing=timing), timing


def answer(
    asked: Mapping[int, Asked],
    writer: Writer,
    judge: Judge,
    config: PolicyGradientSettings,
    sampling: SamplingSettings,
    *,
    world: World,
    seed: int,
    first_stream: int = 0,
) -> tuple[dict[int, Scored], dict[str, float]]:
    """Generates and scores answers to those rows that this process holds (row g lives on process g % size).

    asked: row of the batch -> its prompt. first_stream: row g draws its random numbers from stream `first_stream + g`.
    -> row -> answer, and the seconds it took. A process without a row asks nobody: a judge never sees an empty list.
    """
    mine = [row for row in asked if row % world.size == world.rank]
    if not mine:
        return {}, {"generate": 0.0, "score": 0.0}
    prompts = [asked[row][0] for row in mine]
    begun = time.perf_counter()
    streams = [first_stream + row for row in mine]
    made = writer.generate([asked[row][1] for row in mine], sampling, seed=seed, sequence_ids=streams)
    generated = time.perf_counter()
    answers = [writer.answer(p, g, sampling.stop) for p, g in zip(prompts, made, strict=True)]
    said = judge_scores(prompts, answers, made, judge, writer.template, config)
    apart = [{name: values[i] for name, values in said.terms.items()} for i in range(len(mine))]
    parts = zip(mine, prompts, made, answers, said.raw, said.scores, apart, strict=True)
    found = {row: Scored(*rest) for row, *rest in parts}
    return found, {"generate": generated - begun, "score": time.perf_counter() - generated}


def lay_out(
    found: Mapping[int, Scored],
    rows: int,
    actors: Actors,
    config: PolicyGradientSettings,
    *,
    world: World,
    timing: dict[str, float],
) -> Rollouts:
    """This process's answers as tensors, with what every network says of them; the seconds go into `timing`.

    found: row -> answer. rows: of the batch over all processes.
    Raises DataError where the judge has an opinion on none of them.
    """
    begun = time.perf_counter()
    if world.sum(float(sum(each.score is not None for each in found.values()))) == 0:
        named = ", ".join(judge_names(config.reward).values())
        raise DataError(f"reward {named}: no opinion (None) on all of {rows} answers")
    batch = _padded([found[row] for row in sorted(found)], rows, actors, world)
    _record(batch, actors, config)
    timing["record"] = time.perf_counter() - begun
    return batch


def judge_scores(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    generations: Sequence[Generation],
    judge: Judge,
    template: Template,
    config: PolicyGradientSettings,
) -> Judged:
    """What the judge says, penalties taken off the scores that are optimised; None where it has no opinion."""
    rows = [[*g.prompt_ids, *g.ids] for g in generations]  # as sampled, never tokenised again
    said = judged(judge, prompts, answers, rows=rows, template=template, normalize=config.normalize_reward)
    penalty = config.missing_eos_penalty or 0.0
    limit = config.sampling.max_new_tokens
    scores = [
        None
        if score is None
        else score
        - (penalty if made.finish == "length" else 0.0)
        - config.overlong_penalty * overlong_penalty(len(made.ids), limit, config.overlong_tokens)
        for score, made in zip(said.scores, generations, strict=True)
    ]
    return replace(said, scores=scores)


def terms_of(found: Iterable[Scored]) -> dict[str, list[float | None]]:
    """What each of several rewards said of these answers; None where one said nothing."""
    terms = [each.terms for each in found]
    names = dict.fromkeys(name for each in terms for name in each)
    return {name: [each.get(name) for each in terms] for name in names}


def _padded(found: Sequence[Scored], rows: int, actors: Actors, world: World) -> Rollouts:
    examples = [
        Example(
            [*each.generation.prompt_ids, *each.generation.ids],
            [False] * len(each.generation.prompt_ids) + [each.score is not None] * len(each.generation.ids),
        )
        for each in found
    ]
    device = next(actors.policy.parameters()).device
    batch = pad(examples, actors.template.pad_id).to(device)
    sampler_BT = torch.zeros(batch.ids_BT.shape)
    for i, each in enumerate(found):
        made = each.generation
        sampler_BT[i, len(made.prompt_ids) : len(made.prompt_ids) + len(made.ids)] = torch.tensor(made.logps)
    return Rollouts(
        rows=rows,
        world=world,
        ids_BT=batch.ids_BT,
        mask_BT=batch.mask_BT,
        lengths_B=batch.lengths_B,
        scores_B=torch.tensor([each.score or 0.0 for each in found], device=device),
        raw_scores_B=torch.tensor([each.raw or 0.0 for each in found], device=device),
        ended_B=torch.tensor([float(each.generation.finish != "length") for each in found], device=device),
        sampler_logps_BT=sampler_BT.to(device),
        old_logps_BT=torch.zeros(batch.ids_BT.shape, device=device),
        advantages_BT=torch.zeros(batch.ids_BT.shape, device=device),
        prompts=[each.prompt for each in found],
        answers=[each.answer for each in found],
        terms=terms_of(found),
    )


@torch.no_grad()
def _record(batch: Rollouts, actors: Actors, config: PolicyGradientSettings) -> None:
    """What every network says of all rows, in pieces that fit the memory."""
    for piece in micro_batches(batch.fetch()[0], config.max_tokens):
        part = batch.select(piece)
        index = torch.as_tensor(piece, device=part.ids_BT.device)
        for name, tensor_BT in actors.say(part, config.sampling.temperature).items():
            if getattr(batch, name) is None:
                setattr(batch, name, torch.zeros_like(batch.old_logps_BT))
            getattr(batch, name)[index, : part.ids_BT.shape[1]] = tensor_BT
