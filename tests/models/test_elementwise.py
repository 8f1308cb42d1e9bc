"""Norm and gates: by hand, by finite differences, and against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from goodheart.models.elementwise import _RMSNorm, gelu_gate, rms_norm, silu_gate


def test_rms_norm_by_hand() -> None:
    # mean of squares of (3, 4) = 12.5; 12.5 + eps 0.5 = 13; (3, 4) / sqrt(13) * (1, 2).
    x, weight = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(rms_norm(x, weight, 0.5), torch.tensor([[3 / 13**0.5, 8 / 13**0.5]]))
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 0.5), torch.tensor([[3 / 13**0.5, 8 / 13**0.5]]))


def test_rms_norm_gradients_by_finite_differences() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-2), (x, weight))


def test_rms_norm_equals_torch_with_gradients() -> None:
    x, weight = torch.randn(7, 33), torch.randn(33)
    results = []
    for norm in (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (33,), w, 1e-5)):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = norm(*inputs)
        (out * torch.arange(33)).sum().backward()
        results.append((out, inputs[0].grad, inputs[1].grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rms_norm_of_frozen_weight_and_of_bfloat16() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    rms_norm(x, torch.ones(8), 1e-5).sum().backward()
    assert x.grad is not None
    half = rms_norm(x.bfloat16(), torch.ones(8), 1e-5)
    assert half.dtype == torch.bfloat16
    # statistics in float32: one rounding of the input (2^-9) and one of the output
    torch.testing.assert_close(half.float(), rms_norm(x, torch.ones(8), 1e-5), rtol=8e-3, atol=1e-3)


def test_gates_by_hand_and_by_finite_differences() -> None:
    # gate 1, up 3: silu(1) = 1 / (1 + e^-1) = 0.7310586, times 3 = 2.1931757;
    # gelu(1) in tanh form = 0.8411920, times 3 = 2.5235759.
    gate, up = torch.tensor([1.0]), torch.tensor([3.0])
    torch.testing.assert_close(silu_gate(gate, up), torch.tensor([2.1931757]))
    torch.testing.assert_close(gelu_gate(gate, up), torch.tensor([2.5235759]))
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(silu_gate, (x, y))
    assert torch.autograd.gradcheck(gelu_gate, (x, y))
    torch.testing.assert_close(silu_gate(x, y), F.silu(x) * y)


@pytest.mark.parametrize("size", [-200.0, 200.0])
def test_silu_gate_far_out_is_finite(size: float) -> None:
    gate = torch.full((3,), size, requires_grad=True)
    silu_gate(gate, torch.ones(3)).sum().backward()
    # d silu is 1 far right and 0 far left
    torch.testing.assert_close(gate.grad, torch.full((3,), float(size > 0)))
