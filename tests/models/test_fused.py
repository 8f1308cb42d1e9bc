"""Fused projections: same numbers as the plain layers, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodheart.models.fused import _block, fuse, fused_linear


def layers(bias: bool, dtype: torch.dtype = torch.float64) -> list[nn.Linear]:
    torch.manual_seed(1)
    return [nn.Linear(5, n, bias=bias, dtype=dtype) for n in (4, 2, 3)]


def run(parts: list[nn.Linear], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_()
    out = fused_linear(x, parts)
    (out * torch.arange(out.numel()).view_as(out)).sum().backward()
    assert x.grad is not None
    return (out.detach(), x.grad, *(p.grad for layer in parts for p in layer.parameters() if p.grad is not None))


@pytest.mark.parametrize("bias", [True, False])
def test_fused_equals_plain(bias: bool) -> None:
    plain, fused = layers(bias), layers(bias)
    before = [p for layer in fused for p in layer.parameters()]
    assert fuse(fused)
    assert all(a is b for a, b in zip(before, (p for layer in fused for p in layer.parameters()), strict=True))
    assert _block([layer.weight for layer in fused]) is not None
    assert _block([layer.weight for layer in plain]) is None
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    for a, b in zip(run(plain, x), run(fused, x), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(fused_linear(x, plain), fused_linear(x, fused))


def test_frozen_parts_get_no_gradient() -> None:
    parts = layers(True)
    fuse(parts)
    parts[1].requires_grad_(False)
    fused_linear(torch.randn(2, 5, dtype=torch.float64), parts).sum().backward()
    assert parts[0].weight.grad is not None
    assert parts[1].weight.grad is None
    assert parts[1].bias.grad is None


def test_moved_parts_are_noticed() -> None:
    parts = layers(True)
    fuse(parts)
    x = torch.randn(2, 5, dtype=torch.float64)
    parts[1].weight.data = torch.zeros(2, 5, dtype=torch.float64)
    bias = parts[1].bias.detach().expand(2, 2)
    torch.testing.assert_close(fused_linear(x, parts)[:, 4:6], bias)
    fuse(parts)
    torch.testing.assert_close(fused_linear(x, parts)[:, 4:6], bias)
    with torch.no_grad():  # in place: the block sees it
        parts[0].weight.zero_()
    torch.testing.assert_close(fused_linear(x, parts)[:, :4], parts[0].bias.detach().expand(2, 4))


def test_another_kind_of_layer_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    parts: list[nn.Module] = [*layers(False)[:2], Doubled(5, 3, bias=False, dtype=torch.float64)]
    assert not fuse(parts)
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(fused_linear(x, parts)[:, 6:], 2 * x @ parts[2].weight.t())  # type: ignore[operator,union-attr]


def test_change_between_forward_and_backward_is_an_error() -> None:
    parts = layers(False)
    fuse(parts)
    out = fused_linear(torch.randn(2, 5, dtype=torch.float64, requires_grad=True), parts)
    with torch.no_grad():
        parts[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_biases_on_some_layers_only() -> None:
    parts = [nn.Linear(5, 4), nn.Linear(5, 2, bias=False)]
    assert not fuse(parts)
    x = torch.randn(3, 5)
    torch.testing.assert_close(fused_linear(x, parts), torch.cat([parts[0](x), parts[1](x)], -1))


def test_autocast_keeps_float32_gradients() -> None:
    parts = layers(True, torch.float32)
    fuse(parts)
    x = torch.randn(8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused_linear(x, parts)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    # d sum / d weight = sum over tokens of x; x is rounded to 8 bits before the matmul and the sum after it.
    torch.testing.assert_close(parts[0].weight.grad, x.sum(0).expand(4, 5), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(parts[0].bias.grad, torch.full((4,), 8.0))
