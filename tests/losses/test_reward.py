"""N answers."""

from __future__ import annotations

import math
import random

import pytest
import torch

from goodheart.losses.reward import (
    calibration,
    class_weights,
    fit_temperature,
    margin_calibration,
    score_regression_loss,
    thumbs_loss,
    wilson_interval,
)


def test_regression_by_hand() -> None:
    # ratings 4, 8 with mean 5 and deviation 2 are -0.5, 1.5; errors 1.5, -1.5 + 1 = -0.5; half squares 1.125, 0.125
    scores_N = torch.tensor([1.0, 1.0], requires_grad=True)
    ratings_N = torch.tensor([4, 8])
    loss, metrics = score_regression_loss(scores_N, ratings_N, mean=5.0, std=2.0, num_ratings=5)
    torch.testing.assert_close(loss, torch.tensor((1.125 + 0.125) / 5))
    loss.backward()
    torch.testing.assert_close(scores_N.grad, torch.tensor([1.5, -0.5]) / 5)
    assert metrics.means() == {"rewards/error": 1.0, "rewards/mean": 1.0}


def test_huber_by_hand() -> None:
    # delta 1: error 1.5 counts 1 * (1.5 - 0.5) = 1.0, error -0.5 counts 0.125
    arguments = (torch.tensor([1.5, -0.5]), torch.zeros(2))
    loss, _ = score_regression_loss(*arguments, huber_delta=1.0, num_ratings=1)
    torch.testing.assert_close(loss, torch.tensor(1.125))
    squared, _ = score_regression_loss(*arguments, num_ratings=1)
    torch.testing.assert_close(squared, torch.tensor(1.125 + 0.125))
    torch.testing.assert_close(score_regression_loss(*arguments, huber_delta=100.0, num_ratings=1)[0], squared)


def test_regression_weights_act_like_repetition() -> None:
    weighted, _ = score_regression_loss(
        torch.tensor([1.0, 9.0]), torch.zeros(2), weight_N=torch.tensor([3.0, 0.0]), num_ratings=3
    )
    torch.testing.assert_close(weighted, torch.tensor(0.5))


@pytest.mark.parametrize("wrong", [{"num_ratings": 0}, {"std": 0.0}, {"huber_delta": 0.0}])
def test_impossible_regression(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        score_regression_loss(torch.ones(1), torch.ones(1), **({"num_ratings": 1} | wrong))


def test_thumbs_by_hand() -> None:
    # up at 2: ln(1 + e^-2) = 0.126928; down at 1: ln(1 + e) = 1.313262
    scores_N = torch.tensor([2.0, 1.0], requires_grad=True)
    up_N = torch.tensor([True, False])
    loss, metrics = thumbs_loss(scores_N, up_N, num_thumbs=2)
    torch.testing.assert_close(loss, torch.tensor((0.126928 + 1.313262) / 2))
    loss.backward()
    # sigmoid(score) - up
    torch.testing.assert_close(scores_N.grad, torch.tensor([-0.119203, 0.731059]) / 2)
    assert metrics.means() == {"rewards/accuracies": 0.5, "rewards/up": 2.0, "rewards/down": 1.0}
    weighted, _ = thumbs_loss(scores_N, up_N, up_weight=3.0, down_weight=0.5, num_thumbs=2)
    torch.testing.assert_close(weighted, torch.tensor((3 * 0.126928 + 0.5 * 1.313262) / 2))
    trusted, _ = thumbs_loss(scores_N, up_N, up_weight=3.0, weight_N=torch.tensor([0.5, 2.0]), num_thumbs=2.5)
    torch.testing.assert_close(trusted, torch.tensor((1.5 * 0.126928 + 2 * 1.313262) / 2.5))


def test_class_weights_balance_the_classes() -> None:
    # 30 up, 10 down: 40/60 and 40/20; both classes then weigh 20
    assert class_weights(30, 10) == (pytest.approx(2 / 3), 2.0)
    assert class_weights(0, 10) == class_weights(10, 0) == (1.0, 1.0)
    with pytest.raises(ValueError, match="num_thumbs"):
        thumbs_loss(torch.ones(1), torch.tensor([True]), num_thumbs=0)


def test_thumbs_of_one_class_only() -> None:
    loss, metrics = thumbs_loss(torch.tensor([0.0]), torch.tensor([True]), num_thumbs=1)
    torch.testing.assert_close(loss, torch.tensor(math.log(2)))
    assert metrics.means() == {"rewards/accuracies": 0.5, "rewards/up": 0.0}


def test_calibration_by_hand() -> None:
    # Two bins. Low: 0.1, 0.3 (mean 0.2), outcomes 0, 1 (mean 0.5): gap 0.3.
    # High: 0.5, 0.9, 1.0 (mean 0.8), outcomes 1, 1, 0.4 (mean 0.8): gap 0.
    # ECE = 2/5 * 0.3 = 0.12; Brier = (0.01 + 0.49 + 0.25 + 0.01 + 0.36)/5 = 0.224
    result = calibration([0.1, 0.3, 0.5, 0.9, 1.0], torch.tensor([0, 1, 1, 1, 0.4], dtype=torch.float64), bins=2)
    assert result.ece == pytest.approx(0.12)
    assert result.brier == pytest.approx(0.224)
    assert [(b.low, b.high, b.count) for b in result.bins] == [(0.0, 0.5, 2), (0.5, 1.0, 3)]
    assert result.bins[0].predicted == pytest.approx(0.2)
    assert result.bins[1].observed == pytest.approx(0.8)


def test_calibration_of_margins_by_hand() -> None:
    # margins ln 3, -ln 3, 0: sure by 0.75, 0.75, 0.5; right, wrong, half: gaps 0.25 on two and 0 on one
    result = margin_calibration([math.log(3), -math.log(3), 0.0], bins=10)
    assert result.ece == pytest.approx(2 / 3 * 0.25)
    # At temperature 2 the sureness is 3^0.5 / (1 + 3^0.5) = 0.633975
    assert margin_calibration([math.log(3), -math.log(3)], temperature=2).ece == pytest.approx(0.133975, abs=1e-6)


@pytest.mark.parametrize("wrong", [([], []), ([1.5], [1.0]), ([0.5], [2.0]), ([math.nan], [1.0]), ([0.5], [1.0], 0)])
def test_impossible_calibration(wrong: tuple) -> None:
    with pytest.raises(ValueError, match="calibration"):
        calibration(*wrong)


def test_number_of_bins() -> None:
    assert len(calibration([0.5], [1.0]).bins) == len(margin_calibration([1.0]).bins) == 10
    assert calibration([0.2, 0.6], [0.0, 1.0], bins=1).ece == pytest.approx(0.1)
    empty = calibration([0.9], [1.0], bins=2).bins[0]
    assert (empty.count, empty.predicted, empty.observed) == (0, 0.0, 0.0)
    with pytest.raises(ValueError, match="shorter"):
        calibration([0.2, 0.6], [0.0])


def test_temperature_by_hand() -> None:
    # Margins all of size 1, three right and one wrong: sigmoid(1/T) = 3/4, T = 1/ln 3 = 0.910239
    assert fit_temperature([1.0, 1.0, 1.0, -1.0]) == pytest.approx(0.910239, abs=1e-6)
    assert fit_temperature(torch.tensor([10.0, 10.0, 10.0, -10.0])) == pytest.approx(9.10239, abs=1e-5)


def test_temperature_undoes_overconfidence() -> None:
    # Choices follow sigmoid(m); the model reports 3 m. With 20,000 pairs the standard error of T is below 0.05.
    generator = random.Random(0)
    margins = []
    for _ in range(20_000):
        true = generator.gauss(0, 1.5)
        right = generator.random() < 1 / (1 + math.exp(-true))
        margins.append(3 * (true if right else -true))
    temperature = fit_temperature(margins)
    assert temperature == pytest.approx(3.0, abs=0.15)
    assert margin_calibration(margins, temperature=temperature).ece < 0.02
    assert margin_calibration(margins).ece > 0.1


def test_temperature_without_a_bound_stops_at_the_ends() -> None:
    assert fit_temperature([1.0, 2.0]) == pytest.approx(0.01)
    assert fit_temperature([-1.0, -2.0, 0.5]) == pytest.approx(100.0)
    with pytest.raises(ValueError, match="at least one"):
        fit_temperature([])


def test_wilson_interval_by_hand() -> None:
    # 8 of 10, z^2 = 3.841459: centre (0.8 + 0.192073)/1.384146 = 0.716740,
    # half 1.959964 * sqrt(0.016 + 0.0096036)/1.384146 = 0.226577
    assert wilson_interval(8, 10) == pytest.approx((0.490163, 0.943318), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    assert wilson_interval(7.5, 10)[0] < 0.75 < wilson_interval(7.5, 10)[1]
    for wrong in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="successes"):
            wilson_interval(*wrong)


def test_wilson_interval_holds_the_truth_95_times_in_100() -> None:
    # Exact coverage by going through all outcomes of 40 trials; for these shares it is between 0.93 and 0.97.
    for share in (0.1, 0.5, 0.62):
        covered = 0.0
        for k in range(41):
            low, high = wilson_interval(k, 40)
            if low <= share <= high:
                covered += math.comb(40, k) * share**k * (1 - share) ** (40 - k)
        assert 0.93 < covered < 0.97
