"""Norm and gates with a backward written out: half the passes over memory that autograd would make.

Half of a small model's training step is work of this kind. The numbers are the same bit for bit with and without
gradients, so that a policy's log-probabilities computed before an update and in it agree exactly; only sampling,
where calls are the cost, takes shorter ways. Shapes: N tokens (any leading shape), D width, F MLP width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    -> the shape and dtype of x. Differentiable once.
    """
    if x_ND.device.type == "cpu" and x_ND.dtype == weight_D.dtype == torch.float32:
        return _RMSNorm.apply(x_ND, weight_D, eps)
    return F.rms_norm(x_ND, weight_D.shape, weight_D.to(x_ND.dtype), eps)


def silu_gate(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """silu(gate) * up (SwiGLU, Shazeer 2020, arXiv:2002.05202). Differentiable once."""
    return _SiluGate.apply(gate_NF, up_NF)


def gelu_gate(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU (Gemma)."""
    return F.gelu(gate_NF, approximate="tanh") * up_NF


class _RMSNorm(torch.autograd.Function):
    """With h = x / rms(x) and g the gradient: dw = sum_N g h;  dx = (g w - h mean_D(g w h)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True).square_().div_(x_ND.shape[-1])
        inverse_rms = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, weight_D, inverse_rms)
        return (x_ND * inverse_rms).mul_(weight_D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x_ND, weight_D, inverse_rms = ctx.saved_tensors
        h_ND = x_ND * inverse_rms
        gh_ND = grad * h_ND
        mean = (gh_ND @ weight_D).div_(-x_ND.shape[-1]).unsqueeze(-1)
        grad_x = (grad * weight_D).addcmul_(h_ND, mean).mul_(inverse_rms)
        grad_weight = gh_ND.view(-1, len(weight_D)).sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


class _SiluGate(torch.autograd.Function):
    """The sigmoid s of the gate is kept, the exponential being the dear part: d silu = s (1 + gate - gate s)."""

    @staticmethod
    def forward(ctx: Any, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        sigmoid_NF = torch.sigmoid(gate_NF)
        ctx.save_for_backward(gate_NF, up_NF, sigmoid_NF)
        return (gate_NF * sigmoid_NF).mul_(up_NF)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate_NF, up_NF, sigmoid_NF = ctx.saved_tensors
        silu_NF = gate_NF * sigmoid_NF
        grad_up = grad * silu_NF
        slope_NF = torch.sub(gate_NF, silu_NF, out=silu_NF).add_(1).mul_(sigmoid_NF)
        return slope_NF.mul_(up_NF).mul_(grad), grad_up
