"""Effects on labels: recovered where they were put in, absent where not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from goodheart.errors import DataError
from goodheart.feedback.effects import (
    by_labeller,
    hours_at_work,
    others_lean,
    pace,
    preference_effects,
    regress,
    too_fast,
    trend,
)
from goodheart.feedback.votes import Comparisons


def biased(
    position: float, length: float, count: int = 3000, seed: int = 0
) -> tuple[Comparisons, np.ndarray, np.ndarray]:
    """Two people per pair; the odds of the first shown are moved. -> comparisons, log2 length ratios, hours."""
    chance = np.random.default_rng(seed)
    rows, lengths, hours = [], [], []
    for item in range(count // 2):
        score, log_length = chance.normal(size=2), chance.normal(size=2)
        for who in chance.choice(10, 2, replace=False):
            a, b = chance.permutation(2)
            ratio = log_length[a] - log_length[b]
            odds = score[a] - score[b] + position + length * ratio
            rows.append(
                (item, int(who), (item, int(a)), (item, int(b)), float(chance.random() < 1 / (1 + math.exp(-odds))))
            )
            lengths.append(ratio)
            hours.append(chance.uniform(0, 3))
    return Comparisons.of(rows), np.array(lengths), np.array(hours)


def test_regression_by_hand() -> None:
    """One column of ones, 30 of 40: log(3); its error sqrt(1 / (40 * 0.75 * 0.25)) = 0.365, nearly."""
    (found,) = regress(np.ones((40, 1)), np.array([1.0] * 30 + [0.0] * 10), np.arange(40))
    assert found.value == pytest.approx(math.log(3), abs=0.03)
    assert found.high - found.value == pytest.approx(1.96 * 0.365, abs=0.02)
    # forty labels of which each four are one and the same tell what ten tell
    (together,) = regress(np.ones((40, 1)), np.repeat([1.0] * 7 + [0.0] * 3, 4), np.repeat(np.arange(10), 4))
    assert together.high - together.value == pytest.approx(1.96 * math.sqrt(1 / (10 * 0.21)), abs=0.15)


def test_regression_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    chance = np.random.default_rng(0)
    columns = chance.normal(size=(300, 3))
    outcome = (chance.random(300) < 1 / (1 + np.exp(-columns @ [1.0, -0.5, 0.0]))).astype(float)
    found = [effect.value for effect in regress(columns, outcome, np.arange(300))]
    wanted = LogisticRegression(C=2.5**2, fit_intercept=False, tol=1e-10, max_iter=1000).fit(columns, outcome).coef_[0]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_position_and_length_are_recovered() -> None:
    pairs, lengths, hours = biased(0.4, 0.3, 8000)
    found = preference_effects(pairs, length_N=lengths, hours_N=hours)
    # scores, of which little is seen, blur the choices: by 1 / sqrt(1 + 0.346 * 2), about 0.77 of an effect is left
    assert 0.2 < found["position"].value < 0.4
    assert 0.15 < found["length"].value < 0.3
    assert found["position"].sure
    assert found["length"].sure
    assert not found["position_by_hour"].sure
    assert found["others"].value > 0.5


def test_no_effect_is_seldom_sure() -> None:
    """Of 40 crowds without bias; P(more than 6 sure at 5 %) = 1.4 %."""
    sure = sum(preference_effects(biased(0.0, 0.0, 400, seed)[0])["position"].sure for seed in range(40))
    assert sure <= 6


def test_one_who_always_takes_the_first() -> None:
    pairs, _, _ = biased(0.0, 0.0, 1000)
    habit = pairs.labeller_N == 0
    outcome = np.where(habit, 1.0, pairs.outcome_N)
    turned = Comparisons(
        pairs.first_N,
        pairs.second_N,
        outcome,
        pairs.labeller_N,
        pairs.item_N,
        pairs.names,
        pairs.labellers,
        pairs.items,
    )
    found = by_labeller(turned)
    name = pairs.labellers[0]
    assert found[name]["position"].low > 1.5
    assert math.isfinite(found[name]["position"].high)
    assert sum(each["position"].sure for other, each in found.items() if other != name) <= 2
    assert by_labeller(turned, least=10_000) == {}


def test_others_lean_by_hand() -> None:
    rows = [
        ("q", "ann", "a", "b", 1.0),
        ("q", "bob", "b", "a", 1.0),
        ("q", "cy", "a", "b", 0.5),
        ("r", "ann", "c", "d", 1.0),
    ]
    # ann sees bob (b better: -1) and cy (0): -1/2. bob, from the side of b, sees ann (-1) and cy (0): -1/2. cy: 0.
    assert others_lean(Comparisons.of(rows)).tolist() == [-0.5, -0.5, 0.0, 0.0]


def test_sessions_by_hand() -> None:
    times = np.array([0.0, 600.0, 10_000.0, 10_900.0, 300.0])
    hours = hours_at_work(times, np.array([0, 0, 0, 0, 1]))
    assert hours == pytest.approx([0, 1 / 6, 0, 0.25, 0])  # a pause of 9,400 s ended the first session


def test_fatigue_is_a_trend_of_agreement() -> None:
    chance = np.random.default_rng(1)
    hours = chance.uniform(0, 4, size=2000)
    agrees = (chance.random(2000) < 1 / (1 + np.exp(-(1.5 - 0.4 * hours)))).astype(float)
    found = trend(np.where(chance.random(2000) < 0.1, np.nan, agrees), hours, np.arange(2000))
    assert found is not None
    assert found.low < -0.4 < found.high < 0
    assert trend(np.full(5, np.nan), np.arange(5.0), np.arange(5)) is None


def test_pace_is_against_texts_of_that_length() -> None:
    chance = np.random.default_rng(2)
    characters = chance.integers(100, 4000, size=4000).astype(float)
    seconds = (4 + characters / 20) * np.exp(0.3 * chance.normal(size=4000))
    seconds[:400] /= 4
    seconds[0] = np.nan
    found = pace(seconds, characters)
    assert np.isnan(found[0])
    # the tenth that is fast moves the medians a little
    assert np.nanmean(found[:400]) == pytest.approx(-math.log(4), abs=0.12)
    assert np.nanmean(found[400:]) == pytest.approx(0.04, abs=0.06)


@pytest.mark.parametrize("careless", [0.0, 0.2, 0.4])
def test_what_nobody_reads_so_fast(careless: float) -> None:
    chance = np.random.default_rng(3)
    characters = chance.integers(100, 1000, size=4000).astype(float)
    blind = chance.random(4000) < careless
    seconds = np.where(
        blind, chance.uniform(1, 3, 4000), (4 + characters / 20) * np.exp(0.3 * chance.normal(size=4000))
    )
    found = too_fast(pace(seconds, characters))
    assert found[~blind].mean() < 0.01
    if careless:
        assert found[blind].mean() > 0.95
    assert not too_fast(np.full(3, np.nan)).any()


def test_what_is_wrong_is_said() -> None:
    pairs, lengths, _ = biased(0.0, 0.0, 20)
    with pytest.raises(DataError, match="`length`: need one finite number for each of the 20"):
        preference_effects(pairs, length_N=lengths[:5])
