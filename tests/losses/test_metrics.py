from __future__ import annotations

import pytest
import torch

from goodheart.losses.metrics import MetricSums


def test_micro_batches_of_unequal_size_give_the_mean_over_all() -> None:
    # 1, 1, 1 and 5: the mean is 2; the mean of the two means would be 3.
    sums = MetricSums()
    for values, mask in (([1.0, 1.0, 1.0, 9.0], [True, True, True, False]), ([5.0, torch.nan], [True, False])):
        metrics = MetricSums()
        metrics.add_masked(torch.tensor(mask), {"x": torch.tensor(values)})
        sums |= metrics
    assert sums.means() == {"x": 2.0}


def test_sums_over_processes() -> None:
    own = MetricSums()
    own.add("x", 4.0, 2)
    own.add("y", torch.tensor(1.0), torch.tensor(1))
    # The other process saw x = 8 of 1 thing and y = 3 of 3 things: means (4 + 8)/3 and (1 + 3)/4.
    other = torch.tensor([8.0, 1.0, 3.0, 3.0], dtype=torch.float64)
    assert own.means(lambda numbers: numbers + other) == {"x": 4.0, "y": 1.0}


def test_what_counted_nothing_is_left_out() -> None:
    metrics = MetricSums()
    metrics.add("x", 0.0, 0)
    metrics.add("y", 1.0, 1)
    assert metrics.means() == {"y": 1.0}
    assert MetricSums().means() == {}


def test_adding_keeps_both_operands_and_no_graph() -> None:
    one, two = MetricSums(), MetricSums()
    leaf = torch.tensor(3.0, requires_grad=True)
    one.add("x", leaf * 2, 1)
    two.add("x", 4.0, 1)
    one.add_masked(torch.tensor([True]), {"z": leaf[None]})
    assert (one | two).means() == {"x": 5.0, "z": 3.0}
    assert one.means() == {"x": 6.0, "z": 3.0}
    assert not any(total.requires_grad for _, (total, _) in one.items())


def test_many_small_things_are_summed_exactly_enough() -> None:
    metrics = MetricSums()
    for _ in range(1000):
        metrics.add("x", 0.1, 1)
    assert metrics.means()["x"] == pytest.approx(0.1, rel=1e-12)
