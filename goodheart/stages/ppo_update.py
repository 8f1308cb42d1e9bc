"""PPO's mathematics on a batch of answers: rewards and advantages, then epochs of clipped updates.

Letters: B rows (answers), T time (tokens), N masked tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch

from goodheart.losses.advantages import gae, rewards_with_kl, whiten
from goodheart.losses.metrics import MetricSums
from goodheart.losses.policy import ppo_policy_loss, value_loss
from goodheart.models.causal import completion_logprobs
from goodheart.stages import updates
from goodheart.stages.actors import ActorCritic
from goodheart.stages.rollouts import Rollouts
from goodheart.stages.settings.ppo import PPOConfig
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import World
from goodheart.train.session import Session
from goodheart.train.step import LossFn


def advantages(batch: Rollouts, kl_coef: float, config: PPOConfig, world: World) -> dict[str, float]:
    """Fills `batch.advantages_BT` and `batch.returns_BT`; returns the objective's metrics over all processes."""
    mask_BT, kl_BT, values_BT = batch.mask_BT, batch.kl_BT(), batch.values_BT
    assert values_BT is not None  # an `ActorCritic` has said them
    rewards_BT = rewards_with_kl(batch.scores_B, kl_BT, mask_BT, kl_coef)
    if config.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False, reduce=world.sum)
    advantages_BT, batch.returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam)
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT, reduce=world.sum)
    batch.advantages_BT = advantages_BT

    sums = batch.measured()
    rows, kl_B = mask_BT.any(1).float(), kl_BT.sum(1)
    sums.add("objective/scores", (batch.scores_B * rows).sum(), rows.sum())
    sums.add("objective/non_score_reward", -kl_coef * kl_B.sum(), rows.sum())
    sums.add("objective/rlhf_reward", ((batch.scores_B - kl_coef * kl_B) * rows).sum(), rows.sum())
    sums.add("completions/ended", (batch.ended_B * rows).sum(), rows.sum())
    metrics = sums.means(world.sum)
    error = (batch.returns_BT - values_BT) * mask_BT
    metrics["critic/vf_explained_var"] = 1 - _variance(error, mask_BT, world) / max(
        _variance(batch.returns_BT, mask_BT, world), 1e-8
    )
    return metrics


def update(
    session: Session, actors: ActorCritic, optimizer: AdamW, batch: Rollouts, config: PPOConfig, step: int, rate: float
) -> dict[str, float]:
    """All passes over one batch of rollouts; the metrics are means over its optimizer steps."""
    world = session.world

    def loss_of(mine: list[int]) -> LossFn[list[int]] | None:
        num_tokens = int(world.sum(float(batch.fetch()[1][mine].sum())))
        if num_tokens == 0:
            return None  # the judge had no opinion on any of these answers
        return partial(ppo_losses, actors, batch, config, num_tokens, step >= config.value_warmup)

    weighed = updates.weigh(batch, config.importance_cap, actors.dtype, world)
    return weighed | updates.update(
        session,
        optimizer,
        batch,
        config,
        loss_of,
        passes=config.ppo_epochs,
        cliprange=config.cliprange,
        dtype=actors.dtype,
        step=step,
        rate=rate,
    )


def ppo_losses(
    actors: ActorCritic, batch: Rollouts, config: PPOConfig, num_tokens: int, policy_on: bool, places: list[int]
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
    actors: ActorCritic, rows: Rollouts, config: PPOConfig, num_tokens: int
) -> tuple[torch.Tensor, MetricSums, torch.Tensor]:
    """Clipped surrogate minus entropy bonus; and the policy's hidden states."""
    out = completion_logprobs(
        actors.policy,
        rows.ids_BT,
        rows.mask_BT,
        lengths_B=rows.lengths_B,
        kept_N=rows.kept_N,
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
        importance_BT=rows.importance_BT,
    )
    updates.add_sampler_gap(sums, out.logps_BT, rows)
    if out.entropy_BT is not None:
        loss = loss - config.entropy_coef * out.entropy_BT.sum() / num_tokens
    return loss, sums, out.hidden_ND


def _value_part(
    actors: ActorCritic, rows: Rollouts, hidden_ND: torch.Tensor | None, config: PPOConfig, num_tokens: int
) -> tuple[torch.Tensor, MetricSums]:
    assert rows.values_BT is not None
    assert rows.returns_BT is not None  # `advantages` has filled them
    loss, sums = value_loss(
        actors.values(rows, hidden_ND),
        rows.values_BT,
        rows.returns_BT,
        rows.mask_BT,
        cliprange_value=config.cliprange_value,
        num_tokens=num_tokens,
    )
    return config.vf_coef * loss, sums


def _variance(x_BT: torch.Tensor, mask_BT: torch.Tensor, world: World) -> float:
    count = world.sum(float(mask_BT.sum()))
    mean = world.sum(float((x_BT * mask_BT).sum())) / count
    return world.sum(float((((x_BT - mean) ** 2) * mask_BT).sum())) / count
