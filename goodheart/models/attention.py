"""Causal attention over whole sequences: plain, with a sliding window, and over packed rows.

Shapes: B batch, T time, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from goodheart.models.native import Attending

# Packed rows from this length on take block-sparse attention on CUDA: a dense mask makes each row cost T^2, however
# short its sequences. Below it the kernel is not worth its compilation.
_SPARSE_FROM = 1024


@dataclass(frozen=True)
class Pattern:
    """Who sees whom: all earlier tokens and itself, unless one of the two is given.

    allowed: bool, True where a query (row) sees a key (column), (T, T) or (B, 1, T, T).
    blocks: the same as a BlockMask of flex_attention.
    packed: the tokens lie without padding, and `packed.attend` knows who sees whom.
    """

    allowed: Tensor | None = None
    blocks: Any = None
    packed: Attending | None = None


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
        elif segments_BT is not None and device.type == "cuda" and length >= _SPARSE_FROM:
            result[window] = Pattern(blocks=sparse_blocks(segments_BT, reach))
        else:
            result[window] = Pattern(_allowed(length, reach, segments_BT, device))
    return result


def attend(
    q_BHTd: Tensor, k_BGTd: Tensor, v_BGTd: Tensor, pattern: Pattern, *, scale: float, softcap: float | None = None
) -> Tensor:
    """softmax(softcap(scale q k^T)) v over the keys that the pattern allows. H must be a multiple of G. -> out_BHTd"""
    if pattern.blocks is not None:
        return attend_sparsely(_flex_attention(), q_BHTd, k_BGTd, v_BGTd, pattern.blocks, scale, softcap)
    if softcap is not None:
        return _attend_softcapped(q_BHTd, k_BGTd, v_BGTd, pattern, scale, softcap)
    return F.scaled_dot_product_attention(
        q_BHTd, k_BGTd, v_BGTd,
        attn_mask=pattern.allowed,
        is_causal=pattern.allowed is None,
        scale=scale,
        enable_gqa=q_BHTd.shape[1] != k_BGTd.shape[1],
    )  # fmt: skip


def sparse_blocks(segments_BT: Tensor, reach: int) -> Any:
    """The BlockMask of packed rows: blocks in which no token sees another are skipped. reach: window, at most T."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < reach) & (segments_BT[b, q] == segments_BT[b, k])

    B, T = segments_BT.shape
    return create_block_mask(sees, B, None, T, T, device=segments_BT.device)


def attend_sparsely(
    flex_attention: Any,
    q_BHTd: Tensor,
    k_BGTd: Tensor,
    v_BGTd: Tensor,
    blocks: Any,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """As `attend`, over a BlockMask. flex_attention: torch's, compiled or not (then slow, for tests). -> out_BHTd"""
    return flex_attention(
        q_BHTd, k_BGTd, v_BGTd,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=blocks,
        scale=scale,
        enable_gqa=q_BHTd.shape[1] != k_BGTd.shape[1],
    )  # fmt: skip


def _capped(softcap: float) -> Any:
    def score_mod(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _allowed(length: int, reach: int, segments_BT: Tensor | None, device: torch.device) -> Tensor:
    at = torch.arange(length, device=device)
    allowed = at[:, None] >= at[None, :]
    if reach < length:
        allowed &= at[:, None] - at[None, :] < reach
    if segments_BT is not None:
        allowed = allowed & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    return allowed


def _attend_softcapped(
    q_BHTd: Tensor, k_BGTd: Tensor, v_BGTd: Tensor, pattern: Pattern, scale: float, softcap: float
) -> Tensor:
    """The plain formula, cap * tanh(scores / cap) before the softmax (Gemma 2, arXiv:2408.00118): SDPA has none."""
    groups, T = q_BHTd.shape[1] // k_BGTd.shape[1], q_BHTd.shape[2]
    if groups > 1:
        k_BGTd, v_BGTd = k_BGTd.repeat_interleave(groups, 1), v_BGTd.repeat_interleave(groups, 1)
    allowed = pattern.allowed
    if allowed is None:
        allowed = _allowed(T, T, None, q_BHTd.device)
    scores = torch.tanh(q_BHTd @ k_BGTd.transpose(-1, -2) * (scale / softcap)) * softcap
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(q_BHTd.dtype) @ v_BGTd
