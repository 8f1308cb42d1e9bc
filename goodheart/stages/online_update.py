"""The update of online preference learning: from judged answers to a loss, one optimizer step per mini-batch.

Letters: B rows (answers), T time (tokens), P prompts, K answers to each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from goodheart.data.batches import micro_batches
from goodheart.judges.load import Judge
from goodheart.judges.reward import RewardJudge
from goodheart.losses.direct import FAMILY, dpo_loss
from goodheart.losses.metrics import MetricSums
from goodheart.losses.online import (
    Preference,
    best_and_worst,
    exploration_bonus,
    hard,
    nash_md_loss,
    ranks_of,
    soft,
    win_rates,
)
from goodheart.losses.preference import comparable, pairwise_from_ranks
from goodheart.models.causal import completion_logprobs
from goodheart.stages import updates
from goodheart.stages.actors import Actors
from goodheart.stages.online_answers import Contest
from goodheart.stages.settings.online import OnlineConfig
from goodheart.train.optimizer import AdamW
from goodheart.train.session import Session
from goodheart.train.step import train_step


@dataclass(frozen=True)
class Lesson:
    """What is learnt from a contest, on the CPU.

    ranks_PK, chosen_PK: order of the answers, and those that are compared. wins_PK: chance to beat the opponent.
    met_PK: own answers that met the opponent's. bonus_PK: answers whose probability the bonus lowers.
    used_PK: answers that need a pass of the policy with gradients.
    """

    ranks_PK: Tensor
    chosen_PK: Tensor
    wins_PK: Tensor
    met_PK: Tensor
    bonus_PK: Tensor
    used_PK: Tensor

    def counts(self, prompts: list[int], session: Session) -> tuple[float, float, float]:
        """Prompts that compare, that met an opponent, that have a bonus: of a mini-batch, over all processes."""
        compares_P = comparable(self.ranks_PK[prompts], self.chosen_PK[prompts], ties_count=False)
        each = (compares_P, self.met_PK[prompts].any(1), self.bonus_PK[prompts].any(1))
        pairs, met, bonus = (session.world.sum(float(x.sum())) for x in each)
        return pairs, met, bonus


def preference_of(judge: Judge, config: OnlineConfig) -> Preference:
    """How differences of this judge's scores become probabilities."""
    if config.preference == "auto":
        return soft if isinstance(judge, RewardJudge) else hard
    return soft if config.preference == "soft" else hard


def lesson(contest: Contest, config: OnlineConfig, preference: Preference) -> Lesson:
    """Who is compared with whom, and which answers that takes."""
    scores_PK, valid_PK = contest.scores_PK, contest.valid_PK
    nothing_PK = torch.zeros_like(valid_PK)
    ranks_PK, chosen_PK, met_PK = ranks_of(scores_PK, valid_PK), nothing_PK, nothing_PK
    wins_PK = win_rates(scores_PK, contest.own_PK & valid_PK, contest.theirs_PK, preference)
    if config.loss == "nash-md":
        met_PK = contest.own_PK & valid_PK & contest.theirs_PK.any(1, keepdim=True)
    else:
        chosen_PK = valid_PK if config.pairs == "all" else best_and_worst(scores_PK, valid_PK)
    bonus_PK = contest.theirs_PK if config.bonus else nothing_PK
    beats_PKK, _ = pairwise_from_ranks(ranks_PK, chosen_PK)
    used_PK = beats_PKK.any(1) | beats_PKK.any(2) | met_PK | bonus_PK
    return Lesson(ranks_PK, chosen_PK & used_PK, wins_PK, met_PK, bonus_PK, used_PK)


def update(
    session: Session,
    actors: Actors,
    optimizer: AdamW,
    contest: Contest,
    learnt: Lesson,
    config: OnlineConfig,
    step: int,
    rate: float,
) -> dict[str, float]:
    """One pass over the prompts; the metrics are means over its optimizer steps (none: nothing to learn from)."""
    size, batch = config.num_generations, contest.batch
    collected: list[dict[str, float]] = []
    for prompts in updates.mini_batches(contest.prompts, config, step, 0):
        held = [p // session.world.size for p in prompts if p % session.world.size == session.world.rank]
        counts = learnt.counts(held, session)
        if not any(counts):
            continue
        mine = [p for p in held if learnt.used_PK[p].any()]
        most = max((int(learnt.used_PK[p].sum()) for p in mine), default=0)
        longest = batch.lengths_B.view(-1, size).amax(1).tolist()
        metrics = train_step(
            session.world,
            optimizer,
            [[mine[i] for i in piece] for piece in micro_batches([most * longest[p] for p in mine], config.max_tokens)],
            partial(online_loss, actors, contest, learnt, config, counts),
            max_grad_norm=config.max_grad_norm,
            lr=rate,
            step=step + 1,
            name_rows=lambda piece: batch.names([p * size for p in piece]),
        )
        collected.append(metrics)
    if not collected:
        return {"policy/updates": 0.0}
    names = dict.fromkeys(name for metrics in collected for name in metrics)
    found = {name: [metrics[name] for metrics in collected if name in metrics] for name in names}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    gap = {"sampler/logprob_diff_mean": collected[0].get("sampler/logprob_diff_mean", 0.0)}
    return means | gap | {"policy/updates": float(len(collected))}


def online_loss(
    actors: Actors,
    contest: Contest,
    learnt: Lesson,
    config: OnlineConfig,
    counts: tuple[float, float, float],
    prompts: list[int],
) -> tuple[Tensor, MetricSums]:
    """Loss of some prompts; `counts` are of the whole optimizer step (see `Lesson.counts`)."""
    size, device = config.num_generations, contest.batch.ids_BT.device
    used_PK = learnt.used_PK[prompts]
    places = [p * size + k for p, row in zip(prompts, used_PK.tolist(), strict=True) for k in range(size) if row[k]]
    rows = contest.batch.select(places)
    out = completion_logprobs(
        actors.policy,
        rows.ids_BT,
        rows.mask_BT,
        lengths_B=rows.lengths_B,
        kept_N=rows.kept_N,
        temperature=config.sampling.temperature,
    )
    assert rows.ref_logps_BT is not None  # every run has a reference
    used_PK = used_PK.to(device)
    logps_PK, ref_logps_PK, tokens_PK = (
        _laid(x_BT.sum(1), used_PK) for x_BT in (out.logps_BT, rows.ref_logps_BT, rows.mask_BT)
    )
    ranks_PK, chosen_PK, wins_PK, met_PK, bonus_PK = (
        x[prompts].to(device)
        for x in (learnt.ranks_PK, learnt.chosen_PK, learnt.wins_PK, learnt.met_PK, learnt.bonus_PK)
    )
    pairs, met, bonus = (max(count, 1.0) for count in counts)  # a count of 0 divides a sum of nothing
    if config.loss == "nash-md":
        loss, sums = nash_md_loss(logps_PK, ref_logps_PK, wins_PK, met_PK, beta=config.beta, num_prompts=met)
    else:
        member = FAMILY[config.loss]
        loss, sums = dpo_loss(
            logps_PK,
            ref_logps_PK,
            tokens_PK,
            ranks_PK,
            chosen_PK,
            num_prompts=pairs,
            member=member,
            beta=config.beta,
            per_token=member.per_token,
        )
    if config.bonus:
        sums.add("loss/dpo", loss.detach() * pairs, comparable(ranks_PK, chosen_PK, ties_count=False).sum())
        extra, extra_sums = exploration_bonus(logps_PK, bonus_PK, alpha=config.bonus, num_prompts=bonus)
        loss, sums = loss + extra, sums | extra_sums
    own_B = contest.own_PK.flatten()[places].to(device)
    updates.add_sampler_gap(sums, out.logps_BT, replace(rows, mask_BT=rows.mask_BT & own_B[:, None]))
    return loss, sums


def _laid(values_B: Tensor, used_PK: Tensor) -> Tensor:
    """One value per used answer in its place; 0 elsewhere."""
    return values_B.new_zeros(used_PK.shape).masked_scatter(used_PK, values_B)
