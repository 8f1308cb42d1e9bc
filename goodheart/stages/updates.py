"""Passes over one batch of answers in mini-batches: the update that ppo and grpo share.

Letters: B rows (answers), T time (tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from goodheart.data.batches import micro_batches
from goodheart.errors import HealthError
from goodheart.losses.metrics import MetricSums
from goodheart.losses.policy import LogRatio, importance_ratio, token_ratio
from goodheart.stages.rollouts import Rollouts
from goodheart.stages.settings.policy_gradient import PolicyGradientSettings
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import World
from goodheart.train.session import Session
from goodheart.train.step import LossFn, train_step

# How far the probability ratio of the first update may be from 1: rounding of the compute dtype, no more.
_RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}


def update(
    session: Session,
    optimizer: AdamW,
    batch: Rollouts,
    config: PolicyGradientSettings,
    loss_of: Callable[[list[int]], LossFn[list[int]] | None],
    *,
    passes: int,
    cliprange: float,
    dtype: torch.dtype,
    step: int,
    rate: float,
) -> dict[str, float]:
    """All passes over one batch; the metrics are means over its optimizer steps.

    loss_of: this process's places of a mini-batch -> loss of some of them (called on every process; sums its counts
        over all), None where there is nothing to learn from the mini-batch on any process.
    cliprange: the narrower side; a range narrower than rounding is not checked for clipping at the first update.
    """
    collected: list[dict[str, float]] = []
    lengths, _ = batch.fetch()
    for epoch in range(passes):
        for rows in mini_batches(batch.rows, config, step, epoch):
            mine = batch.local(rows)
            loss_fn = loss_of(mine)
            if loss_fn is None:
                continue
            pieces = micro_batches([lengths[i] for i in mine], config.max_tokens)
            metrics = train_step(
                session.world,
                optimizer,
                [[mine[i] for i in piece] for piece in pieces],
                loss_fn,
                max_grad_norm=config.max_grad_norm,
                lr=rate,
                step=step + 1,
                name_rows=batch.names,
            )
            if not collected:
                _check_first_ratio(metrics, _RATIO_TOLERANCE[dtype], cliprange, step)
            collected.append(metrics)
            if config.target_kl is not None and metrics["policy/approxkl_avg"] > config.target_kl:
                return _summary(collected, stopped=True)
    return _summary(collected, stopped=False)


def mini_batches(rows: int, config: PolicyGradientSettings, step: int, epoch: int) -> list[list[int]]:
    """Row numbers of the whole batch (all processes) in shuffled mini-batches of equal size, give or take one."""
    generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 101 + epoch)
    shuffled = torch.randperm(rows, generator=generator).tolist()
    return [shuffled[start :: config.mini_batches] for start in range(config.mini_batches)]


def weigh(
    batch: Rollouts, cap: float | None, dtype: torch.dtype, world: World, log_ratio: LogRatio = token_ratio
) -> dict[str, float]:
    """Fills `batch.importance_BT`: by how much the trainer was likelier to say a token than the sampler, at most `cap`.

    Nothing is done with a `cap` of None, nor in float32, where the sampler is the trainer within rounding.
    -> metrics over all tokens of the step that are learnt from; the largest ratio is that before it is capped.
    """
    if cap is None or dtype == torch.float32:
        return {}
    mask_BT = batch.mask_BT
    ratio_BT = importance_ratio(batch.old_logps_BT, batch.sampler_logps_BT, mask_BT, log_ratio=log_ratio)
    batch.importance_BT = ratio_BT.clamp(max=cap)
    sums = MetricSums()
    shares = {"sampler/importance_mean": batch.importance_BT, "sampler/importance_capped": (ratio_BT > cap).float()}
    sums.add_masked(mask_BT, shares)
    largest = float(ratio_BT.max()) if ratio_BT.numel() else 0.0  # a process may be without rows
    found, largest = sums.means(world.sum), world.max(largest)
    return found | {"sampler/importance_max": largest} if found else {}


def add_sampler_gap(sums: MetricSums, logps_BT: Tensor, rows: Rollouts) -> None:
    """How far the trainer's log-probabilities are from the sampler's, in nats per token."""
    apart_BT = (logps_BT.detach() - rows.sampler_logps_BT).abs() * rows.mask_BT
    sums.add("sampler/logprob_diff_mean", apart_BT.sum(), rows.mask_BT.sum())


def _check_first_ratio(metrics: dict[str, float], tolerance: float, cliprange: float, step: int) -> None:
    """Before the first update of a batch the policy is the one that was recorded: ratio 1, nothing clipped."""
    ratio, clipped = metrics["val/ratio"], metrics["policy/clipfrac_avg"]
    if abs(ratio - 1) > tolerance or (clipped > tolerance and cliprange > tolerance):
        raise HealthError(
            f"step {step + 1}: before the first update the probability ratio is {ratio:.4f} (must be 1) and the clip "
            f"fraction {clipped:.4f} (must be 0): log-probabilities differ between sampling and update; "
            "a model with dropout or other randomness in its forward pass does this"
        )


def _summary(updates: Sequence[dict[str, float]], *, stopped: bool) -> dict[str, float]:
    """Means over the updates of a step. The sampler is compared before the first, while both are one policy; how often
    memory was halved is a state, of which the last counts.
    """
    found = {"policy/updates": float(len(updates)), "policy/stopped_early": float(stopped)}
    if not updates:
        return found
    means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
    first = {"sampler/logprob_diff_mean": updates[0]["sampler/logprob_diff_mean"]}
    last = {name: value for name, value in updates[-1].items() if name == "memory/halvings"}
    return means | first | last | found
