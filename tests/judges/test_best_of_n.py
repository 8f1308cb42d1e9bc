"""Best of n from N samples."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from goodheart.judges.best_of_n import best_of_n, best_of_n_curve, best_of_n_kl


def test_by_hand() -> None:
    # three samples, proxy 1 2 3, truth 10 0 5, best of two: pairs (1,2) -> 0, (1,3) -> 5, (2,3) -> 5: 10/3
    assert best_of_n([[1, 2, 3]], [[10, 0, 5]], 2) == pytest.approx([10 / 3])
    assert best_of_n([[1, 2, 3]], [[10, 0, 5]], 1) == pytest.approx([5.0])  # the plain mean
    assert best_of_n([[1, 2, 3]], [[10, 0, 5]], 3) == pytest.approx([5.0])  # the truth of the highest


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_equals_all_subsets(n: int) -> None:
    generator = np.random.default_rng(n)
    proxy = generator.integers(0, 4, (5, 6)).astype(float)  # with ties, which are broken evenly
    truth = generator.standard_normal((5, 6))
    expected = []
    for p, t in zip(proxy, truth, strict=True):
        best = [t[[i for i in subset if p[i] == max(p[list(subset)])]].mean() for subset in combinations(range(6), n)]
        expected.append(np.mean(best))
    assert best_of_n(proxy, truth, n) == pytest.approx(expected)


def test_a_thousand_samples_do_not_overflow() -> None:
    scores = np.arange(2048.0)[None]
    # the mean largest of n out of 0..N-1 is n (N + 1) / (n + 1) - 1
    assert best_of_n(scores, scores, 1024) == pytest.approx([1024 * 2049 / 1025 - 1])


def test_kl() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_best_of_n_kl_is_the_limit_of_many_distinct_answers() -> None:
    # M equally likely answers of distinct score: the best of n is number i with probability (i/M)^n - ((i-1)/M)^n.
    n, many = 4, 4000
    best = [(i / many) ** n - ((i - 1) / many) ** n for i in range(1, many + 1)]
    kl = sum(p * math.log(p * many) for p in best)
    assert kl == pytest.approx(best_of_n_kl(n), abs=1e-4)
    assert kl < best_of_n_kl(n)


def test_the_curve_and_its_errors() -> None:
    proxy = [[0.0, 1.0], [0.0, 3.0]]
    first, second = best_of_n_curve(proxy, [[1.0, 0.0], [1.0, 0.0]], [1, 2])
    assert (first.proxy, first.truth) == pytest.approx((1.0, 0.5))  # means of 0.5 and 1.5; of 0.5 and 0.5
    assert (second.proxy, second.truth) == pytest.approx((2.0, 0.0))  # means of 1 and 3; of 0 and 0
    assert second.proxy_error == pytest.approx(1.0)  # std of 1 and 3 is sqrt 2, over sqrt 2
    assert second.truth_error == 0


@pytest.mark.parametrize("n", [0, 3])
def test_more_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 2 samples"):
        best_of_n([[1, 2]], [[1, 2]], n)
