"""The experiment on precision: its curves and its table, and that one way of training has no float32 copy."""

import pytest
import torch
from torch import nn

from experiments.precision import BARE, FULL, HALF, table, windows, without_copy
from goodheart.stages.settings.pretrain import PretrainConfig
from goodheart.train import language_model


def test_windows_by_hand() -> None:
    assert windows([1.0, 3.0] * 20) == [2.0] * 20
    assert windows([5.0, 7.0]) == [5.0, 7.0]  # fewer steps than pieces


def test_the_table_by_hand() -> None:
    values = {FULL: (1.0, 2.0, 3.0), HALF: (1.5, 2.0, 2.5), BARE: (2.0, 3.0, 4.0)}
    rows = [
        {"kind": "pretrain", "precision": name, "seed": seed, "last_quarter": value}
        for seed in range(3)
        for name, value in ((name, own[seed]) for name, own in values.items())
    ]
    lines = list(table(rows))
    assert len(lines) == 3  # the head is one string
    # differences +0.5, 0, -0.5 around 0; 1, 2, 3 deviate by 1
    assert lines[1] == "| pretrain, last_quarter, bfloat16 | 1 / 2 / 3 | 1.5 / 2 / 2.5 | +0 (+0.5 / +0 / -0.5) | 1 |"
    assert "+1 (+1 / +1 / +1)" in lines[2]


@pytest.mark.parametrize("bare", [False, True])
def test_without_the_copy_bfloat16_weights_are_updated_as_they_are(bare: bool, tmp_path: object) -> None:
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    config = PretrainConfig(out=str(tmp_path), model="m", data="d", learning_rate=1e-4, dtype="bfloat16")
    if bare:
        with without_copy():
            optimizer = language_model.optimizer_for([("w", weight)], config)
    else:
        optimizer = language_model.optimizer_for([("w", weight)], config)
    for _ in range(100):
        weight.grad = torch.ones_like(weight, dtype=torch.bfloat16 if bare else torch.float32)
        optimizer.step()
    # a step takes 1e-4 from 1, whose next smaller neighbour is 1 - 2^-8: rounded away each time, or kept until it shows
    assert weight[0, 0].item() == (1.0 if bare else pytest.approx(0.99, abs=0.003))
