"""Logits in tiles: softmax over them without all of them, and the gradient of what it gave. See `logprobs.py`.

Shapes: N tokens (flat), V vocabulary, D width, R rows of a tile (R <= N), C columns of a tile (C <= V).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# A tile with fewer rows than this makes thin, slow matmuls; below it we rather cut the vocabulary into columns.
MIN_TILE_ROWS = 64
# Logits of a tile that a compiled softmax takes: they stay in the cache between the matmul and the softmax.
_CACHED = 2**18


class Softmax(Protocol):
    """What is done to the logits of a tile, forward and backward, in place of PyTorch's operations."""

    def softmax(
        self, logits_RV: Tensor, targets_R: Tensor, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """-> log-probability of each target, logarithm of the sum of exponentials, entropy."""

    def softmax_backward(
        self,
        logits_RV: Tensor,
        targets_R: Tensor,
        log_sum_R: Tensor,
        entropy_R: Tensor | None,
        grad_logps_R: Tensor | None,
        grad_entropy_R: Tensor | None,
    ) -> Tensor:
        """-> the gradient of the logits."""


@dataclass(frozen=True, slots=True)
class Head:
    """The settings of one call, and the maths of one tile."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    with_entropy: bool = False
    max_elements: int = 2**24
    softmax: Softmax | None = None

    def tile_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of a tile: whole rows if enough of them fit, otherwise a block of columns too."""
        if self.softmax is not None:
            return max(1, min(rows, max(_CACHED // columns, MIN_TILE_ROWS))), columns
        tile_rows = max(self.max_elements // columns, min(MIN_TILE_ROWS, self.max_elements))
        tile_rows = max(1, min(rows, tile_rows))
        return tile_rows, min(columns, max(1, self.max_elements // tile_rows))

    def logits(self, hidden_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
        """Tempered logits of one tile in float32 (float64)."""
        logits_RC = torch.mm(hidden_RD, weight_CD.t()).to(wide(weight_CD.dtype))
        if bias_C is not None:
            logits_RC += bias_C
        if self.scale != 1.0:
            logits_RC *= self.scale
        if self.softcap is not None:
            logits_RC.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            logits_RC /= self.temperature
        return logits_RC

    def through_head_(self, grad_RC: Tensor, logits_RC: Tensor) -> Tensor:
        """Chain rule from tempered logits back to the linear layer, in place."""
        if self.scale != self.temperature:
            grad_RC *= self.scale / self.temperature
        if self.softcap is not None:
            # d cap*tanh(x/cap) / dx = 1 - tanh^2, and tanh is the capped logit over the cap.
            grad_RC *= 1 - (logits_RC * (self.temperature / self.softcap)).square_()
        return grad_RC


class GradientSum:
    """A gradient gathered from tiles: one tile that covers everything is passed through, more are summed wide."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.total: Tensor | None = None

    def add(self, part: slice, grad: Tensor) -> None:
        if self.total is None:
            if grad.shape == self.like.shape:
                self.total = grad
                return
            self.total = torch.zeros(self.like.shape, dtype=wide(self.like.dtype), device=self.like.device)
        elif self.total.dtype != wide(self.like.dtype):
            self.total = self.total.to(wide(self.like.dtype))
        self.total[part] += grad

    def add_product(self, part: slice, a: Tensor, b: Tensor) -> None:
        if self.total is None or self.total.dtype != a.dtype:
            self.add(part, torch.mm(a, b))
        else:
            self.total[part].addmm_(a, b)

    def result(self) -> Tensor:
        if self.total is None:
            return torch.zeros_like(self.like)
        return self.total.to(self.like.dtype)


def softmax_over_tiles(
    head: Head, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
    """-> logps_N, entropy_N | None, logsumexp_N, and the tempered logits when one tile holds them all (else none)."""
    like = {"dtype": wide(weight_VD.dtype), "device": hidden_ND.device}
    tokens = hidden_ND.shape[0]
    largest_N = torch.full((tokens,), -torch.inf, **like)  # type: ignore[call-overload]
    total_N, weighted_N, chosen_N = torch.zeros(3, tokens, **like).unbind(0)  # type: ignore[call-overload]
    kept_NV: list[Tensor] = []
    for rows, columns in tiles(head, tokens, weight_VD.shape[0]):
        bias_C = None if bias_V is None else bias_V[columns]
        logits_RC = head.logits(hidden_ND[rows], weight_VD[columns], bias_C)
        place_R, inside_R = _place(targets_N[rows] - columns.start, logits_RC.shape[1])
        chosen_N[rows] += logits_RC.gather(1, place_R[:, None])[:, 0] * inside_R
        # The running softmax sum: what was summed before is rescaled to the new maximum (arXiv:1805.02867, alg. 3).
        new_largest_R = torch.maximum(largest_N[rows], logits_RC.amax(1))
        shrink_R = (largest_N[rows] - new_largest_R).exp_()
        kept = keep and logits_RC.shape == (tokens, weight_VD.shape[0])
        last_use = not (kept or head.with_entropy)
        exp_RC = torch.sub(logits_RC, new_largest_R[:, None], out=logits_RC if last_use else None).exp_()
        total_N[rows] = total_N[rows] * shrink_R + exp_RC.sum(1)
        if head.with_entropy:
            weighted_N[rows] = weighted_N[rows] * shrink_R + exp_RC.mul_(logits_RC).sum(1)
        largest_N[rows] = new_largest_R
        if kept:
            kept_NV.append(logits_RC)
        del logits_RC, exp_RC  # before the next tile is made
    logsumexp_N = largest_N + total_N.log()
    entropy_N = logsumexp_N - weighted_N / total_N if head.with_entropy else None
    return chosen_N - logsumexp_N, entropy_N, logsumexp_N, kept_NV


def compiled_softmax_over_tiles(
    head: Head, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
    """As `softmax_over_tiles`, each tile in one go; all tiles are kept, or none."""
    assert head.softmax is not None  # the caller looked
    logps_N, logsumexp_N = hidden_ND.new_empty(2, len(hidden_ND), dtype=torch.float32).unbind(0)
    entropy_N = torch.empty_like(logps_N) if head.with_entropy else None
    keep = keep and len(hidden_ND) * len(weight_VD) <= head.max_elements
    kept = []
    for rows, _ in tiles(head, len(hidden_ND), len(weight_VD)):
        logits_RV = head.logits(hidden_ND[rows], weight_VD, bias_V)
        logps_N[rows], logsumexp_N[rows], entropy_R = head.softmax.softmax(
            logits_RV, targets_N[rows], with_entropy=head.with_entropy
        )
        if entropy_N is not None and entropy_R is not None:
            entropy_N[rows] = entropy_R
        if keep:
            kept.append(logits_RV)
    return logps_N, entropy_N, logsumexp_N, kept


def logits_gradient(
    logits_RC: Tensor,
    targets_R: Tensor,
    logsumexp_R: Tensor,
    entropy_R: Tensor | None,
    grad_logps_R: Tensor | None,
    grad_entropy_R: Tensor | None,
    *,
    in_place: bool,
) -> Tensor:
    """Gradient at the tempered logits z, with p = softmax(z) and H its entropy.

    d log p[target] / dz_v = [v = target] - p_v        dH / dz_v = -p_v (log p_v + H)
    in_place: the logits are not needed any more.
    """
    logp_RC = torch.sub(logits_RC, logsumexp_R[:, None], out=logits_RC if in_place else None)
    if grad_entropy_R is None or entropy_R is None:
        assert grad_logps_R is not None  # backward returned early when neither output has a gradient
        grad_RC = logp_RC.exp_().mul_(-grad_logps_R[:, None])
    else:
        constant_R = grad_entropy_R * entropy_R
        if grad_logps_R is not None:
            constant_R = constant_R + grad_logps_R
        grad_RC = logp_RC.exp()
        grad_RC *= logp_RC.mul_(-grad_entropy_R[:, None]).sub_(constant_R[:, None])
    if grad_logps_R is not None:
        place_R, inside_R = _place(targets_R, logits_RC.shape[1])
        grad_RC.scatter_add_(1, place_R[:, None], (grad_logps_R * inside_R)[:, None])
    return grad_RC


def _place(targets_R: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Where in a block of columns each target lies: a valid index, and whether it is in this block at all."""
    return targets_R.clamp(0, columns - 1), (targets_R >= 0) & (targets_R < columns)


def tiles(head: Head, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    tile_rows, tile_columns = head.tile_shape(rows, columns)
    for row in range(0, rows, tile_rows):
        for column in range(0, columns, tile_columns):
            yield slice(row, min(row + tile_rows, rows)), slice(column, min(column + tile_columns, columns))


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
