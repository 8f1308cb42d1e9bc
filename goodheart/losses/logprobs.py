"""Log-probabilities and entropy of chosen tokens, straight from hidden states, without the full logits.

A language model's head is logits = softcap(scale * (hidden weight^T + bias)) and a token's log-probability is
logits[target] / temperature - logsumexp(logits / temperature). For N tokens and V words that matrix is by far the
largest tensor of training, so it is visited in tiles of at most `max_elements` entries (`tiles.py`), and again in
backward.

Shapes: N tokens (flat), V vocabulary, D width, R rows of a tile (R <= N), C columns of a tile (C <= V).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from goodheart.losses.tiles import (
    MIN_TILE_ROWS,
    GradientSum,
    Head,
    Softmax,
    compiled_softmax_over_tiles,
    logits_gradient,
    softmax_over_tiles,
    tiles,
    wide,
)


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
    if wide(weight_VD.dtype) != torch.float32 or MIN_TILE_ROWS * len(weight_VD) > max_elements:
        softmax = None
    head = Head(scale, softcap, temperature, with_entropy, max_elements, softmax)
    inputs = (hidden_ND, weight_VD, bias_V)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _TokenLogprobs.apply(hidden_ND, weight_VD, bias_V, targets_N, head)
    forward = softmax_over_tiles if softmax is None else compiled_softmax_over_tiles
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
    return Head(scale, softcap, temperature).logits(hidden_ND.to(weight_VD.dtype), weight_VD, bias_V)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
    ) -> tuple[Tensor, Tensor | None]:
        forward = softmax_over_tiles if head.softmax is None else compiled_softmax_over_tiles
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
        head: Head = ctx.head  # type: ignore[attr-defined]
        if grad_logps_N is None and grad_entropy_N is None:
            return (None,) * 5
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        grad_hidden_ND = GradientSum(hidden_ND) if needs_hidden else None
        grad_weight_VD = GradientSum(weight_VD) if needs_weight else None
        grad_bias_V = GradientSum(bias_V) if needs_bias else None
        for number, (rows, columns) in enumerate(tiles(head, hidden_ND.shape[0], weight_VD.shape[0])):
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
                grad_RC = logits_gradient(logits_RC, targets_N[rows] - columns.start, *of_rows, in_place=in_place)
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
