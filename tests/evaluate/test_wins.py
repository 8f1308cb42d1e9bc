"""Win rates and their length-controlled twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from goodheart.evaluate.interval import Bootstrap
from goodheart.evaluate.wins import Entry, Pairs, by_prompt, length_controlled, mirrored, pairs, win_record
from goodheart.losses.reward import wilson_interval


def drawn(
    prompts: int, samples: int, seed: int, *, quality: float, effect: float, longer: float, difficulty: float = 0.0
) -> Pairs:
    """Preferences drawn from logit = quality + prompt + effect * tanh(difference / 10)."""
    generator = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), samples)
    difference = longer + 10 * generator.standard_normal(prompts * samples)
    own = difficulty * generator.standard_normal(prompts)
    chance = expit(quality + own[prompt] + effect * np.tanh(difference / difference.std()))
    preferred = (generator.random(len(chance)) < chance).astype(float)
    return Pairs(prompt, preferred, difference, np.full(prompts, float(samples)), prompts)


def paired(
    scores_a: list[list[float | None]],
    scores_b: list[list[float | None]],
    lengths_a: list[list[float]],
    lengths_b: list[list[float]],
    tie: float = 0.0,
) -> Pairs:
    """Pairs of answers that all have different texts."""

    def entries(who: str, scores: list[list[float | None]], lengths: list[list[float]]) -> list[list[Entry]]:
        both = [list(zip(own, long, strict=True)) for own, long in zip(scores, lengths, strict=True)]
        return [[Entry(f"{who} {i} {k}", x, n) for k, (x, n) in enumerate(own)] for i, own in enumerate(both)]

    return pairs(entries("a", scores_a, lengths_a), entries("b", scores_b, lengths_b), tie)


def test_win_rate_by_hand() -> None:
    # prompt 0: a 3, 1 against b 2, 2 -> wins 2 of 4; prompt 1: 1 against 1 -> a tie; prompt 2: nothing to compare
    found = paired([[3, 1], [1], [5]], [[2, 2], [1], [None]], [[9, 1], [4], [1]], [[5, 5], [4], [1]])
    assert by_prompt(found)[:2].tolist() == [0.5, 0.5]
    assert math.isnan(by_prompt(found)[2])
    record = win_record(found, Bootstrap(3, 1000))
    assert (record["wins"], record["ties"], record["losses"], record["prompts"]) == (2, 1, 2, 2)
    assert record["rate"]["value"] == 0.5
    assert found.longer_N.tolist() == [4, 4, -4, -4, 0]


def test_prompts_weigh_the_same_whatever_their_samples() -> None:
    # won on the first prompt (4 pairs), lost on the second (1 pair): 0.5, not 0.8
    found = paired([[2, 2], [0]], [[1, 1], [1]], [[1, 1], [1]], [[1, 1], [1]])
    assert win_record(found, Bootstrap(2, 1000))["rate"]["value"] == 0.5


def test_scores_that_differ_by_rounding_or_less_than_the_tie_margin_are_equal() -> None:
    found = paired([[0.1 + 0.2, 1.0]], [[0.3]], [[1, 1]], [[1]])
    assert found.preferred_N.tolist() == [0.5, 1.0]
    assert paired([[0.35, 1.0]], [[0.3]], [[1, 1]], [[1]], tie=0.1).preferred_N.tolist() == [0.5, 1.0]


def test_the_other_side_mirrors() -> None:
    found = paired([[3], [1], [4]], [[2], [2], [1]], [[9], [1], [5]], [[5], [5], [5]])
    back = paired([[2], [2], [1]], [[3], [1], [4]], [[5], [5], [5]], [[9], [1], [5]])
    bootstrap = Bootstrap(3, 1000)
    there, here = mirrored(win_record(found, bootstrap)), win_record(back, bootstrap)
    assert (there["wins"], there["losses"]) == (here["wins"], here["losses"])
    for measure in ("rate", "length_controlled"):
        for key in ("value", "low", "high"):
            assert there[measure][key] == pytest.approx(here[measure][key], abs=1e-6)


def test_a_pure_length_effect_is_taken_out() -> None:
    # a's answers are longer on average (by 1.2 standard deviations), and length alone decides
    found = drawn(400, 4, seed=0, quality=0.0, effect=3.0, longer=12.0)
    raw, controlled = win_record(found, Bootstrap(400, 1000))["rate"], length_controlled(found, Bootstrap(400, 1000))
    assert raw["low"] > 0.75
    assert controlled.value == pytest.approx(0.5, abs=0.06)
    assert controlled.low < 0.5 < controlled.high  # type: ignore[operator]


def test_a_pure_quality_effect_stays() -> None:
    # sigmoid(1) = 0.731 whether answers are longer or not
    found = drawn(400, 4, seed=1, quality=1.0, effect=0.0, longer=12.0)
    assert length_controlled(found, Bootstrap(400, 1000)).value == pytest.approx(expit(1.0), abs=0.05)


def test_equal_lengths_change_nothing() -> None:
    # without any difference of length the model is exact: mean of the prompts' shares (1, 0.5, 0, 1)
    found = paired([[2, 2], [2, 0], [0, 0], [2, 2]], [[1, 1]] * 4, [[7, 7]] * 4, [[7, 7]] * 4)
    assert length_controlled(found, Bootstrap(4, 1000)).value == pytest.approx(0.625, abs=0.01)


def test_kinds_of_prompts_do_not_pass_for_an_effect_of_length() -> None:
    """Half the prompts a wins for its quality where it happens to write long, the other half it loses short; within a
    prompt length does not matter. A model without terms for prompts sees a strong effect of length here.
    """
    generator = np.random.default_rng(3)
    prompt = np.repeat(np.arange(300), 8)
    good = prompt % 3 > 0  # two thirds
    difference = np.where(good, 20.0, -20.0) + 10 * generator.standard_normal(len(prompt))
    preferred = (generator.random(len(prompt)) < np.where(good, 0.9, 0.1)).astype(float)
    found = Pairs(prompt, preferred, difference, np.full(300, 8.0), 300)
    truth = (0.9 * 2 + 0.1) / 3
    assert length_controlled(found, Bootstrap(300, 1000)).value == pytest.approx(truth, abs=0.06)


def test_the_interval_covers_the_truth() -> None:
    """200 data sets without an effect of quality; 95 % intervals must cover 0.5 in 89-99 %."""
    covered = 0
    for seed in range(200):
        found = length_controlled(
            drawn(80, 3, seed, quality=0.0, effect=1.5, longer=5.0, difficulty=0.5), Bootstrap(80, 1000, seed)
        )
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.5 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_equal_texts_are_a_tie_whatever_the_judge_says() -> None:
    same = pairs([[Entry("yes", 0.30001, 1)]], [[Entry("yes", 0.3, 1), Entry("no", 0.3, 1)]])
    assert same.preferred_N.tolist() == [0.5, 1.0]


def test_what_never_varies_is_not_certain_at_equal_length() -> None:
    # won on all of 3 prompts: the plain rate is 1, Wilson's low end 3 / (3 + 3.8415) = 0.4385, 0.5615 below it
    found = paired([[2]] * 3, [[1]] * 3, [[4], [9], [7]], [[5], [5], [9]])
    controlled = length_controlled(found, Bootstrap(3, 1000))
    assert controlled.value is not None
    assert 0.9 < controlled.value < 1
    assert controlled.low == pytest.approx(controlled.value - (1 - wilson_interval(3, 3)[0]))
    assert controlled.low == pytest.approx(controlled.value - 0.5615, abs=1e-4)
    assert controlled.high is not None
    assert controlled.value <= controlled.high <= 1
    tied = length_controlled(paired([[1]] * 3, [[1]] * 3, [[4], [9], [7]], [[5], [5], [9]]), Bootstrap(3, 1000))
    # Wilson for 1.5 of 3: half-width 1.96 sqrt(0.25 / 3 + 3.8415 / 36) / (1 + 3.8415 / 3) = 0.3747
    assert (tied.value, tied.low, tied.high) == pytest.approx((0.5, 0.1253, 0.8747), abs=1e-4)


def test_always_longer_by_far_says_nothing() -> None:
    """Differences of 20 and of 30 +- 8 (3.75 standard deviations from 0): length and model cannot be told apart."""
    found = paired([[2]] * 50, [[1]] * 50, [[30]] * 50, [[10]] * 50)
    assert length_controlled(found, Bootstrap(50, 1000)).value is None
    spread = [[38], [22]] * 25
    assert length_controlled(paired([[2]] * 50, [[1]] * 50, spread, [[0]] * 50), Bootstrap(50, 1000)).n == 0
    assert length_controlled(paired([[2]] * 50, [[1]] * 50, [[0]] * 50, spread), Bootstrap(50, 1000)).n == 0
    # 30 +- 15: two standard deviations
    near = [[45], [15]] * 25
    assert length_controlled(paired([[2]] * 50, [[1]] * 50, near, [[0]] * 50), Bootstrap(50, 1000)).n == 50
    record = win_record(found, Bootstrap(50, 1000))
    assert mirrored(record)["length_controlled"] == {"value": None, "low": None, "high": None, "n": 0}
