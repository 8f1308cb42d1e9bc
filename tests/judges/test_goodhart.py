"""The law of overoptimisation, and the guard's alarms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from goodheart.errors import DataError
from goodheart.judges.goodhart import BEST_OF_N, RL, Guard, fieller, fit_law


def test_the_laws_by_hand() -> None:
    # d = 2, alpha 3, beta 1: RL 2 (3 - ln 2) = 4.6137; best of n 2 (3 - 2) = 2. At d = 0 both are 0.
    for law, expected in ((RL, 2 * (3 - math.log(2))), (BEST_OF_N, 2.0)):
        d = np.array([0.0, 1.0, 2.0, 3.0, 5.0])
        gains = 3 * d - law.bend(d)
        assert gains[2] == pytest.approx(expected)
        assert gains[0] == 0
        fit = fit_law(law, d, gains)
        assert (fit.alpha, fit.beta) == pytest.approx((3.0, 1.0))
        assert fit.predict(2.0)[0] == pytest.approx(expected)
        assert fit.r2 == pytest.approx(1.0)


def test_the_peaks_by_hand() -> None:
    d = np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    # RL, alpha 1, beta 0.5: d* = exp(1/0.5 - 1) = e = 2.71828, R* = 0.5 e = 1.35914
    fit = fit_law(RL, d, d - 0.5 * d * np.log(d))
    assert (fit.peak, fit.best) == pytest.approx((math.e, 0.5 * math.e))
    # best of n, alpha 1, beta 0.25: d* = 1 / 0.5 = 2, R* = 0.25 * 2^2 = 1
    fit = fit_law(BEST_OF_N, d, d - 0.25 * d**2)
    assert (fit.peak, fit.best) == pytest.approx((2.0, 1.0))
    # the peak is one: nothing near it is higher
    assert fit.predict([1.9, 2.1]).max() < 1.0


def test_a_curve_that_only_rises_has_no_peak() -> None:
    d = np.array([1.0, 2.0, 3.0, 4.0])
    fit = fit_law(RL, d, d + 0.5 * d * np.log(d))  # beta = -0.5
    assert fit.beta == pytest.approx(-0.5)
    assert fit.peak is None
    assert fit.peak_high == math.inf
    assert fit.as_dict()["peak_high"] is None
    json.dumps(fit.as_dict(), allow_nan=False)


def test_errors_weigh_the_points() -> None:
    # The last point lies far off the line alpha = 1, beta = 0, with an error so large that it hardly counts.
    d, gains = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 40.0]
    assert fit_law(BEST_OF_N, d, gains, [0.01, 0.01, 0.01, 1000.0]).predict(2.0)[0] == pytest.approx(2.0, abs=1e-2)
    assert abs(fit_law(BEST_OF_N, d, gains).predict(2.0)[0] - 2.0) > 1


def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """2,000 fits; 95 % intervals must cover in 94-96.5 %: a wrong interval formula falls outside, chance (3.5 standard
    errors below, 3 above) hardly ever. R*'s interval is an approximation: 92-98 %.
    """
    generator = np.random.default_rng(0)
    d = np.linspace(0.5, 8, 16)
    alpha, beta, noise = 1.0, 0.5, 0.1
    truth = alpha * d - beta * d * np.log(d)
    peaks = bests = 0
    for _ in range(2000):
        fit = fit_law(RL, d, truth + noise * generator.standard_normal(len(d)))
        peaks += fit.peak_low <= math.e <= fit.peak_high
        assert fit.best_low is not None
        assert fit.best_high is not None
        bests += fit.best_low <= beta * math.e <= fit.best_high
    assert 0.933 < peaks / 2000 < 0.965
    assert 0.92 < bests / 2000 < 0.98


def test_fieller_by_hand() -> None:
    # a = 4, b = 2, variances 0.25 and 0, quantile 2: (4 - 2r)^2 <= 4 * 0.25 -> |4 - 2r| <= 1 -> r in [1.5, 2.5]
    assert fieller(4, 2, np.diag([0.25, 0.0]), 2.0) == pytest.approx((1.5, 2.5))
    # b = 1 with variance 1: (4 - r)^2 <= 4 (0.25 + r^2) -> 3 r^2 + 8 r - 15 >= 0 -> r >= (-8 + sqrt(244)) / 6 = 1.27008
    low, high = fieller(4, 1, np.diag([0.25, 1.0]), 2.0)
    assert low == pytest.approx((-8 + math.sqrt(244)) / 6)
    assert high == math.inf
    # b below 0 for sure: never a peak
    assert fieller(4, -2, np.diag([0.25, 0.0001]), 2.0) == (math.inf, math.inf)
    # a = -1, b = 0.1, variances 0.01, quantile 2: (-1 - 0.1 r)^2 <= 0.04 (1 + r^2) where 0.03 r^2 - 0.2 r >= 0.96:
    # r >= (0.2 + sqrt(0.1552)) / 0.06 or r <= (0.2 - sqrt(0.1552)) / 0.06; with b over 0 and a below it is the latter
    low, high = fieller(-1, 0.1, np.diag([0.01, 0.01]), 2.0)
    assert low == -math.inf
    assert high == pytest.approx((0.2 - math.sqrt(0.1552)) / 0.06)
    # nothing known of either
    assert fieller(0.1, 0.1, np.diag([1.0, 1.0]), 2.0) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("d", "gains"),
    [([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 2.0, 0.0]), ([1, 2, 3], [1, 2, math.nan])],
)
def test_too_little_to_fit_is_refused(d: list[float], gains: list[float]) -> None:
    with pytest.raises(DataError, match="a law needs"):
        fit_law(RL, d, gains)


def test_r2_of_points_that_were_not_fitted() -> None:
    d = np.array([1.0, 2.0, 3.0, 4.0])
    fit = fit_law(BEST_OF_N, d, d - 0.1 * d**2)
    later = np.array([5.0, 6.0, 7.0])
    assert fit.score(later, later - 0.1 * later**2) == pytest.approx(1.0)
    assert fit.score(later, [0.0, 5.0, -5.0]) < 0  # worse than their mean


def test_the_best_look_is_remembered() -> None:
    guard = Guard()
    assert guard.best is None
    assert [guard.add(s, s, a, 0.01, s) for s, a in ((0, 0.5), (10, 0.7), (20, 0.7), (30, 0.6))] == [
        True,
        True,
        False,
        False,
    ]
    assert guard.best is not None
    assert guard.best.step == 10


def test_the_rule_by_hand() -> None:
    """Look 2 after one other: level 0.05 / (2 * 1) = 0.025, so z over 1.96 with tolerance 0."""
    # error of the difference: sqrt(0.03^2 + 0.04^2) = 0.05; falls of 0.097 (z = 1.94) and 0.099 (z = 1.98)
    for fall, alarm in ((0.097, False), (0.099, True)):
        guard = Guard(tolerance=0.0)
        guard.add(0, 0.0, 0.7, 0.03, 1.0)
        guard.add(10, 1.0, 0.7 - fall, 0.04, 2.0)
        assert guard.turned_down is alarm
    assert "from 0.700 (step 0) to 0.601 (step 10" in str(guard.alarm)
    assert "rose from 1.000 to 2.000" in str(guard.alarm)
    # look 3 after two others: level 0.05 / (3 * 4) = 1/240, z over 2.638; error 0.05 again: 0.131 (2.62), 0.133 (2.66)
    for fall, alarm in ((0.131, False), (0.133, True)):
        guard = Guard(tolerance=0.0)
        guard.add(0, 0.0, 0.1, 0.03, 1.0)
        guard.add(10, 1.0, 0.7, 0.03, 2.0)
        guard.add(20, 4.0, 0.7 - fall, 0.04, 3.0)
        assert guard.turned_down is alarm


def test_a_loss_within_the_tolerance_is_no_alarm() -> None:
    # gain 0.4, tolerance 0.05: 0.02 may be lost; 0.015 is, and is certain
    for fall, alarm in ((0.015, False), (0.03, True)):
        guard = Guard(tolerance=0.05)
        guard.add(0, 0, 0.3, 0.0005, 0)
        guard.add(1, 1, 0.7, 0.0005, 1)
        guard.add(2, 2, 0.7 - fall, 0.0005, 2)
        assert guard.turned_down is alarm


def test_the_same_prompts_show_smaller_falls() -> None:
    generator = np.random.default_rng(1)
    prompts = generator.uniform(0, 1, 100)  # some are much harder than others: standard error 0.03
    later = prompts - 0.05 + 0.02 * generator.standard_normal(100)
    for paired in (False, True):
        guard = Guard()
        for step, scores in ((0, prompts), (10, later)):
            error = float(scores.std(ddof=1) / 10)
            guard.add(step, step, float(scores.mean()), error, 0.0, scores.tolist() if paired else None)
        assert guard.turned_down is paired


@pytest.mark.parametrize("paired", [False, True])
def test_false_alarms_over_a_whole_run(paired: bool) -> None:
    """400 runs of 20 looks at a policy that does not change, the hardest case that is no fall: at most 5 % may alarm.

    If 5 % did, more than 36 of 400 would in 1 of 2,000 tests; the rule is careful, so far fewer are expected.
    """
    generator = np.random.default_rng(2)
    alarms = 0
    for _ in range(400):
        guard = Guard(false_alarms=0.05, tolerance=0.0)
        hardness = generator.uniform(0, 1, 25)
        for step in range(20):
            scores = hardness + 0.2 * generator.standard_normal(25)
            own = scores.tolist() if paired else None
            error = 0.2 / 5  # that of the sampled answers: the prompts are the same
            guard.add(step, step, float(scores.mean()), error, 0.0, own)
        alarms += guard.turned_down
    assert 0 < alarms <= 36  # never alarming would also be wrong: the bound is not that loose


@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_few_prompts_with_plain_yes_or_no_prove_little(count: int) -> None:
    """300 runs of 15 looks, nothing changes: 5 % may alarm, and more than 30 of 300 would in 1 of 2,000 tests."""
    generator = np.random.default_rng(count)
    alarms = 0
    for _ in range(300):
        guard = Guard(false_alarms=0.05, tolerance=0.0)
        for step in range(15):
            scores = generator.integers(0, 2, count).astype(float)
            guard.add(
                step, step, float(scores.mean()), float(scores.std(ddof=1)) / math.sqrt(count), 0.0, scores.tolist()
            )
        alarms += guard.turned_down
    assert alarms <= 30


def test_looks_are_compared_on_the_prompts_that_both_know() -> None:
    # 40 prompts fall from 1 to 0 (a little unevenly); ten others, known once each, would hide it in the means.
    first = [1.0 + 0.01 * (i % 3) for i in range(40)] + [None] * 10
    second: list[float | None] = [0.0] * 40 + [50.0] * 10
    guard = Guard()
    guard.add(0, 0.0, 1.0, 0.1, 0.0, first)
    guard.add(1, 1.0, 10.0, 3.0, 0.0, second)
    assert guard.turned_down


def test_a_real_fall_is_seen() -> None:
    """Truth follows the law past its peak; of 50 runs nearly all must stop before half the gain is lost."""
    generator = np.random.default_rng(3)
    seen = 0
    for _ in range(50):
        guard = Guard()
        hardness = generator.uniform(-0.3, 0.3, 100)
        for step in range(25):
            d = step / 3
            gain = 0.2 * d - 0.1 * d * math.log(d) if d else 0.0  # peak 0.1 e = 0.272 at d = e, half of it at 6.1
            scores = 0.4 + gain + hardness + 0.1 * generator.standard_normal(100)
            guard.add(step, d * d, float(scores.mean()), float(scores.std() / 10), d, scores.tolist())
            if guard.turned_down:
                seen += d < 6.1
                break
    assert seen >= 47


def test_the_law_comes_with_the_looks() -> None:
    guard = Guard()
    for step, d in enumerate((0.0, 0.5, 1.0, 2.0, 3.0, 4.0)):
        gain = d - 0.5 * d * math.log(d) if d else 0.0
        guard.add(step, d * d, 0.2 + gain, 0.01, d)
        if step == 2:
            assert guard.law() is None  # two points over 0
    law = guard.law()
    assert law is not None
    assert law.peak == pytest.approx(math.e)


def test_a_guard_continues_where_it_was_saved() -> None:
    whole, first = Guard(), Guard()
    looks = [(0, 0.0, 0.5, 0.01, 0.0, [0.4, 0.6]), (1, 1.0, 0.9, 0.01, 1.0, [0.8, 1.0]), (2, 2.0, 0.1, 0.01, 2.0, None)]
    for look in looks:
        whole.add(*look)
    for look in looks[:2]:
        first.add(*look)
    second = Guard()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.add(*looks[2])
    assert second.state_dict() == whole.state_dict()
    assert second.looks == whole.looks
    assert second.turned_down


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Guard().add(0, 0.0, math.nan, 0.1, 0.0)
    with pytest.raises(ValueError, match="false_alarms"):
        Guard(false_alarms=0)
