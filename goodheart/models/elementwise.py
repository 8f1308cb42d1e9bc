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

from goodheart.models import native


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    -> the shape and dtype of x. Differentiable once.
    """
    if native.takes(x_ND, weight_D):
        return _NativeNorm.apply(x_ND.contiguous(), None, weight_D, eps)
    if x_ND.device.type == "cpu" and x_ND.dtype == weight_D.dtype == torch.float32:
        return _RMSNorm.apply(x_ND, weight_D, eps)
    return F.rms_norm(x_ND, weight_D.shape, weight_D.to(x_ND.dtype), eps)


def add_and_norm(x_ND: Tensor, more_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """-> x + more, and that normed: two passes over memory in one."""
    if native.takes(x_ND, more_ND, weight_D):
        return _NativeNorm.apply(x_ND.contiguous(), more_ND.contiguous(), weight_D, eps)
    sum_ND = x_ND + more_ND
    return sum_ND, rms_norm(sum_ND, weight_D, eps)


def silu_gate(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """silu(gate) * up (SwiGLU, Shazeer 2020, arXiv:2002.05202). Differentiable once."""
    return _SiluGate.apply(gate_NF, up_NF)


def joint_silu_gate(gate_up_N2F: Tensor) -> Tensor:
    """`silu_gate` of two halves, where `native.takes` them: one matmul then makes both. -> (..., F)"""
    return _NativeGate.apply(gate_up_N2F.contiguous())


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


class _NativeNorm(torch.autograd.Function):
    """`_RMSNorm` in C, behind an addition where there is one; both summands then have the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, more_ND: Tensor | None, weight_D: Tensor, eps: float) -> Any:
        sum_ND, out_ND, inverse_N = native.norm(x_ND, more_ND, weight_D.contiguous(), eps)
        ctx.save_for_backward(sum_ND, weight_D, inverse_N)
        ctx.added = more_ND is not None
        ctx.set_materialize_grads(False)
        return (sum_ND, out_ND) if ctx.added else out_ND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        grad_sum, grad_out = grads if ctx.added else (None, *grads)
        if grad_out is None:
            return grad_sum, grad_sum if ctx.added else None, None, None
        sum_ND, weight_D, inverse_N = ctx.saved_tensors
        if grad_sum is not None:
            grad_sum = grad_sum.contiguous()
        grad_x, grad_weight = native.norm_backward(
            sum_ND, weight_D.contiguous(), inverse_N, grad_out.contiguous(), grad_sum
        )
        return grad_x, grad_x if ctx.added else None, grad_weight if ctx.needs_input_grad[2] else None, None


class _NativeGate(torch.autograd.Function):
    """`_SiluGate` in C. The sigmoid is computed again in backward: cheaper there than to fetch it from memory."""

    @staticmethod
    def forward(ctx: Any, gate_up_N2F: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_N2F)
        return native.gate(gate_up_N2F)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up_N2F,) = ctx.saved_tensors
        return native.gate_backward(gate_up_N2F, grad.contiguous())
