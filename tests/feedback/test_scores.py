"""Rankings to scores: worked by hand, recovered from simulations, and beside evalica and choix."""

from __future__ import annotations

import math

import choix
import evalica
import numpy as np
import pytest

from goodheart.errors import DataError
from goodheart.feedback.scores import MEAN, SCALE, Rated, Scale, bradley_terry, elo, plackett_luce, strengths
from goodheart.feedback.votes import Comparisons

POINTS = SCALE / math.log(10)


def named(scale: Scale) -> dict[object, Rated]:
    return {row.name: row for row in scale.rows}


def played(score: dict[str, float], count: int, tie: float, seed: int = 0) -> Comparisons:
    """Random comparisons by Davidson's model: exp(d / 2), tie, exp(-d / 2)."""
    chance = np.random.default_rng(seed)
    rows = []
    for item in range(count):
        a, b = chance.choice(list(score), size=2, replace=False)
        d = score[a] - score[b]
        odds = np.array([math.exp(d / 2), tie, math.exp(-d / 2)])
        rows.append((item, "ann", str(a), str(b), float(chance.choice([1.0, 0.5, 0.0], p=odds / odds.sum()))))
    return Comparisons.of(rows)


def test_disconnected_data_are_ranked_sanely_and_said_to_be_disconnected() -> None:
    """{a beats b twice, c beats d}: evalica alone gives 1e-6 to all four, without a word."""
    alone = evalica.bradley_terry(["a", "a", "c"], ["b", "b", "d"], [evalica.Winner.X] * 3).scores
    assert alone.max() < 1e-5
    apart = Comparisons.of([(0, "ann", "a", "b", 1.0), (1, "ann", "a", "b", 1.0), (2, "ann", "c", "d", 1.0)])
    found = bradley_terry(apart, resamples=50)
    assert found.components == 2
    assert [row.name for row in found.rows] == ["a", "c", "d", "b"]
    assert [row.component for row in found.rows] == [0, 1, 1, 0]
    # by symmetry a = -b = x, the opponent 0: 2 wins and half a one = 2 sigmoid(2x) + sigmoid(x); for c y: 1.5 = ...
    x, y = ((named(found)[name].rating - MEAN) / POINTS for name in "ac")
    assert 2 / (1 + math.exp(-2 * x)) + 1 / (1 + math.exp(-x)) == pytest.approx(2.5, abs=1e-6)
    assert 1 / (1 + math.exp(-2 * y)) + 1 / (1 + math.exp(-y)) == pytest.approx(1.5, abs=1e-6)
    for row in found.rows:  # three comparisons decide nothing
        assert row.low < MEAN < row.high


def test_without_a_prior_what_has_no_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"fall into 4 parts .* set prior over 0"):
        strengths([(0, 1, 1.0), (2, 3, 1.0)], [2.0, 1.0], 4, prior=0)
    found, tie = strengths([(0, 1, 1.0), (0, 1, 0.0)], [3.0, 1.0], 2, prior=0)
    assert found[0] / found[1] == pytest.approx(3)
    assert tie == 0


def test_scores_and_ties_are_recovered() -> None:
    truth = {"a": 1.5, "b": 0.5, "c": -0.5, "d": -1.5}
    found = bradley_terry(played(truth, 4000, tie=0.8), resamples=60)
    assert found.components == 1
    assert found.tie == pytest.approx(0.8, abs=0.1)
    for name, score in truth.items():
        row = named(found)[name]
        assert row.low - 10 < MEAN + POINTS * score < row.high + 10
        assert row.high - row.low < 60
    assert [row.name for row in found.rows] == list("abcd")


def test_intervals_cover_the_truth() -> None:
    """Of 25 tournaments of 150 comparisons; P(more than 5 of 25 missed at 5 %) = 0.1 %."""
    truth, missed = {"a": 0.6, "b": 0.0, "c": -0.6}, 0
    for seed in range(25):
        row = named(bradley_terry(played(truth, 150, tie=0.5, seed=seed), prior=0.1, resamples=60))["a"]
        missed += not row.low <= MEAN + POINTS * 0.6 <= row.high
    assert missed <= 5


def test_who_never_lost_is_not_certain() -> None:
    found = bradley_terry(Comparisons.of([(i, "ann", "a", "b", 1.0) for i in range(3)]), resamples=50)
    best = named(found)["a"]
    assert best.low < best.rating < best.high  # all resamples are the same: the curvature speaks
    assert best.low < MEAN


def test_elo_is_averaged_over_orders_and_ends_where_bradley_terry_is() -> None:
    truth = {"a": 0.8, "b": 0.0, "c": -0.8}
    games = played(truth, 3000, tie=0.5)
    found, again, model = elo(games, resamples=20), elo(games, resamples=20), bradley_terry(games, resamples=20)
    assert found == again
    backwards = games.where(np.ones(3000, dtype=bool))
    order = np.arange(3000)[::-1]
    backwards = Comparisons(
        games.first_N[order], games.second_N[order], games.outcome_N[order], games.labeller_N[order],
        games.item_N[order], games.names, games.labellers, games.items,
    )  # fmt: skip
    for name in truth:
        # Elo counts a tie as half a win where the model has ties of their own, hence a scale of its own; a few points
        # of noise remain of 50 orders
        assert named(elo(backwards, resamples=5))[name].rating == pytest.approx(named(found)[name].rating, abs=8)
        assert (named(found)[name].rating > MEAN) == (named(model)[name].rating > MEAN) or name == "b"
    assert [row.name for row in found.rows] == ["a", "b", "c"]


def test_plackett_luce_equals_choix_and_recovers_the_truth() -> None:
    chance, truth = np.random.default_rng(1), np.array([1.2, 0.4, -0.4, -1.2])
    orders = [tuple(int(k) for k in np.argsort(-(truth + chance.gumbel(size=4)))) for _ in range(600)]
    rankings = [(i, order, range(4)) for i, order in enumerate(orders)]
    found = plackett_luce(rankings, prior=1e-6, resamples=30)
    wanted = choix.ilsr_rankings(4, orders)
    for row in found.rows:
        assert (row.rating - MEAN) / POINTS == pytest.approx(wanted[row.name], abs=1e-4)
        assert row.low - 15 < MEAN + POINTS * truth[row.name] < row.high + 15
    assert found.components == 1


def test_ties_in_rankings_by_hand() -> None:
    """a and b tie above c, every time: a and b are equal, and each was chosen out of all three.

    Breslow: (theta_a theta_b) / (2 theta + theta_c)^2, which grows as theta_c falls: the prior alone holds c.
    """
    found = named(plackett_luce([(i, "abc", (0, 0, 1)) for i in range(20)], resamples=10))
    assert found["a"].rating == pytest.approx(found["b"].rating, abs=1e-3)
    assert found["a"].rating > found["c"].rating + 100
    assert found["a"].won == 20 * 1.5
    level = named(plackett_luce([(i, "abc", (0, 0, 0)) for i in range(5)], resamples=10))
    assert all(row.rating == pytest.approx(MEAN, abs=1e-3) for row in level.values())


def test_disconnected_rankings() -> None:
    found = plackett_luce([(0, "abc", (0, 1, 2)), (1, "xy", (0, 1))], resamples=10)
    assert found.components == 2
    assert all(math.isfinite(row.low) and math.isfinite(row.high) for row in found.rows)
