"""Intervals by prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest

from goodheart.evaluate.interval import (
    Bootstrap,
    is_yes_no,
    likeness,
    measures,
    prompt_means,
    select,
    share,
    sign_test,
    surely_differs,
    within_unit,
)
from goodheart.losses.reward import wilson_interval


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    # means of the prompts 0, 1, (nothing), 0.5 -> mean 0.5 over 3 prompts; over answers it would be 3/6... = 0.6
    means = prompt_means([[0.0], [1.0, 1.0], [None], [1.0, 0.0, None]])
    assert means[:2].tolist() == [0.0, 1.0]
    assert math.isnan(means[2])
    found = Bootstrap(4, 1000).mean(means)
    assert (found.value, found.n) == (0.5, 3)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """600 data sets of 60 prompts with mean 0.3: 95 % intervals cover in 91.5-97 % (3.5 standard errors of 600)."""
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(600):
        found = Bootstrap(60, 1000, seed=trial).mean(generator.beta(3, 7, 60))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.915 <= covered / 600 <= 0.97


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random(30)
    assert Bootstrap(30, 1000, 5).mean(values) == Bootstrap(30, 1000, 5).mean(values)
    assert Bootstrap(30, 1000, 6).mean(values) != Bootstrap(30, 1000, 5).mean(values)


def test_differences_are_paired() -> None:
    # Two models that differ by 0.1 on every prompt but for a hair: the difference is far surer than either mean.
    generator = np.random.default_rng(2)
    before = generator.random(50)
    after = before + 0.1 + 0.001 * generator.standard_normal(50)
    bootstrap = Bootstrap(50, 1000)
    alone, both = bootstrap.mean(after), bootstrap.difference(after, before)
    assert both.value == pytest.approx(0.1, abs=1e-3)
    assert both.high - both.low < 0.01 < alone.high - alone.low  # type: ignore[operator]


def test_what_never_differs_is_not_certain() -> None:
    # Wilson for 0 of 100: z^2 / (100 + z^2) = 3.8415 / 103.8415 = 0.03699
    bootstrap = Bootstrap(100, 1000)
    assert bootstrap.mean(np.zeros(100)).high == pytest.approx(0.03699, abs=1e-5)
    assert bootstrap.mean(np.ones(100)).low == pytest.approx(1 - 0.03699, abs=1e-5)
    same = bootstrap.difference(np.ones(100), np.ones(100))
    assert (same.value, same.low, same.high) == pytest.approx((0, -0.03699, 0.03699), abs=1e-5)


def test_nothing_applies() -> None:
    found = Bootstrap(2, 1000).mean(np.array([math.nan, math.nan]))
    assert found.as_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert share([[None], []], 1.0).n == 0


def test_likeness_by_hand() -> None:
    # All answers to a prompt alike: 1. Prompts no more different than chance: clipped to 0.
    assert likeness([[1, 1], [0, 0], [1, 1], [0, 0]]) == pytest.approx(1.0)
    assert likeness([[1, 0], [1, 0], [1, 0], [1, 0]]) == 0.0
    # shares 1, .5, .5, 0: variance (.25 + 0 + 0 + .25) / 3 = 1/6, q = 1/4, S = 2: rho = (1/6 - 1/8) / (1/8) = 1/3
    assert likeness([[1, 1], [1, 0], [0, 1], [0, 0]]) == pytest.approx(1 / 3)
    # a model in which nothing happens adds nothing
    assert likeness([[1, 1], [1, 0], [0, 1], [0, 0]], [[0, 0]] * 4) == pytest.approx(1 / 3)
    assert likeness([[0, 0]] * 4) == 1.0  # nothing is known: as careful as can be


def test_share_by_hand() -> None:
    # 4 prompts x 2 answers with likeness 1/3: 8 / (1 + 1/3) = 6 trials, half of them yes
    found = share([[1, 1], [1, 0], [0, 1], [0, 0]], 1 / 3)
    assert (found.value, found.low, found.high, found.n) == (0.5, *wilson_interval(3, 6), 4)
    # nothing seen in 100 prompts x 4 answers: 100 trials if they are all alike, 400 if they are independent
    none = [[0, 0, 0, 0]] * 100
    assert share(none, 1.0).high == pytest.approx(wilson_interval(0, 100)[1])
    assert share(none, 0.0).high == pytest.approx(wilson_interval(0, 400)[1])


def test_shares_and_means_are_told_apart() -> None:
    assert is_yes_no([[0, 1, None], [1.0]])
    assert not is_yes_no([[0, 0.5]])
    bootstrap = Bootstrap(4, 1000)
    yes_no = measures({"a": [[1, 1], [1, 0], [0, 1], [0, 0]], "b": [[0, 0]] * 4}, bootstrap)
    assert yes_no["a"].high == pytest.approx(wilson_interval(3, 6)[1])  # likeness 1/3, see above
    assert yes_no["b"].high == pytest.approx(wilson_interval(0, 4)[1])  # never varies: 4 prompts are 4 trials
    graded = measures({"a": [[0.5], [0.25], [1.0], [0.0]]}, bootstrap)["a"]
    assert graded.low == pytest.approx(bootstrap.mean(np.array([0.5, 0.25, 1.0, 0.0])).low)

    assert within_unit([[0, 0.5, None], [1.0]])
    assert not within_unit([[0, 1.5]])
    assert not within_unit([[1, -0.5]])


def test_the_sign_test_by_hand() -> None:
    # 4 rises, no fall: 2 / 2^4; 5 and 1: 2 (1 + 6) / 2^6; as many of each: certain
    assert sign_test(np.array([1.0] * 4 + [0.0] * 119)) == pytest.approx(0.125)
    assert sign_test(np.array([0.5, 1, 1, 1, 1, -1, 0, math.nan])) == pytest.approx(0.21875)
    assert sign_test(np.array([1.0, -1.0])) == 1.0
    assert sign_test(np.zeros(3)) == 1.0


def test_a_few_rare_events_are_no_sure_difference() -> None:
    before, after = np.zeros(123), np.array([1.0] * 4 + [0.0] * 119)
    bootstrap = Bootstrap(123, 2000)
    assert bootstrap.difference(after, before).low > 0  # type: ignore[operator]  # what resampling says
    assert not surely_differs(after, before, bootstrap, looks=1, yes_no=True)
    # 12 rises: p = 2 / 2^12 = 0.0005, sure among 36 looks (0.05 / 36 = 0.0014)
    after[:12] = 1.0
    assert surely_differs(after, before, bootstrap, looks=36, yes_no=True)
    assert not surely_differs(before, before, bootstrap, looks=1, yes_no=False)


def test_many_looks_find_nothing_where_there_is_nothing() -> None:
    """100 times 20 differences by chance alone: about 5 of the 100 may hold one; each at 95 % it would be 64."""
    generator = np.random.default_rng(6)
    false = 0
    for trial in range(100):
        bootstrap = Bootstrap(80, 1000, trial)
        changes = generator.standard_normal((20, 80))
        false += any(surely_differs(c, np.zeros(80), bootstrap, looks=20, yes_no=False) for c in changes)
    assert false <= 14


def test_the_level_holds_for_what_never_differs_too() -> None:
    # 100 of 100 at 99 %: z = 2.5758, low end 100 / (100 + 6.6349)
    bootstrap = Bootstrap(100, 1000)
    assert bootstrap.mean(np.ones(100), level=0.99).low == pytest.approx(0.93778, abs=1e-5)
    assert bootstrap.difference(np.ones(100), np.ones(100), level=0.99).high == pytest.approx(0.06222, abs=1e-5)


def test_select_keeps_the_places() -> None:
    assert select([[1, 2], [3]], lambda i: i == 1) == [[None, None], [3]]


def test_shares_cover_as_often_as_they_say() -> None:
    """600 data sets of 60 prompts x 4 answers whose chances differ by prompt (beta-binomial, likeness 1 / (1 + 3)):
    intervals of the true share 0.2 cover in 92-98.5 %. Taking answers as independent covers in 89 %.
    """
    generator = np.random.default_rng(4)
    covered = 0
    for _ in range(600):
        chances = generator.beta(0.2 * 3, 0.8 * 3, 60)
        samples = (generator.random((60, 4)) < chances[:, None]).astype(float).tolist()
        found = share(samples, likeness(samples))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.2 <= found.high
    assert 0.92 <= covered / 600 <= 0.985


def test_a_collapsed_model_borrows_no_certainty() -> None:
    """300 data sets of 100 prompts x 8 answers: one model varies, the other says the same to a prompt every time.

    Its intervals of the true share 0.1 cover in 92-98.5 %; with the likeness of both together it is 78 %.
    """
    generator = np.random.default_rng(5)
    bootstrap, covered = Bootstrap(100, 1000), 0
    for _ in range(300):
        varied = (generator.random((100, 8)) < 0.6).astype(float).tolist()
        collapsed = np.repeat((generator.random((100, 1)) < 0.1).astype(float), 8, axis=1).tolist()
        found = measures({"varied": varied, "collapsed": collapsed}, bootstrap)["collapsed"]
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.1 <= found.high
    assert 0.92 <= covered / 300 <= 0.985
