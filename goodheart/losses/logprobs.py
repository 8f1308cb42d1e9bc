"""Log-probabilities and entropy of chosen tokens, straight from hidden states, without the full logits.

A language model's head is logits = softcap(scale * (hidden weight^T + bias)) and a token's log-probability is
logits[target] / temperature - logsumexp(logits / temperature). For N tokens and V words that matrix is by far the
largest tensor of training, so it is visited in tiles of at most `max_elements` entries, and again in backward.

Shapes: N tokens (flat), V vocabulary, D width, R rows of a tile (R <= N), C columns of a tile (C <= V).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# A tile with fewer rows than this makes thin, slow matmuls; below it we rather cut the vocabulary into columns.
_MIN_TILE_ROWS = 64
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


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    max_elements: int = 2**24,
    softmax: Softmax | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target token, and optionally the entropy of each distribution, in nats.

    The matmul runs in the dtype of `weight_VD` (under autocast: the autocast dtype); everything after it in float32,
    or in float64 when the weight is float64. When all N*V logits fit in `max_elements` they are kept for backward;
    otherwise they are computed again there. Gradients reach hidden, weight and bias, through the entropy too; those not
    required cost nothing. Weight gradients of several tiles are summed in float32.

    hidden_ND: hidden states after the final norm. weight_VD, bias_V: the output layer. targets_N: token ids in [0, V).
    scale: factor on the logits (1.0 = off). softcap: cap * tanh(logits / cap), Gemma 2 arXiv:2408.00118 (None = off).
    temperature: divides the logits last; the entropy is that of the tempered distribution, the one sampled from.
    max_elements: largest number of logits alive at once.
    softmax: compiled, for float32 logits and whole rows; None = PyTorch.
    -> logps_N, entropy_N (None without `with_entropy`), float32.
    Raises ValueError for shapes that do not fit, a target outside [0, V) (checked on CPU), or a non-positive setting.
    Differentiable once; a second derivative raises RuntimeError.
    """
    _check(hidden_ND, weight_VD, targets_N, bias_V, softcap, temperature, max_elements)
    dtype = weight_VD.dtype
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
    hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    if _wide(weight_VD.dtype) != torch.float32 or _MIN_TILE_ROWS * len(weight_VD) > max_elements:
        softmax = None
    head = _Head(scale, softcap, temperature, with_entropy, max_elements, softmax)
    inputs = (hidden_ND, weight_VD, bias_V)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _TokenLogprobs.apply(hidden_ND, weight_VD, bias_V, targets_N, head)
    forward = _forward if softmax is None else _compiled_forward
    logps_N, entropy_N, _, _ = forward(head, hidden_ND, weight_VD, bias_V, targets_N, keep=False)
    return logps_N, entropy_N


@torch.no_grad()
def head_logits(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """The logits that `token_logprobs` normalises: the sampler uses this, so that both see the same rounding.

    Matmul in the dtype of `weight_VD`, the rest in float32 (float64 for a float64 weight), without gradients.
    -> logits_NV, divided by the temperature.
    """
    return _Head(scale, softcap, temperature).logits(hidden_ND.to(weight_VD.dtype), weight_VD, bias_V)


@dataclass(frozen=True, slots=True)
class _Head:
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
            return max(1, min(rows, max(_CACHED // columns, _MIN_TILE_ROWS))), columns
        tile_rows = max(self.max_elements // columns, min(_MIN_TILE_ROWS, self.max_elements))
        tile_rows = max(1, min(rows, tile_rows))
        return tile_rows, min(columns, max(1, self.max_elements // tile_rows))

    def logits(self, hidden_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
        """Tempered logits of one tile in float32 (float64)."""
        logits_RC = torch.mm(hidden_RD, weight_CD.t()).to(_wide(weight_CD.dtype))
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


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: _Head,
    ) -> tuple[Tensor, Tensor | None]:
        forward = _forward if head.softmax is None else _compiled_forward
        logps_N, entropy_N, logsumexp_N, kept = forward(head, hidden_ND, weight_VD, bias_V, targets_N, keep=True)
        saved = (hidden_ND, weight_VD, bias_V, targets_N, logsumexp_N, entropy_N, *kept)
        ctx.save_for_backward(*saved)  # type: ignore[arg-type]
        ctx.head = head  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return logps_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_logps_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, logsumexp_N, entropy_N, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        head: _Head = ctx.head  # type: ignore[attr-defined]
        if grad_logps_N is None and grad_entropy_N is None:
            return (None,) * 5
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        grad_hidden_ND = _Sum(hidden_ND) if needs_hidden else None
        grad_weight_VD = _Sum(weight_VD) if needs_weight else None
        grad_bias_V = _Sum(bias_V) if needs_bias else None
        for number, (rows, columns) in enumerate(_tiles(head, hidden_ND.shape[0], weight_VD.shape[0])):
            hidden_RD, weight_CD = hidden_ND[rows], weight_VD[columns]
            logits_RC = kept[number] if kept else None
            if logits_RC is None:
                logits_RC = head.logits(hidden_RD, weight_CD, None if bias_V is None else bias_V[columns])
            of_rows = (
                logsumexp_N[rows],
                None if entropy_N is None else entropy_N[rows],
                None if grad_logps_N is None else grad_logps_N[rows],
                None if grad_entropy_N is None else grad_entropy_N[rows],
            )
            if head.softmax is not None:
                grad_RC = head.softmax.softmax_backward(logits_RC, targets_N[rows], *of_rows)
            else:
                # The cap needs the logits once more; kept ones may serve a second backward pass.
                in_place = not kept and head.softcap is None
                grad_RC = _logits_gradient(logits_RC, targets_N[rows] - columns.start, *of_rows, in_place=in_place)
            grad_RC = head.through_head_(grad_RC, logits_RC)
            if grad_bias_V is not None:
                grad_bias_V.add(columns, grad_RC.sum(0))
            grad_RC = grad_RC.to(weight_VD.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND.add(rows, torch.mm(grad_RC, weight_CD))
            if grad_weight_VD is not None:
                grad_weight_VD.add_product(columns, grad_RC.t(), hidden_RD)
            del logits_RC, grad_RC  # before the next tile is made
        grads = (grad_hidden_ND, grad_weight_VD, grad_bias_V)
        return *(None if grad is None else grad.result() for grad in grads), None, None


class _Sum:
    """A gradient gathered from tiles: one tile that covers everything is passed through, more are summed wide."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.total: Tensor | None = None

    def add(self, part: slice, grad: Tensor) -> None:
        if self.total is None:
            if grad.shape == self.like.shape:
                self.total = grad
                return
            self.total = torch.zeros(self.like.shape, dtype=_wide(self.like.dtype), device=self.like.device)
        elif self.total.dtype != _wide(self.like.dtype):
            self.total = self.total.to(_wide(self.like.dtype))
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


def _forward(
    head: _Head, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
    """-> logps_N, entropy_N | None, logsumexp_N, and the tempered logits when one tile holds them all (else none)."""
    wide = {"dtype": _wide(weight_VD.dtype), "device": hidden_ND.device}
    tokens = hidden_ND.shape[0]
    largest_N = torch.full((tokens,), -torch.inf, **wide)  # type: ignore[call-overload]
    total_N, weighted_N, chosen_N = torch.zeros(3, tokens, **wide).unbind(0)  # type: ignore[call-overload]
    kept_NV: list[Tensor] = []
    for rows, columns in _tiles(head, tokens, weight_VD.shape[0]):
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


def _compiled_forward(
    head: _Head, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
    """As `_forward`, each tile in one go; all tiles are kept, or none."""
    assert head.softmax is not None  # the caller looked
    logps_N, logsumexp_N = hidden_ND.new_empty(2, len(hidden_ND), dtype=torch.float32).unbind(0)
    entropy_N = torch.empty_like(logps_N) if head.with_entropy else None
    keep = keep and len(hidden_ND) * len(weight_VD) <= head.max_elements
    kept = []
    for rows, _ in _tiles(head, len(hidden_ND), len(weight_VD)):
        logits_RV = head.logits(hidden_ND[rows], weight_VD, bias_V)
        logps_N[rows], logsumexp_N[rows], entropy_R = head.softmax.softmax(
            logits_RV, targets_N[rows], with_entropy=head.with_entropy
        )
        if entropy_N is not None and entropy_R is not None:
            entropy_N[rows] = entropy_R
        if keep:
            kept.append(logits_RV)
    return logps_N, entropy_N, logsumexp_N, kept


def _logits_gradient(
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


def _tiles(head: _Head, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    tile_rows, tile_columns = head.tile_shape(rows, columns)
    for row in range(0, rows, tile_rows):
        for column in range(0, columns, tile_columns):
            yield slice(row, min(row + tile_rows, rows)), slice(column, min(column + tile_columns, columns))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    temperature: float,
    max_elements: int,
) -> None:
    tokens, vocabulary = hidden_ND.shape[0], weight_VD.shape[0]
    fits = hidden_ND.dim() == weight_VD.dim() == 2 and hidden_ND.shape[1] == weight_VD.shape[1]
    fits = fits and targets_N.shape == (tokens,) and (bias_V is None or bias_V.shape == (vocabulary,))
    if not fits or vocabulary == 0:
        shapes = [None if x is None else tuple(x.shape) for x in (hidden_ND, weight_VD, targets_N, bias_V)]
        raise ValueError(f"hidden (N, D), weight (V, D), targets (N,), bias (V,) or None expected; got {shapes}")
    if temperature <= 0 or max_elements < 1 or (softcap is not None and softcap <= 0):
        raise ValueError(f"must be positive: {temperature=}, {max_elements=}, {softcap=} (None = off)")
    # On an accelerator this check would wait for the device; there an id out of range is the caller's to prevent.
    if targets_N.device.type == "cpu" and tokens:
        low, high = (int(x) for x in targets_N.aminmax())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"target ids must be in [0, {vocabulary}); got {low} to {high}")
