"""The gradient of a step must not depend on how the step was split, and empty rows must not count.

Six rows, split in all 32 ways into runs of neighbours; float64, so that only the order of sums may differ.
Shapes: B rows, T time, K answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from goodheart.losses.kl import kl_loss
from goodheart.losses.metrics import MetricSums
from goodheart.losses.policy import answer_weights, importance_ratio, ppo_policy_loss, sequence_ratio, value_loss
from goodheart.losses.preference import bradley_terry_loss, comparable, plackett_luce_loss, ranked_pairs_loss
from goodheart.losses.reward import score_regression_loss, thumbs_loss

ROWS = 6
LossOfRows = Callable[[Tensor, slice], tuple[Tensor, MetricSums]]


def splits() -> Iterator[list[slice]]:
    for cuts in range(2 ** (ROWS - 1)):
        edges = [0] + [i + 1 for i in range(ROWS - 1) if cuts >> i & 1] + [ROWS]
        yield [slice(a, b) for a, b in itertools.pairwise(edges)]


def token_losses() -> dict[str, LossOfRows]:
    x_BT = torch.randn(4, ROWS, 5, dtype=torch.float64)
    # Unequal lengths, and a row without any token.
    mask_BT = torch.arange(5) < torch.tensor([5, 1, 0, 3, 2, 4])[:, None]
    n = int(mask_BT.sum())
    a_BT, b_BT, c_BT, _ = x_BT
    each_B = answer_weights(mask_BT, torch.float64)
    weights_BT = importance_ratio(a_BT, c_BT, mask_BT).clamp(max=2.0)
    return {
        "sequences": lambda x, r: ppo_policy_loss(
            x, a_BT[r], b_BT[r], mask_BT[r], cliprange=0.2, num_tokens=5, log_ratio=sequence_ratio, weight_B=each_B[r]
        ),
        "kl by answer": lambda x, r: kl_loss(x, a_BT[r], mask_BT[r], num_tokens=5, weight_B=each_B[r]),
        "policy": lambda x, r: ppo_policy_loss(x, a_BT[r], b_BT[r], mask_BT[r], cliprange=0.2, num_tokens=n),
        "weighed policy": lambda x, r: ppo_policy_loss(
            x, a_BT[r], b_BT[r], mask_BT[r], cliprange=0.2, num_tokens=n, importance_BT=weights_BT[r]
        ),
        "value": lambda x, r: value_loss(x, a_BT[r], c_BT[r], mask_BT[r], cliprange_value=0.2, num_tokens=n),
        "kl": lambda x, r: kl_loss(x, a_BT[r], mask_BT[r], num_tokens=n),
    }


def answer_losses() -> dict[str, LossOfRows]:
    ranks_PK = torch.tensor(
        [[1, 2, 3, 4, 5], [1, 1, 2, 2, 3], [3, 1, 2, 9, 9], [2, 1, 9, 9, 9], [5, 4, 3, 2, 1], [1] * 5]
    )
    valid_PK = torch.tensor([5, 5, 3, 2, 5, 1])[:, None] > torch.arange(5)
    n = int(comparable(ranks_PK, valid_PK).sum())
    ratings_BT, up_BT = torch.randn(ROWS, 5), torch.rand(ROWS, 5) < 0.5
    return {
        "pairs": lambda x, r: bradley_terry_loss(x[:, 0], x[:, 1], center_coefficient=0.1, num_pairs=ROWS),
        "ranking": lambda x, r: plackett_luce_loss(x, ranks_PK[r], valid_PK[r], num_prompts=n),
        "ranked pairs": lambda x, r: ranked_pairs_loss(x, ranks_PK[r], valid_PK[r], tie_margin=0.5, num_prompts=n),
        "regression": lambda x, r: score_regression_loss(x[:, 0], ratings_BT[r, 0], num_ratings=ROWS),
        "thumbs": lambda x, r: thumbs_loss(x[:, 0], up_BT[r, 0], num_thumbs=ROWS),
    }


ALL = [
    "policy",
    "weighed policy",
    "sequences",
    "value",
    "kl",
    "kl by answer",
    "pairs",
    "ranking",
    "ranked pairs",
    "regression",
    "thumbs",
]


@pytest.mark.parametrize("name", ALL)
def test_gradients_and_metrics_are_the_same_for_every_split(name: str) -> None:
    loss_of = (token_losses() | answer_losses())[name]
    leaf_BT = torch.randn(ROWS, 5, dtype=torch.float64, requires_grad=True)
    loss, sums = loss_of(leaf_BT, slice(0, ROWS))
    (whole_BT,) = torch.autograd.grad(loss, leaf_BT)
    assert whole_BT.abs().max() > 1e-3
    for pieces in splits():
        metrics = MetricSums()
        for rows in pieces:
            part, part_sums = loss_of(leaf_BT[rows], rows)
            part.backward()
            metrics |= part_sums
        torch.testing.assert_close(leaf_BT.grad, whole_BT, atol=1e-12, rtol=0)
        assert metrics.means() == pytest.approx(sums.means(), rel=1e-12)
        leaf_BT.grad = None


def test_empty_rows_leave_the_denominator() -> None:
    # Rows without a token change neither loss, nor gradient, nor metrics, whatever they hold.
    logps_BT, advantages_BT = torch.randn(2, 3), torch.randn(2, 3)
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    padded = [torch.cat([x, torch.full((2, 3), torch.nan)]) for x in (logps_BT, logps_BT + 0.3, advantages_BT)]
    more_BT = torch.cat([mask_BT, torch.zeros(2, 3, dtype=torch.bool)])
    results = [
        ppo_policy_loss(*inputs, mask, cliprange=0.2, num_tokens=int(mask.sum()))
        for inputs, mask in (((logps_BT, logps_BT + 0.3, advantages_BT), mask_BT), (padded, more_BT))
    ]
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1].means() == pytest.approx(results[1][1].means())
