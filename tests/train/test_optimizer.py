"""AdamW, schedules and clipping against hand-worked numbers and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from goodheart.errors import ConfigError, HealthError
from goodheart.train.optimizer import build_optimizer, clip_grad_norm, lr_at, resolve_dtype
from goodheart.train.parallel import World


def one_weight(value: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor([[value]], dtype=dtype))


def test_two_updates_worked_by_hand() -> None:
    # betas (0.9, 0.99), rate 0.1, decay 0.5, eps 0; gradients 2 then -1; weight 1.
    # Step 1: decay 1 * (1 - 0.1*0.5) = 0.95; m = 0.2, v = 0.04; corrected m = 2, v = 4; 0.95 - 0.1*2/2 = 0.85.
    # Step 2: 0.85 * 0.95 = 0.8075; m = 0.18 - 0.1 = 0.08; v = 0.0396 + 0.01 = 0.0496;
    #         corrected m = 0.08/0.19 = 0.4210526; v = 0.0496/0.0199 = 2.4924623, root 1.5787534;
    #         0.8075 - 0.1 * 0.4210526/1.5787534 = 0.8075 - 0.0266699 = 0.7808301.
    weight = one_weight(1.0)
    optimizer = build_optimizer([("w", weight)], learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=0.0)
    weight.grad = torch.tensor([[2.0]])
    optimizer.step()
    assert weight.item() == pytest.approx(0.85)
    weight.grad = torch.tensor([[-1.0]])
    optimizer.step()
    assert weight.item() == pytest.approx(0.7808301)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_equals_torch_adamw(eps: float) -> None:
    torch.manual_seed(1)
    ours = nn.Linear(7, 5)
    theirs = nn.Linear(7, 5)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(
        ours.named_parameters(), learning_rate=3e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=eps
    )
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=3e-2, betas=(0.8, 0.95), eps=eps)
    for step in range(6):
        x = torch.randn(4, 7)
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().sum().backward()
        rate = 3e-2 * (1 - step / 6)
        for group in reference.param_groups:
            group["lr"] = rate
        optimizer.step(rate)
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_vectors_do_not_decay_and_frozen_or_doubled_weights_are_not_taken() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    model[2].weight.requires_grad_(False)
    named = [*model.named_parameters(), ("again", model[0].weight)]
    optimizer = build_optimizer(named, learning_rate=0.1, weight_decay=0.5)
    decays = {name: group.weight_decay for group in optimizer.groups for name in group.names}
    assert decays == {"0.weight": 0.5, "1.weight": 0.0, "1.bias": 0.0, "2.bias": 0.0}
    assert not any("2.weight" in name for name in optimizer.state_tensors())


def test_a_weight_without_gradient_is_left_out_with_its_step_count() -> None:
    # Skipped twice, then updated: with its own step count the first update moves it by exactly the rate.
    idle, busy = one_weight(1.0), one_weight(1.0)
    optimizer = build_optimizer([("idle", idle), ("busy", busy)], learning_rate=0.1, weight_decay=0.0, eps=0.0)
    for _ in range(2):
        busy.grad = torch.tensor([[3.0]])
        optimizer.step()
        optimizer.zero_grad()
    assert idle.item() == 1.0
    idle.grad = torch.tensor([[5.0]])
    optimizer.step()
    assert idle.item() == pytest.approx(0.9)


def test_own_rates_keep_their_proportion_under_a_schedule() -> None:
    # First Adam step with eps 0 moves each weight by its own rate: 0.5 of the peak 0.2 -> 0.1; 0.5 of 0.02 -> 0.01.
    policy, head = one_weight(0.0), one_weight(0.0)
    optimizer = build_optimizer(
        [("policy.w", policy), ("value.head", head)], learning_rate=0.02, learning_rates={"value.": 0.2}, eps=0.0
    )
    assert optimizer.learning_rate == 0.2
    policy.grad, head.grad = torch.tensor([[1.0]]), torch.tensor([[-1.0]])
    optimizer.step(0.1)
    assert policy.item() == pytest.approx(-0.01)
    assert head.item() == pytest.approx(0.1)


def test_bfloat16_weights_move_by_steps_that_bfloat16_alone_would_lose() -> None:
    # Near 1 bfloat16 has steps of 2^-7 = 0.0078. Ten updates of 0.001 must add up to 0.99, not vanish.
    weight = one_weight(1.0, torch.bfloat16)
    optimizer = build_optimizer([("w", weight)], learning_rate=0.001, eps=0.0)
    for _ in range(10):
        weight.grad = torch.tensor([[1.0]])
        optimizer.step()
    assert optimizer.state_tensors()["master/w"].item() == pytest.approx(0.99)
    assert weight.dtype == torch.bfloat16
    assert weight.item() == torch.tensor(0.99).bfloat16().item()


def test_bfloat16_gradients_of_many_micro_batches_are_gathered_in_float32() -> None:
    # 256 + 1 is 256 in bfloat16: eight such gradients would be lost.
    weight = one_weight(1.0, torch.bfloat16)
    build_optimizer([("w", weight)], learning_rate=0.001)
    for gradient in (256.0, *[1.0] * 8):
        (weight * gradient).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert weight.grad.item() == 264.0


def test_slices_of_one_storage_stay_slices() -> None:
    # As fused projections are; what the optimizer writes must show in the whole.
    whole = torch.ones(4, 2)
    parts = [nn.Parameter(piece) for piece in whole.split(2)]
    optimizer = build_optimizer([(str(i), part) for i, part in enumerate(parts)], learning_rate=0.1, eps=0.0)
    for part in parts:
        part.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(whole, torch.full((4, 2), 0.9))


def test_refuses_what_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer([("w", nn.Parameter(torch.ones(1), requires_grad=False))], learning_rate=0.1)
    with pytest.raises(ConfigError, match="no trained parameter starts with head"):
        build_optimizer([("w", one_weight(1.0))], learning_rate=0.1, learning_rates={"head": 1.0})
    with pytest.raises(ConfigError, match="use one of constant, cosine, linear"):
        lr_at(0, 10, schedule="step")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, 2 of warm-up, down to 0.1: progress of step 6 is (6-2)/8 = 0.5, of step 9 it is 7/8.
        ("linear", [0.5, 1.0, 1.0, 0.1 + 0.9 * 0.5, 0.1 + 0.9 * 0.125]),
        ("cosine", [0.5, 1.0, 1.0, 0.1 + 0.9 * 0.5, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8))]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    steps = (0, 1, 2, 6, 9)
    found = [lr_at(step, 10, warmup_steps=2, schedule=schedule, min_ratio=0.1) for step in steps]
    assert found == pytest.approx(expected)


def test_schedule_ends_on_its_floor_and_needs_no_warm_up() -> None:
    assert lr_at(0, 10) == 1.0
    assert lr_at(25, 10, min_ratio=0.2) == pytest.approx(0.2)
    assert lr_at(3, 3, warmup_steps=3) == 1.0


def test_clipping_worked_by_hand() -> None:
    # Gradients (3, 4) and (12): norm sqrt(9+16+144) = 13; clipped to 6.5 everything is halved.
    a, b, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    assert clip_grad_norm([a, b, unused], 6.5, World()) == pytest.approx(13.0)
    torch.testing.assert_close(a.grad, torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(b.grad, torch.tensor([6.0]))
    assert clip_grad_norm([a, b], 100.0, World()) == pytest.approx(6.5)
    assert clip_grad_norm([a, b], None, World()) == pytest.approx(6.5)
    torch.testing.assert_close(b.grad, torch.tensor([6.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradient_that_is_not_finite_stops_before_the_update(bad: float) -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, bad])
    with pytest.raises(HealthError, match="step 7: the gradient norm is"):
        clip_grad_norm([weight], 1.0, World(), step=7)
    assert weight.grad[0].item() == 1.0


def test_dtype_auto_follows_the_device() -> None:
    assert resolve_dtype("auto", "cpu") == torch.float32
    assert resolve_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert resolve_dtype("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(ConfigError, match="float16"):
        resolve_dtype("float16", "cpu")
