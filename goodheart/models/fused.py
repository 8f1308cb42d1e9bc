"""One matmul for several linear layers that read the same input, and a gated activation with a short backward.

Query, key and value projections (and gate and up of the MLP) keep their own parameters, names and checkpoints, but
their weights lie one after the other in one block of memory. Then one matmul over the block computes all of them
without a copy. Whether they (still) lie so is asked of the pointers at every call, so nothing can go stale: a layer
that was replaced by an adapter, sharded, or copied apart is simply computed the plain way.

Shapes: N tokens (any leading shape), D input width, E output width of all layers together, F width of the gated MLP.
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
    hold them already. -> whether the layers now are fused; False when one is not a plain Linear."""
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

    x_ND: (..., D). -> (..., E).
    """
    if all(type(layer) is nn.Linear for layer in layers):
        weights, biases = _parameters(layers)
        if biases is not None and _block(weights) is not None:
            if torch.is_grad_enabled():
                return _FusedLinear.apply(x_ND, len(weights), *weights, *biases)
            return _linear(x_ND, weights, biases)
    return torch.cat([layer(x_ND) for layer in layers], dim=-1)


def fused_weights(layers: Sequence[nn.Module]) -> tuple[Tensor, Tensor | None] | None:
    """The weight (E, D) and bias (E) that serve all layers at once, sharing their memory and detached from autograd.

    layers: one or more. -> None when one is not a plain Linear with plain parameters, or when they are not fused.
    """
    if not all(type(layer) is nn.Linear for layer in layers):
        return None
    weights, biases = _parameters(layers)
    weight = _block(weights)
    bias = _block(biases) if biases else None
    if weight is None or biases is None or (bias is None) != (not biases):
        return None
    return weight, bias


def silu_gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (SwiGLU, Shazeer 2020, arXiv:2002.05202). gate_up: (..., 2F), gate first. -> (..., F)."""
    return _SiluGate.apply(gate_up)


def gelu_gate(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU (Gemma). gate_up: (..., 2F), gate first. -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def _parameters(layers: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor] | None]:
    """Weights and biases of the layers; None for biases when only some layers have one."""
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return weights, biases if len(biases) in (0, len(weights)) else None  # type: ignore[return-value]


def _linear(x_ND: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    block = _block(weights)
    assert block is not None  # the caller looked
    return F.linear(x_ND, block, _block(biases) if biases else None)


def _block(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor that covers all parts, sharing their memory, or None when they do not follow each other."""
    first = parts[0]
    if type(first) is not nn.Parameter:  # a sharded or wrapped tensor
        return None
    storage = first.untyped_storage().data_ptr()
    end = first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous() or part.untyped_storage().data_ptr() != storage:
            return None
        end += part.numel() * part.element_size()
    if storage == 0:
        return None
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
        return _linear(x_ND, parameters[:count], parameters[count:])

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


class _SiluGate(torch.autograd.Function):
    """Saves its input alone, and writes both gradients into one tensor for the fused matmul before it."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        grad_gate, grad_up = out.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        torch.mul(grad, F.silu(gate), out=grad_up)
        return out
