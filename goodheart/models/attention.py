"""Causal attention over whole sequences: plain, with a sliding window, and over packed rows.

Shapes: B batch, T time, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """Who sees whom. allowed: bool, True where a query (row) sees a key (column), (T, T) or (B, 1, T, T); None = all
    earlier tokens and itself."""

    allowed: Tensor | None = None


def patterns(
    windows: Iterable[int | None], length: int, segments_BT: Tensor | None, device: torch.device
) -> dict[int | None, Pattern]:
    """The pattern for each window size that the layers use.

    windows: tokens a token sees, itself included; None = all. segments_BT: number of the sequence each token belongs
    to; tokens of different sequences never see each other (None = one sequence per row). Padding (0) sees padding, so
    that no row of the softmax is empty.
    """
    result: dict[int | None, Pattern] = {}
    for window in windows:
        reach = length if window is None else min(window, length)
        if reach == length and segments_BT is None:
            result[window] = Pattern()
            continue
        at = torch.arange(length, device=device)
        allowed = at[:, None] >= at[None, :]
        if reach < length:
            allowed &= at[:, None] - at[None, :] < reach
        if segments_BT is not None:
            allowed = allowed & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
        result[window] = Pattern(allowed)
    return result


def attend(
    q_BHTd: Tensor, k_BGTd: Tensor, v_BGTd: Tensor, pattern: Pattern, *, scale: float, softcap: float | None = None
) -> Tensor:
    """softmax(softcap(scale q k^T)) v over the keys that the pattern allows. H must be a multiple of G. -> out_BHTd"""
    if softcap is not None:
        return _attend_softcapped(q_BHTd, k_BGTd, v_BGTd, pattern, scale, softcap)
    return F.scaled_dot_product_attention(
        q_BHTd, k_BGTd, v_BGTd,
        attn_mask=pattern.allowed,
        is_causal=pattern.allowed is None,
        scale=scale,
        enable_gqa=q_BHTd.shape[1] != k_BGTd.shape[1],
    )  # fmt: skip


def _attend_softcapped(
    q_BHTd: Tensor, k_BGTd: Tensor, v_BGTd: Tensor, pattern: Pattern, scale: float, softcap: float
) -> Tensor:
    """The plain formula, cap * tanh(scores / cap) before the softmax (Gemma 2, arXiv:2408.00118): SDPA has no
    softcap.
    """
    groups, T = q_BHTd.shape[1] // k_BGTd.shape[1], q_BHTd.shape[2]
    if groups > 1:
        k_BGTd, v_BGTd = k_BGTd.repeat_interleave(groups, 1), v_BGTd.repeat_interleave(groups, 1)
    allowed = pattern.allowed
    if allowed is None:
        allowed = torch.ones(T, T, dtype=torch.bool, device=q_BHTd.device).tril()
    scores = torch.tanh(q_BHTd @ k_BGTd.transpose(-1, -2) * (scale / softcap)) * softcap
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(q_BHTd.dtype) @ v_BGTd
