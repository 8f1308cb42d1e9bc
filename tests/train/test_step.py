"""One training step: any split gives the same update, and a NaN changes nothing."""

from __future__ import annotations

import gc
import math
import weakref
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from goodheart.errors import HealthError
from goodheart.losses.metrics import MetricSums
from goodheart.train.optimizer import AdamW, build_optimizer
from goodheart.train.parallel import World
from goodheart.train.step import train_step


class Line(nn.Module):
    """y = w x; small enough to work by hand."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[w]]))


def squares(model: Line, xs: list[float], ys: list[float], count: int):
    def loss_fn(rows: list[int]) -> tuple[Tensor, MetricSums]:
        x, y = torch.tensor([xs[i] for i in rows]), torch.tensor([ys[i] for i in rows])
        error = model.w[0, 0] * x - y
        sums = MetricSums()
        sums.add("error", error.abs().sum(), len(rows))
        return error.square().sum() / count, sums

    return loss_fn


def optimizer_for(model: nn.Module) -> AdamW:
    return build_optimizer(model.named_parameters(), learning_rate=0.1, eps=0.0)


def test_step_worked_by_hand() -> None:
    # w = 1, x = (1, 2), y = (0, 0): errors 1, 2; loss (1 + 4)/2 = 2.5; gradient (2*1*1 + 2*2*2)/2 = 5.
    # Adam's first step is the rate against the sign of the gradient: 1 - 0.1 = 0.9. Mean |error| = 1.5.
    model = Line(1.0)
    metrics = train_step(World(), optimizer_for(model), [[0], [1]], squares(model, [1, 2], [0, 0], 2), lr=0.1)
    assert metrics == pytest.approx({"loss": 2.5, "error": 1.5, "grad_norm": 5.0, "learning_rate": 0.1})
    assert model.w.item() == pytest.approx(0.9)
    assert model.w.grad is None


@pytest.mark.parametrize(
    "split", [[[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[0, 1, 2, 3], [4]], [[4, 0], [], [1, 2, 3]]]
)
def test_any_split_into_micro_batches_gives_the_same_step(split: list[list[int]]) -> None:
    xs, ys = [0.3, -1.2, 2.0, 0.7, 5.0], [1.0, 0.0, -1.0, 0.2, 0.4]

    def run(pieces: list[list[int]]) -> tuple[float, dict[str, float]]:
        model = Line(0.5)
        optimizer = optimizer_for(model)
        for _ in range(3):
            metrics = train_step(World(), optimizer, pieces, squares(model, xs, ys, 5), lr=0.1, max_grad_norm=1.0)
        return model.w.item(), metrics

    whole, parts = run([[0, 1, 2, 3, 4]]), run(split)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert parts[1] == pytest.approx(whole[1], rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_rows_and_changes_nothing(bad: float) -> None:
    model = Line(1.0)
    optimizer = optimizer_for(model)
    train_step(World(), optimizer, [[0]], squares(model, [1.0], [0.0], 1), lr=0.1)
    before = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    weight = model.w.item()
    xs = [1.0, 1.0, 1.0, bad]
    with pytest.raises(HealthError, match=r"step 12, micro-batch 2 of 2: the loss is (nan|inf).*Rows: 1, 3$"):
        train_step(World(), optimizer, [[0, 2], [1, 3]], squares(model, xs, [0.0] * 4, 4), lr=0.1, step=12)
    assert model.w.item() == weight
    assert model.w.grad is None
    for name, tensor in optimizer.state_tensors().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_finite_loss_with_an_infinite_gradient_changes_nothing() -> None:
    # d sqrt(x)/dx at 0 is infinite while the loss is 0.
    model = Line(0.0)

    def loss_fn(rows: list[int]) -> tuple[Tensor, MetricSums]:
        return model.w.sqrt().sum(), MetricSums()

    with pytest.raises(HealthError, match=r"step 3: the gradient norm is inf.*Rows of this step: 0$"):
        train_step(World(), optimizer_for(model), [[0]], loss_fn, step=3)
    assert model.w.item() == 0.0
    assert model.w.grad is None


class Marked(torch.autograd.Function):
    """Doubles its input; `alive` shows whether its place in the graph still exists."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    class Mark:
        pass

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.mark = Marked.Mark()
        Marked.alive.add(ctx.mark)
        return 2 * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad


def test_no_graph_outlives_its_micro_batch() -> None:
    model = Line(1.0)
    seen: list[int] = []

    def loss_fn(rows: list[int]) -> tuple[Tensor, MetricSums]:
        gc.collect()
        seen.append(len(Marked.alive))
        sums = MetricSums()
        sums.add("beside the loss", Marked.apply(model.w).sum(), 1)
        return Marked.apply(model.w).sum(), sums

    train_step(World(), optimizer_for(model), [[0], [1], [2]], loss_fn)
    gc.collect()
    assert [*seen, len(Marked.alive)] == [0, 0, 0, 0]


def test_metric_that_counted_nothing_is_left_out() -> None:
    model = Line(1.0)

    def loss_fn(rows: list[int]) -> tuple[Tensor, MetricSums]:
        sums = MetricSums()
        sums.add("never", 0.0, 0)
        return model.w.square().sum(), sums

    assert "never" not in train_step(World(), optimizer_for(model), [[0]], loss_fn)


def test_two_optimizers_are_clipped_together_and_have_their_own_rates() -> None:
    # Gradients 3 and 4: joint norm 5. First Adam steps move each weight by its own rate.
    policy, value = Line(1.0), Line(1.0)

    def loss_fn(rows: list[int]) -> tuple[Tensor, MetricSums]:
        return 3 * policy.w.sum() + 4 * value.w.sum(), MetricSums()

    optimizers = [optimizer_for(policy), optimizer_for(value)]
    metrics = train_step(World(), optimizers, [[0]], loss_fn, lr=[0.1, 0.05])
    assert metrics["grad_norm"] == pytest.approx(5.0)
    assert metrics["learning_rate"] == 0.1
    assert policy.w.item() == pytest.approx(0.9)
    assert value.w.item() == pytest.approx(0.95)
