"""The mathematics of grpo on a batch of groups: advantages by comparison, then clipped updates.

Letters: B rows (answers), T time (tokens), P prompts (groups), K answers to each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from goodheart.losses.advantages import kl_before, whiten
from goodheart.losses.baselines import (
    Baseline,
    batch_mean,
    group_mean,
    group_scale,
    group_std,
    leave_one_out,
    no_baseline,
)
from goodheart.losses.kl import Estimator, k2, k3_plus, kl_loss
from goodheart.losses.metrics import MetricSums
from goodheart.losses.policy import LogRatio, answer_weights, clip_shares, ppo_policy_loss, sequence_ratio, token_ratio
from goodheart.models.causal import completion_logprobs
from goodheart.stages import updates
from goodheart.stages.actors import Actors
from goodheart.stages.groups import Groups
from goodheart.stages.rollouts import Rollouts
from goodheart.stages.settings.grpo import GRPOConfig
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import World
from goodheart.train.session import Session
from goodheart.train.step import LossFn


class Normalizer(NamedTuple):
    """How the losses of tokens become one number: weighted sum / divisor."""

    weights: Callable[[Tensor, torch.dtype], Tensor | None]  # mask_BT, dtype -> weight_B of each row's tokens, None = 1
    divisor: Callable[[int, int, int], int]  # tokens and answers of the optimizer step, most tokens of an answer


BASELINES: dict[str, Baseline] = {
    "group": group_mean,
    "leave-one-out": leave_one_out,
    "batch": batch_mean,
    "none": no_baseline,
}
NORMALIZERS = {
    "tokens": Normalizer(lambda *_: None, lambda tokens, answers, limit: tokens),
    "answers": Normalizer(answer_weights, lambda tokens, answers, limit: answers),
    "length-constant": Normalizer(lambda *_: None, lambda tokens, answers, limit: answers * limit),
}
RATIOS: dict[str, LogRatio] = {"token": token_ratio, "sequence": sequence_ratio}
ESTIMATORS: dict[str, Estimator] = {"k2": k2, "k3+": k3_plus}


def advantages(batch: Rollouts, groups: Groups, config: GRPOConfig, world: World) -> dict[str, float]:
    """Fills `batch.advantages_BT`, takes out of `batch.mask_BT` what is not learnt from, and returns the metrics."""
    metrics = _metrics(batch, groups, world)
    rewards_PK = groups.scores_PK
    if config.kl_coef:
        rewards_PK = rewards_PK - config.kl_coef * _kl_of_all(batch, world).view_as(rewards_PK)
    baseline_PK, learns_PK = _baseline(rewards_PK, groups, config)
    factor_PK = torch.ones_like(rewards_PK)
    if config.scale == "group-std":
        factor_PK = group_scale(rewards_PK, groups.valid_PK)[:, None].expand_as(rewards_PK)

    learns_B, factor_B = _own(learns_PK, batch), _own(factor_PK, batch).float()
    batch.mask_BT = batch.mask_BT & learns_B[:, None]
    gain_BT = _own((rewards_PK - baseline_PK) * factor_PK, batch).float()[:, None].expand_as(batch.advantages_BT)
    if config.kl_coef and config.kl_credit == "token":
        gain_BT = gain_BT + config.kl_coef * factor_B[:, None] * kl_before(batch.kl_BT(), batch.mask_BT)
    batch.advantages_BT = gain_BT * batch.mask_BT
    if config.scale == "batch-std":
        batch.advantages_BT = whiten(batch.advantages_BT, batch.mask_BT, reduce=world.sum)
    if config.mask_truncated:
        batch.mask_BT = batch.mask_BT & (batch.ended_B > 0)[:, None]
    return metrics


def update(
    session: Session, actors: Actors, optimizer: AdamW, batch: Rollouts, config: GRPOConfig, step: int, rate: float
) -> dict[str, float]:
    """All passes over one batch; the metrics are means over its optimizer steps (none: nothing to learn from)."""
    normalizer = NORMALIZERS[config.normalize]

    def loss_of(mine: list[int]) -> LossFn[list[int]] | None:
        mask_BT = batch.mask_BT[mine]
        counts = session.world.sum(torch.stack((mask_BT.sum(), mask_BT.any(1).sum())))
        tokens, answers = counts.tolist()  # in one wait for a device
        if not tokens:
            return None
        divisor = normalizer.divisor(tokens, answers, config.sampling.max_new_tokens)
        return partial(grpo_loss, actors, batch, config, normalizer, divisor)

    weighed = updates.weigh(batch, config.importance_cap, actors.dtype, session.world, RATIOS[config.ratio])
    return weighed | updates.update(
        session,
        optimizer,
        batch,
        config,
        loss_of,
        passes=config.num_iterations,
        cliprange=config.epsilon,
        dtype=actors.dtype,
        step=step,
        rate=rate,
    )


def grpo_loss(
    actors: Actors, batch: Rollouts, config: GRPOConfig, normalizer: Normalizer, divisor: int, places: list[int]
) -> tuple[Tensor, MetricSums]:
    """Clipped surrogate plus `beta` times the KL of some rows; `divisor` is of the whole optimizer step."""
    rows = batch.select(places)
    logps_BT = completion_logprobs(
        actors.policy,
        rows.ids_BT,
        rows.mask_BT,
        lengths_B=rows.lengths_B,
        kept_N=rows.kept_N,
        temperature=config.sampling.temperature,
    ).logps_BT
    tensors = (logps_BT, rows.old_logps_BT, rows.advantages_BT, rows.mask_BT)
    high, log_ratio = config.epsilon_high or config.epsilon, RATIOS[config.ratio]
    weight_B = normalizer.weights(rows.mask_BT, logps_BT.dtype)
    loss, sums = ppo_policy_loss(
        *tensors,
        cliprange=config.epsilon,
        cliprange_high=high,
        log_ratio=log_ratio,
        num_tokens=divisor,
        weight_B=weight_B,
        importance_BT=rows.importance_BT,
    )
    sums |= clip_shares(*tensors, cliprange=config.epsilon, cliprange_high=high, log_ratio=log_ratio)
    updates.add_sampler_gap(sums, logps_BT, rows)
    if config.beta:
        assert rows.ref_logps_BT is not None  # the reference is loaded for it
        estimator = ESTIMATORS[config.kl_estimator]
        kl, kl_sums = kl_loss(
            logps_BT, rows.ref_logps_BT, rows.mask_BT, num_tokens=divisor, estimator=estimator, weight_B=weight_B
        )
        loss, sums = loss + config.beta * kl, sums | kl_sums
    return loss, sums


def _baseline(rewards_PK: Tensor, groups: Groups, config: GRPOConfig) -> tuple[Tensor, Tensor]:
    """-> baseline_PK, and which answers have something to be compared with (learns_PK)."""
    learns_PK = groups.valid_PK
    if config.compares_groups:
        learns_PK = learns_PK & (learns_PK.sum(1, keepdim=True) > 1)
    if config.dynamic_sampling:
        learns_PK = learns_PK & ~groups.flat_P[:, None]
    if groups.greedy_P is not None:
        greedy_PK = groups.greedy_P[:, None].expand_as(rewards_PK)
        return greedy_PK.nan_to_num(0.0), learns_PK & ~greedy_PK.isnan()
    return BASELINES[config.baseline](rewards_PK, groups.valid_PK), learns_PK


def _own(x_PK: Tensor, batch: Rollouts) -> Tensor:
    """The entries of this process's rows. -> x_B"""
    return x_PK.reshape(-1)[batch.world.rank :: batch.world.size].to(batch.ids_BT.device)


def _kl_of_all(batch: Rollouts, world: World) -> Tensor:
    """KL of every answer of the step in nats, in order of rows; the same on every process."""
    parts = world.gather_objects(batch.kl_BT().sum(1).double().tolist())
    kl_B = torch.zeros(batch.rows, dtype=torch.float64)
    for rank, part in enumerate(parts):
        kl_B[rank :: world.size] = torch.tensor(part, dtype=torch.float64)
    return kl_B


def _metrics(batch: Rollouts, groups: Groups, world: World) -> dict[str, float]:
    scores_PK, valid_PK = groups.scores_PK, groups.valid_PK
    all_as_one = scores_PK.reshape(1, -1), valid_PK.reshape(1, -1)
    metrics = {"reward": float(group_mean(*all_as_one)[0, 0]), "reward_std": float(group_std(*all_as_one))}
    if valid_PK.shape[1] > 1:
        metrics |= {"frac_reward_zero_std": groups.flat / groups.asked, "sampling/groups": float(groups.asked)}
        metrics["sampling/reward"] = groups.sampled_reward
    sums = batch.measured()
    rows = batch.mask_BT.any(1).float()
    sums.add("completions/clipped_ratio", ((1 - batch.ended_B) * rows).sum(), rows.sum())
    return metrics | sums.means(world.sum)
