"""Ratings of all models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from goodheart.evaluate.interval import Bootstrap
from goodheart.evaluate.leaderboard import leaderboard


def test_two_models_by_hand() -> None:
    # 75 of 100 won, and half a win for each: odds 75.5 / 25.5; 400 log10 of that = 188.5 points apart, mean 1000
    rates = np.array([1.0] * 75 + [0.0] * 25)
    rows = leaderboard(["a", "b"], {("a", "b"): rates}, Bootstrap(100, 1000))
    assert [row["model"] for row in rows] == ["a", "b"]
    apart = 400 * math.log10(75.5 / 25.5)
    assert rows[0]["rating"] - rows[1]["rating"] == pytest.approx(apart, abs=1e-3)
    assert rows[0]["rating"] + rows[1]["rating"] == pytest.approx(2000)
    # chance of one prompt's vote: sd of logit = 1 / sqrt(100 * .75 * .25) = 0.231 -> 400 log10(e) / 2 * 1.96 * 0.231
    half = 1.96 * 0.231 * 400 * math.log10(math.e) / 2
    assert (rows[0]["high"] - rows[0]["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_strengths_are_recovered() -> None:
    strength = {"a": 4.0, "b": 2.0, "c": 1.0}
    rates = {
        (x, y): np.full(2000, strength[x] / (strength[x] + strength[y]))
        for x, y in (("a", "b"), ("a", "c"), ("b", "c"))
    }
    rows = {row["model"]: row["rating"] for row in leaderboard(list(strength), rates, Bootstrap(2000, 1000))}
    assert rows["a"] - rows["b"] == pytest.approx(400 * math.log10(2), abs=1)
    assert rows["b"] - rows["c"] == pytest.approx(400 * math.log10(2), abs=1)


def test_one_that_always_wins_and_one_that_nobody_met() -> None:
    """Half a win for each side of every pair: 50.5 and 0.5 between the two, 0.5 and 0.5 with the third.

    By symmetry the third stands in the middle, d / 2 from both, and the best one's wins are as expected:
    50.5 + 0.5 = 51 sigmoid(d) + 1 sigmoid(d / 2).
    """
    nobody = np.full(50, np.nan)
    rates = {("worst", "best"): np.zeros(50), ("worst", "alone"): nobody, ("best", "alone"): nobody}
    rows = {row["model"]: row for row in leaderboard(["worst", "best", "alone"], rates, Bootstrap(50, 1000))}
    assert rows["alone"]["rating"] == pytest.approx(1000, abs=0.1)
    d = (rows["best"]["rating"] - rows["worst"]["rating"]) / 400 * math.log(10)
    assert 51 / (1 + math.exp(-d)) + 1 / (1 + math.exp(-d / 2)) == pytest.approx(51, abs=1e-3)
    assert all(math.isfinite(row[key]) for row in rows.values() for key in ("low", "high"))


def test_one_that_always_wins_is_not_certain() -> None:
    # 3 of 3 won: odds 3.5 to 0.5; Wilson's low end 3 / 6.8415 = 0.4385 of 3: odds 1.8155 to 2.1845, a bit under even
    best, worst = leaderboard(["a", "b"], {("a", "b"): np.ones(3)}, Bootstrap(3, 1000))
    assert best["rating"] == pytest.approx(1000 + 200 * math.log10(3.5 / 0.5), abs=1e-3)
    assert best["low"] == pytest.approx(1000 + 200 * math.log10(1.8155 / 2.1845), abs=0.05)
    assert best["high"] == pytest.approx(best["rating"])
    assert worst["high"] == pytest.approx(2000 - best["low"], abs=1e-3)
    assert worst["low"] == pytest.approx(worst["rating"])


def test_one_model_has_no_rank() -> None:
    assert leaderboard(["a"], {}, Bootstrap(3, 1000)) == []
