"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) with the scalings that long-context models use.

A head of size d is rotated in d/2 planes; plane i pairs element i with element i + d/2 (the Hugging Face layout) and
turns by position * frequency_i. Shapes: B batch, T time, H heads (queries and keys together), d head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Scalings we compute, each with the settings it reads.
OPTIONAL_ROPE_SETTINGS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", *OPTIONAL_ROPE_SETTINGS),
}

# Angles are looked up in a table up to this many positions; longer contexts compute them for the positions at hand.
_TABLE_POSITIONS = 32_768


@dataclass(frozen=True)
class Rope:
    """One kind of rotary embedding: `kind` of ROPE_TYPES, base `theta`, and the settings of that kind."""

    kind: str = "default"
    theta: float = 10_000.0
    settings: tuple[tuple[str, Any], ...] = ()

    def frequencies(self, head_dim: int) -> tuple[Tensor, float]:
        """Radians per position of each plane (head_dim / 2 of them), and the factor on queries and keys (1.0 = off)."""
        plain = 1.0 / (self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
        s = dict(self.settings)
        if self.kind == "linear":  # positions are divided by the factor
            return plain / s["factor"], 1.0
        if self.kind == "llama3":
            return _llama3(plain, **s), 1.0
        if self.kind == "yarn":
            return _yarn(plain, self.theta, head_dim, **s)
        return plain, 1.0


def _llama3(
    plain: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """Llama 3.1: slow planes are divided by the factor, fast ones kept, those between blended."""
    turns = original_max_position_embeddings * plain / (2 * math.pi)  # full turns within the original context
    blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
    return (1 - blend) * plain / factor + blend * plain


def _yarn(
    plain: Tensor,
    theta: float,
    head_dim: int,
    *,
    factor: float,
    original_max_position_embeddings: int,
    attention_factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): as Llama 3.1, with a ramp over plane numbers and hotter attention."""

    def plane(turns: float) -> float:
        return head_dim * math.log(original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def heat(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    low, high = plane(beta_fast), plane(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    if attention_factor is None:
        attention_factor = heat(mscale) / heat(mscale_all_dim) if mscale and mscale_all_dim else heat(1.0)
    return ramp * plain / factor + (1 - ramp) * plain, attention_factor


@dataclass
class Rotary:
    """The cosines and sines of one `Rope`, kept per device and dtype; no part of the model's state."""

    rope: Rope
    head_dim: int
    max_length: int
    _tables: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    def angles(self, positions_BT: Tensor | None, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Cosines and sines for `positions_BT`, or for positions 0 .. length-1 when that is None.

        -> (2, B or 1, T, 1, d/2): [0] cosines, [1] sines, to broadcast over (B, T, H, d/2).
        """
        if positions_BT is not None and self.max_length > _TABLE_POSITIONS:
            table = self._compute(positions_BT.float(), dtype)
            return table.unsqueeze(-2)
        table = self._table(max(length, self.max_length if positions_BT is not None else 0), device, dtype)
        if positions_BT is None:
            return table[:, None, :length, None]
        return table[:, positions_BT].unsqueeze(-2)

    def turns(self, length: int, device: torch.device) -> Tensor:
        """Float32 cosines and sines of at least positions 0 .. length-1. -> (2, P, d/2)"""
        return self._table(length, device, torch.float32)

    def _table(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        table = self._tables.get((device, dtype))
        if table is None or table.shape[1] < length:
            size = max(256, 1 << (length - 1).bit_length())
            with torch.inference_mode(False):  # a table first made while sampling must serve training later
                table = self._compute(torch.arange(size, device=device, dtype=torch.float32), dtype)
            self._tables[device, dtype] = table
        return table

    def _compute(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        frequencies, factor = self.rope.frequencies(self.head_dim)
        radians = positions.unsqueeze(-1) * frequencies.to(positions.device)
        return (torch.stack((radians.cos(), radians.sin())) * factor).to(dtype)


def rotate(x_BTHd: Tensor, angles: Tensor) -> Tensor:
    """Turn every head by its position: (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of a head.

    x_BTHd: heads before rotation. angles: from `Rotary.angles`. -> same shape and dtype.
    """
    cos, sin = angles.to(x_BTHd.dtype)
    if torch.is_grad_enabled():
        return _Rotate.apply(x_BTHd, cos, sin)
    return _turn(x_BTHd, cos, sin, 1, x_BTHd.new_empty(x_BTHd.shape))


def rotate_and_split(qkv_BTHd: Tensor, angles: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value heads out of one tensor, queries and keys rotated.

    qkv_BTHd: `heads` query heads, then `kv_heads` key heads, then as many value heads. angles: from `Rotary.angles`.
    -> q, k, v, each (B, T, its heads, d).
    """
    cos, sin = angles.to(qkv_BTHd.dtype)
    if torch.is_grad_enabled():
        return _RotateAndSplit.apply(qkv_BTHd, cos, sin, heads, kv_heads)
    qk, v = qkv_BTHd.split((heads + kv_heads, kv_heads), dim=2)
    return *_turn(qk, cos, sin, 1, qk.new_empty(qk.shape)).split((heads, kv_heads), dim=2), v


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int, out: Tensor) -> Tensor:
    """Rotate by the angle times `sign` (1 or -1), written into `out`."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=sign)
    return out


class _Rotate(torch.autograd.Function):
    """Few operations forward and backward, and no activation saved: the gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BTHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BTHd, cos, sin, 1, x_BTHd.new_empty(x_BTHd.shape))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1, grad.new_empty(grad.shape)), None, None


class _RotateAndSplit(torch.autograd.Function):
    """The three gradients are written straight into the one tensor that the fused projection before it wants."""

    @staticmethod
    def forward(
        ctx: Any, qkv_BTHd: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        qk, v = qkv_BTHd.split((heads + kv_heads, kv_heads), dim=2)
        turned = _turn(qk, cos, sin, 1, qk.new_empty(qk.shape))
        return *turned.split((heads, kv_heads), dim=2), v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad_q, grad_k, grad_v = grads
        sizes = [g.shape[2] for g in grads]
        out = grad_q.new_empty((*grad_q.shape[:2], sum(sizes), grad_q.shape[3]))
        out_q, out_k, out_v = out.split(sizes, dim=2)
        _turn(grad_q, cos, sin, -1, out_q)
        _turn(grad_k, cos, sin, -1, out_k)
        out_v.copy_(grad_v)
        return out, None, None, None, None
