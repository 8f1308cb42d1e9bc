"""Rotary positions by hand, and their scalings against transformers. B batch, T time, H heads, d head size."""

from __future__ import annotations

import math

import pytest
import torch

from goodheart.models.rotary import _TABLE_POSITIONS, Rope, Rotary, rotate, rotate_and_split
from tests.models.families import LLAMA3, YARN


def test_rotation_by_hand() -> None:
    # Head size 4: planes (0, 2) and (1, 3). theta 100 gives frequencies 100^0 = 1 and 100^(-2/4) = 0.1.
    rotary = Rotary(Rope(theta=100.0), head_dim=4, max_length=8)
    x_BTHd = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 3, 1, 4)
    out = rotate(x_BTHd, rotary.angles(None, 3, torch.device("cpu"), torch.float32))
    # Position 2 turns plane (0, 2) = (1, 0) by 2 to (cos 2, sin 2), plane (1, 3) = (0, 1) by 0.2 to (-sin .2, cos .2).
    expected = torch.tensor([math.cos(2), -math.sin(0.2), math.sin(2), math.cos(0.2)])
    torch.testing.assert_close(out[0, 2, 0], expected)
    torch.testing.assert_close(out[0, 0, 0], x_BTHd[0, 0, 0])  # position 0 stays


def test_gradient_is_that_of_the_formula() -> None:
    rotary = Rotary(Rope(), head_dim=6, max_length=8)
    angles = rotary.angles(None, 5, torch.device("cpu"), torch.float64)
    x_BTHd = torch.randn(2, 5, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles), (x_BTHd,))
    assert torch.autograd.gradcheck(lambda x: rotate_and_split(x, angles, 1, 1), (x_BTHd,))


def test_split_rotates_queries_and_keys_only() -> None:
    angles = Rotary(Rope(), head_dim=6, max_length=8).angles(None, 5, torch.device("cpu"), torch.float32)
    qkv_BTHd = torch.randn(2, 5, 4, 6)  # 2 query heads, 1 key head, 1 value head
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            q, k, v = rotate_and_split(qkv_BTHd, angles, 2, 1)
        assert torch.equal(q, rotate(qkv_BTHd[:, :, :2], angles))
        assert torch.equal(k, rotate(qkv_BTHd[:, :, 2:3], angles))
        assert torch.equal(v, qkv_BTHd[:, :, 3:])


def test_positions_pick_their_angles() -> None:
    rotary = Rotary(Rope(), head_dim=4, max_length=16)
    cpu = torch.device("cpu")
    all_of_them = rotary.angles(None, 16, cpu, torch.float32)
    positions_BT = torch.tensor([[3, 0, 15], [1, 1, 2]])
    picked = rotary.angles(positions_BT, 3, cpu, torch.float32)
    assert picked.shape == (2, 2, 3, 1, 2)
    assert torch.equal(picked[:, 0, :, 0], all_of_them[:, 0, [3, 0, 15], 0])


def test_long_contexts_compute_instead_of_looking_up() -> None:
    cpu, positions_BT = torch.device("cpu"), torch.tensor([[5, 40_000]])
    long = Rotary(Rope(), head_dim=4, max_length=_TABLE_POSITIONS + 1)
    short = Rotary(Rope(), head_dim=4, max_length=16)
    angles = long.angles(positions_BT, 2, cpu, torch.float32)
    assert not long._tables
    torch.testing.assert_close(angles[:, :, 0], short.angles(torch.tensor([[5]]), 1, cpu, torch.float32)[:, :, 0])
    assert angles[0, 0, 1, 0, 1].item() == pytest.approx(math.cos(40_000 * 0.01), abs=1e-3)


def test_sequences_beyond_the_context_are_extrapolated() -> None:
    rotary = Rotary(Rope(), head_dim=4, max_length=8)
    angles = rotary.angles(None, 300, torch.device("cpu"), torch.float32)
    assert angles[0, 0, 299, 0, 0].item() == pytest.approx(math.cos(299), abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        LLAMA3,
        {**LLAMA3, "original_max_position_embeddings": 100, "low_freq_factor": 1.5, "factor": 3.0},
        YARN,
        {**YARN, "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.25},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        {**YARN, "truncate": False},
    ],
)
def test_frequencies_equal_transformers(settings: dict[str, float]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=dict(settings))
    expected, factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"))
    rest = {k: v for k, v in settings.items() if k not in ("rope_type", "rope_theta")}
    rope = Rope(str(settings["rope_type"]), settings["rope_theta"], tuple(rest.items()))
    frequencies, heat = rope.frequencies(64)
    torch.testing.assert_close(frequencies, expected)
    assert heat == pytest.approx(factor)
