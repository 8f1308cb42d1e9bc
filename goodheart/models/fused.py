"""One matmul for several linear layers that read the same input.

Query, key and value projections (and gate and up of the MLP) keep their own parameters, names and checkpoints, but
their weights lie one after the other in one block of memory. Then one matmul over the block computes all of them
without a copy. Whether they (still) lie so is asked of the pointers at every call, so nothing can go stale: a layer
that was replaced by an adapter, sharded, or copied apart is simply computed the plain way.

Shapes: N tokens (any leading shape), D input width, E output width of all layers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def fuse(layers: Sequence[nn.Module]) -> bool:
    """Move weights (and biases) of the layers into one block each. Parameters stay the same objects, so optimizers may
    hold them already. -> whether the layers now are fused; False when one is not a plain Linear, or on the meta device.
    """
    if not all(type(layer) is nn.Linear for layer in layers):
        return False
    for parts in _parameters(layers):
        if parts is None or any(type(p) is not nn.Parameter or p.is_meta for p in parts):
            return False
        if len({(p.dtype, p.device, p.shape[1:]) for p in parts}) > 1:
            return False
        if parts and _block(parts) is None:
            block = torch.cat([p.detach() for p in parts])
            for p, piece in zip(parts, block.split([len(p) for p in parts]), strict=True):
                p.data = piece
    return True


def fused_linear(x_ND: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """Outputs of all layers side by side: cat([layer(x) for layer in layers], -1), in one matmul where they are fused.

    x_ND: (..., D). -> (..., E)
    """
    if all(type(layer) is nn.Linear for layer in layers):
        weights, biases = _parameters(layers)
        if biases is not None and _block(weights) is not None:
            return _FusedLinear.apply(x_ND, len(weights), *weights, *biases)
    return torch.cat([layer(x_ND) for layer in layers], dim=-1)


def _parameters(layers: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor] | None]:
    """Weights and biases of the layers; None for biases when only some layers have one."""
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return weights, biases if len(biases) in (0, len(weights)) else None  # type: ignore[return-value]


def _block(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor that covers all parts, sharing their memory, or None when they do not follow each other."""
    first = parts[0]
    storage = first.untyped_storage().data_ptr() if type(first) is nn.Parameter else 0
    if storage == 0:  # sharded, wrapped, or without memory
        return None
    end = first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous() or part.untyped_storage().data_ptr() != storage:
            return None
        end += part.numel() * part.element_size()
    rows = sum(len(p) for p in parts)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


class _FusedLinear(torch.autograd.Function):
    """x W^T + b over the whole block; the gradients of the parts are slices of the gradient of the block."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, count: int, *parameters: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x_ND.device.type):
            x_ND = x_ND.to(torch.get_autocast_dtype(x_ND.device.type))
        # The parts are saved, not the block: autograd then notices when one is changed in place before backward.
        ctx.save_for_backward(x_ND, *parameters)
        ctx.count = count
        block = _block(parameters[:count])
        assert block is not None  # the caller looked
        return F.linear(x_ND, block, _block(parameters[count:]) if len(parameters) > count else None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, *parameters = ctx.saved_tensors
        weights, biases = parameters[: ctx.count], parameters[ctx.count :]
        needs = ctx.needs_input_grad
        grad_NE = grad.reshape(-1, grad.shape[-1])
        sizes = [len(w) for w in weights]
        grad_x = None
        if needs[0]:
            block = _block(weights)
            block = torch.cat(weights) if block is None else block
            grad_x = (grad_NE @ block.to(grad.dtype)).view(x_ND.shape)
        grad_w: Sequence[Tensor | None] = [None] * len(weights)
        if any(needs[2 : 2 + ctx.count]):
            grad_w = (grad_NE.t() @ x_ND.reshape(-1, x_ND.shape[-1])).to(weights[0].dtype).split(sizes)
        grad_b: Sequence[Tensor | None] = [None] * len(biases)
        if biases and any(needs[2 + ctx.count :]):
            grad_b = grad_NE.sum(0, dtype=biases[0].dtype).split(sizes)
        return grad_x, None, *grad_w, *grad_b
