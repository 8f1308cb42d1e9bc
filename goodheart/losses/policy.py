"""Policy gradients: the clipped surrogate, its probability ratios and importance weights, the clipped value loss.

Each is a sum over masked tokens divided by `num_tokens`, the masked tokens of the whole optimizer step over all
micro-batches and processes, so that the gradient does not depend on how the step was split. Metrics are sums with
counts (losses/metrics.py).

Shapes: B rows, T time (tokens). Masks are bool, True on sampled tokens; what lies outside is never read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goodheart.losses.kl import k2, k3
from goodheart.losses.metrics import MetricSums

# (logps_BT, old_logps_BT, mask_BT), 0 outside the mask -> log of the probability ratio of each token
LogRatio = Callable[[Tensor, Tensor, Tensor], Tensor]


def token_ratio(logps_BT: Tensor, old_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Each token's own log-ratio. Source: Schulman et al. arXiv:1707.06347 sec. 3."""
    return logps_BT - old_logps_BT


def sequence_ratio(logps_BT: Tensor, old_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean of the answer's log-ratios on all of its tokens: one ratio, and one decision to clip, per answer.

    That is (p(answer) / p_old(answer))^(1 / length). Source: Zheng et al. arXiv:2507.18071 eq. 7.
    """
    weight_B1 = answer_weights(mask_BT, logps_BT.dtype)[:, None]
    return (weight_B1 * (logps_BT - old_logps_BT)).sum(1, keepdim=True).expand_as(logps_BT)


def importance_ratio(
    old_logps_BT: Tensor, sampler_logps_BT: Tensor, mask_BT: Tensor, *, log_ratio: LogRatio = token_ratio
) -> Tensor:
    """p_old / p_sampler: by how much the trainer's policy was likelier to say each token than the sampler that drew it.

    Answers drawn by another computation than the trainer's (other kernels, bfloat16) are off-policy before the first
    update. The loss of a token times this ratio, truncated from above, has the expectation of tokens drawn by the
    trainer's own policy after what was said before; what came before it and what follows are still the sampler's.

    old_logps_BT, sampler_logps_BT: nats, of the sampled tokens, at the temperature of sampling. log_ratio: as in the
    loss, so that the ratio there times this one is p / p_sampler of the same kind.
    -> ratio_BT, without gradient, 0 outside the mask.
    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (truncated
    importance sampling); truncation: Ionides 2008, doi:10.1198/106186008X320456.
    """
    old_logps_BT, sampler_logps_BT = _inside(mask_BT, old_logps_BT.detach(), sampler_logps_BT.detach())
    return log_ratio(old_logps_BT, sampler_logps_BT, mask_BT).exp().masked_fill(~mask_BT, 0)


def answer_weights(mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / tokens of the answer, so that answers and not tokens weigh the same; 0 for a row without any.

    dtype: of the losses that are weighed. -> weight_B
    """
    tokens_B = mask_BT.sum(1)
    return torch.where(tokens_B > 0, 1 / tokens_B.clamp(min=1).to(dtype), 0)


def ppo_policy_loss(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    cliprange: float,
    num_tokens: int,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
    log_ratio: LogRatio = token_ratio,
    weight_B: Tensor | None = None,
    importance_BT: Tensor | None = None,
) -> tuple[Tensor, MetricSums]:
    """Clipped surrogate objective, negated: the larger (pessimistic) of -A r and -A clip(r, 1 - low, 1 + high).

    r = exp(logp - old_logp), or what `log_ratio` makes of them. No gradient where the ratio has left the range in the
    direction A asks for. The log-ratio is not clamped.

    logps_BT, old_logps_BT: nats; only the first gets gradients. advantages_BT: constants. mask_BT: sampled tokens.
    cliprange: low side, and high side too unless `cliprange_high` is given (DAPO's clip-higher, arXiv:2503.14476 3.1).
    num_tokens: masked tokens in the whole optimizer step, over all processes.
    dual_clip: c > 1 bounds the loss by -A c where A < 0 (Ye et al. arXiv:1912.09729); None = off.
    weight_B: weight of each row's tokens (None = 1); `num_tokens` is then what the weighted sum is to be divided by.
    importance_BT: what the loss of each token is multiplied by, a constant (see `importance_ratio`); None = 1.
    -> scalar loss; `policy/clipfrac_avg` (share of tokens where the clip decides), `policy/approxkl_avg` (k2 of old
    against new, nats per token), `policy/approxkl_k3_avg`, `val/ratio`, `loss/policy_avg`.
    Raises ValueError for num_tokens < 1 or dual_clip <= 1. Source: Schulman et al. arXiv:1707.06347 eq. 7.
    """
    _check_count(num_tokens)
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be over 1 (the ratio at which it starts to bound the loss), got {dual_clip}")
    high = cliprange if cliprange_high is None else cliprange_high
    logps_BT, old_logps_BT, advantages_BT = _inside(mask_BT, logps_BT, old_logps_BT.detach(), advantages_BT.detach())
    ratio_BT = log_ratio(logps_BT, old_logps_BT, mask_BT).exp()
    free_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - cliprange, 1 + high)
    losses_BT = torch.maximum(free_BT, clipped_BT)
    if dual_clip is not None:
        bounded_BT = torch.minimum(losses_BT, -advantages_BT * dual_clip)
        losses_BT = torch.where(advantages_BT < 0, bounded_BT, losses_BT)
    if importance_BT is not None:
        losses_BT = losses_BT * importance_BT.detach().masked_fill(~mask_BT, 0)
    metrics = MetricSums()
    with torch.no_grad():
        values = {
            "policy/clipfrac_avg": (clipped_BT > free_BT).to(logps_BT.dtype),
            "policy/approxkl_avg": k2(old_logps_BT, logps_BT),
            "policy/approxkl_k3_avg": k3(old_logps_BT, logps_BT),
            "val/ratio": ratio_BT,
            "loss/policy_avg": losses_BT,
        }
        metrics.add_masked(mask_BT, values)
    return (losses_BT if weight_B is None else losses_BT * weight_B[:, None]).sum() / num_tokens, metrics


@torch.no_grad()
def clip_shares(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    cliprange: float,
    cliprange_high: float,
    log_ratio: LogRatio = token_ratio,
) -> MetricSums:
    """On which side the surrogate clips: `clip_ratio/low_mean` (a worse token already less likely by the range),
    `clip_ratio/high_mean` (a better one already likelier), `clip_ratio/region_mean` (either); shares of tokens.

    Arguments as in `ppo_policy_loss`.
    """
    logps_BT, old_logps_BT, advantages_BT = _inside(mask_BT, logps_BT, old_logps_BT, advantages_BT)
    ratio_BT = log_ratio(logps_BT, old_logps_BT, mask_BT).exp()
    low_BT = (ratio_BT < 1 - cliprange) & (advantages_BT < 0)
    high_BT = (ratio_BT > 1 + cliprange_high) & (advantages_BT > 0)
    metrics = MetricSums()
    shares = {"low": low_BT, "high": high_BT, "region": low_BT | high_BT}
    metrics.add_masked(mask_BT, {f"clip_ratio/{name}_mean": where.float() for name, where in shares.items()})
    return metrics


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    cliprange_value: float | None,
    num_tokens: int,
) -> tuple[Tensor, MetricSums]:
    """Half the squared error of the values, the larger of the free one and the one clipped around the old values.

    0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2).
    cliprange_value: c, in units of reward; None = no clipping. The rest as in `ppo_policy_loss`.
    -> scalar loss; `val/clipfrac_avg` (share of tokens where the clip decides), `val/mean`, `val/error_avg` (squared
    error before the clip), `loss/value_avg`. Raises ValueError for num_tokens < 1.
    Source: the released code of Schulman et al. arXiv:1707.06347, described in Engstrom et al. arXiv:2005.12729 sec. 3.
    """
    _check_count(num_tokens)
    old_values_BT, returns_BT = old_values_BT.detach(), returns_BT.detach()
    values_BT, old_values_BT, returns_BT = _inside(mask_BT, values_BT, old_values_BT, returns_BT)
    free_BT = (values_BT - returns_BT).square()
    worst_BT, decides_BT = free_BT, torch.zeros_like(mask_BT)
    if cliprange_value is not None:
        near_BT = torch.clamp(values_BT, old_values_BT - cliprange_value, old_values_BT + cliprange_value)
        clipped_BT = (near_BT - returns_BT).square()
        worst_BT, decides_BT = torch.maximum(free_BT, clipped_BT), clipped_BT > free_BT
    metrics = MetricSums()
    with torch.no_grad():
        values = {
            "val/clipfrac_avg": decides_BT.to(values_BT.dtype),
            "val/mean": values_BT,
            "val/error_avg": free_BT,
            "loss/value_avg": 0.5 * worst_BT,
        }
        metrics.add_masked(mask_BT, values)
    return 0.5 * worst_BT.sum() / num_tokens, metrics


def _inside(mask_BT: Tensor, *tensors_BT: Tensor) -> tuple[Tensor, ...]:
    """Zeroes what the mask leaves out before any arithmetic, so that a NaN on padding reaches no gradient."""
    return tuple(tensor_BT.masked_fill(~mask_BT, 0) for tensor_BT in tensors_BT)


def _check_count(num_tokens: int) -> None:
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}: a step without sampled tokens is skipped")
