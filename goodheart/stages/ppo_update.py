"""PPO's mathematics on a batch of answers: rewards and advantages, then epochs of clipped updates.

Letters: B rows (answers), T time (tokens), N masked tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from goodheart.data.batches import micro_batches
from goodheart.errors import HealthError
from goodheart.losses.advantages import gae, rewards_with_kl, whiten
from goodheart.losses.metrics import MetricSums
from goodheart.losses.policy import ppo_policy_loss, value_loss
from goodheart.models.causal import completion_logprobs
from goodheart.stages.actors import Actors
from goodheart.stages.rollouts import Rollouts
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import World
from goodheart.train.session import Session
from goodheart.train.step import train_step

if TYPE_CHECKING:
    from goodheart.stages.ppo import PPOConfig

# How far the probability ratio of the first update may be from 1: rounding of the compute dtype, no more.
_RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}


def advantages(batch: Rollouts, kl_coef: float, config: PPOConfig, world: World) -> dict[str, float]:
    """Fills `batch.advantages_BT` and `batch.returns_BT`; returns the objective's metrics over all processes."""
    mask_BT = batch.mask_BT
    kl_BT = (batch.old_logps_BT - batch.ref_logps_BT) * mask_BT
    rewards_BT = rewards_with_kl(batch.scores_B, kl_BT, mask_BT, kl_coef)
    if config.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False, reduce=world.sum)
    advantages_BT, batch.returns_BT = gae(rewards_BT, batch.values_BT, mask_BT, gamma=config.gamma, lam=config.lam)
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT, reduce=world.sum)
    batch.advantages_BT = advantages_BT

    sums = MetricSums()
    rows = mask_BT.any(1).float()  # an answer the judge had no opinion on does not count
    kl_B, tokens = kl_BT.sum(1), mask_BT.sum()
    sums.add("objective/kl", kl_B.sum(), rows.sum())
    sums.add("objective/scores", (batch.scores_B * rows).sum(), rows.sum())
    sums.add("objective/raw_scores", (batch.raw_scores_B * rows).sum(), rows.sum())
    sums.add("objective/non_score_reward", -kl_coef * kl_B.sum(), rows.sum())
    sums.add("objective/rlhf_reward", ((batch.scores_B - kl_coef * kl_B) * rows).sum(), rows.sum())
    sums.add("objective/entropy", -(batch.old_logps_BT * mask_BT).sum(), rows.sum())
    sums.add("policy/entropy_avg", -(batch.old_logps_BT * mask_BT).sum(), tokens)
    sums.add("completions/mean_length", mask_BT.sum(), rows.sum())
    sums.add("completions/ended", (batch.ended_B * rows).sum(), rows.sum())
    metrics = sums.means(world.sum)
    error = (batch.returns_BT - batch.values_BT) * mask_BT
    metrics["critic/vf_explained_var"] = 1 - _variance(error, mask_BT, world) / max(
        _variance(batch.returns_BT, mask_BT, world), 1e-8
    )
    return metrics


def update(
    session: Session, actors: Actors, optimizer: AdamW, batch: Rollouts, config: PPOConfig, step: int, rate: float
) -> dict[str, float]:
    """All passes over one batch of rollouts; the metrics are means over its optimizer steps."""
    world = session.world
    collected: list[dict[str, float]] = []
    for epoch in range(config.ppo_epochs):
        for rows in _mini_batches(batch.rows, config, step, epoch):
            mine = batch.local(rows)
            num_tokens = int(world.sum(float(batch.mask_BT[mine].sum())))
            if num_tokens == 0:
                continue  # the judge had no opinion on any of these answers
            pieces = micro_batches([int(batch.lengths_B[i]) for i in mine], config.max_tokens)
            metrics = train_step(
                world,
                optimizer,
                [[mine[i] for i in piece] for piece in pieces],
                partial(ppo_losses, actors, batch, config, num_tokens, step >= config.value_warmup),
                max_grad_norm=config.max_grad_norm,
                lr=rate,
                step=step + 1,
                name_rows=batch.names,
            )
            if not collected:
                _check_first_ratio(metrics, actors.dtype, step)
            collected.append(metrics)
            if config.target_kl is not None and metrics["policy/approxkl_avg"] > config.target_kl:
                return _summary(collected, stopped=True)
    return _summary(collected, stopped=False)


def ppo_losses(
    actors: Actors, batch: Rollouts, config: PPOConfig, num_tokens: int, policy_on: bool, places: list[int]
) -> Iterator[tuple[torch.Tensor, MetricSums]]:
    """Policy loss, then value loss of some rows (both at once on a shared trunk), over the mini-batch's token count."""
    rows = batch.select(places)
    with nullcontext() if policy_on else torch.no_grad():
        loss, sums, hidden_ND = _policy_part(actors, rows, config, num_tokens)
    if policy_on and actors.separate:
        yield loss, sums
        del loss, hidden_ND
        yield _value_part(actors, rows, None, config, num_tokens)
    else:
        critic, critic_sums = _value_part(actors, rows, hidden_ND, config, num_tokens)
        yield loss + critic, sums | critic_sums


def _policy_part(
    actors: Actors, rows: Rollouts, config: PPOConfig, num_tokens: int
) -> tuple[torch.Tensor, MetricSums, torch.Tensor]:
    """Clipped surrogate minus entropy bonus; and the policy's hidden states."""
    out = completion_logprobs(
        actors.policy,
        rows.ids_BT,
        rows.mask_BT,
        lengths_B=rows.lengths_B,
        temperature=config.sampling.temperature,
        with_entropy=config.entropy_coef > 0,
    )
    loss, sums = ppo_policy_loss(
        out.logps_BT,
        rows.old_logps_BT,
        rows.advantages_BT,
        rows.mask_BT,
        cliprange=config.cliprange,
        num_tokens=num_tokens,
    )
    apart_BT = (out.logps_BT.detach() - rows.sampler_logps_BT).abs() * rows.mask_BT
    sums.add("sampler/logprob_diff_mean", apart_BT.sum(), rows.mask_BT.sum())
    if out.entropy_BT is not None:
        loss = loss - config.entropy_coef * out.entropy_BT.sum() / num_tokens
    return loss, sums, out.hidden_ND


def _value_part(
    actors: Actors, rows: Rollouts, hidden_ND: torch.Tensor | None, config: PPOConfig, num_tokens: int
) -> tuple[torch.Tensor, MetricSums]:
    loss, sums = value_loss(
        actors.values(rows.ids_BT, rows.mask_BT, rows.lengths_B, hidden_ND),
        rows.values_BT,
        rows.returns_BT,
        rows.mask_BT,
        cliprange_value=config.cliprange_value,
        num_tokens=num_tokens,
    )
    return config.vf_coef * loss, sums


def _mini_batches(rows: int, config: PPOConfig, step: int, epoch: int) -> list[list[int]]:
    """Row numbers of the whole batch (all processes) in shuffled mini-batches of equal size, give or take one."""
    generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 101 + epoch)
    shuffled = torch.randperm(rows, generator=generator).tolist()
    return [shuffled[start :: config.mini_batches] for start in range(config.mini_batches)]


def _check_first_ratio(metrics: dict[str, float], dtype: torch.dtype, step: int) -> None:
    """Before the first update of a batch the policy is the one that was recorded: ratio 1, nothing clipped."""
    ratio, clipped = metrics["val/ratio"], metrics["policy/clipfrac_avg"]
    tolerance = _RATIO_TOLERANCE[dtype]
    if abs(ratio - 1) > tolerance or clipped > tolerance:
        raise HealthError(
            f"step {step + 1}: before the first update the probability ratio is {ratio:.4f} (must be 1) and the clip "
            f"fraction {clipped:.4f} (must be 0): log-probabilities differ between sampling and update; "
            "a model with dropout or other randomness in its forward pass does this"
        )


def _variance(x_BT: torch.Tensor, mask_BT: torch.Tensor, world: World) -> float:
    count = world.sum(float(mask_BT.sum()))
    mean = world.sum(float((x_BT * mask_BT).sum())) / count
    return world.sum(float((((x_BT - mean) ** 2) * mask_BT).sum())) / count


def _summary(updates: Sequence[dict[str, float]], *, stopped: bool) -> dict[str, float]:
    """Means over the updates of a step; the sampler is compared before the first, while both are one policy."""
    means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
    return means | {
        "sampler/logprob_diff_mean": updates[0]["sampler/logprob_diff_mean"],
        "policy/updates": float(len(updates)),
        "policy/stopped_early": float(stopped),
    }
