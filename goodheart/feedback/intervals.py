"""Intervals of shares, and of anything that is a function of sums over items.

Letters: G groups of items, R resamples, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.special import ndtri

from goodheart.feedback.votes import Array

RESAMPLES = 1000
LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))  # a normal distribution lies within so many standard deviations: 1.96
_CELLS = 20_000_000  # numbers held at once while resampling: 160 MB


@dataclass(frozen=True, slots=True)
class Measure:
    """A number with its interval; all None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    chance: float | None  # what labellers who do not look would reach
    items: int  # that it rests on: those with at least two labels
    labels: int


def wilson(successes: ArrayLike, trials: ArrayLike, level: float = LEVEL) -> tuple[Array, Array]:
    """Lower and upper end for a share: right also for few trials and shares near 0 or 1; (0, 1) without trials.

    successes may be fractional. Source: Wilson, JASA 22 (1927).
    """
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    z = float(ndtri((1 + level) / 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        share, shrink = k / n, 1 + z * z / n
        centre = (share + z * z / (2 * n)) / shrink
        half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    # rounding must not put the share itself outside
    low, high = np.maximum(np.minimum(centre - half, share), 0), np.minimum(np.maximum(centre + half, share), 1)
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)


def unseen(items: int, level: float = LEVEL) -> float:
    """Share of items that may be of a kind which none of those seen was of: Wilson's upper end for 0 of them."""
    return float(wilson(0, items, level)[1])


def resampled(
    columns_GC: Array | sparse.sparray, statistic: Callable[[Array], Array], resamples: int, seed: int
) -> Array:
    """(R,) a statistic of column sums for groups drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    columns_GC: what each group adds to each sum.
    statistic: (R, C) sums -> (R,) values, NaN where undefined.
    """
    values = [statistic(weights_RG @ columns_GC) for weights_RG in drawn(columns_GC.shape, resamples, seed)]
    return np.concatenate(values)


def drawn(shape: tuple[int, ...], resamples: int, seed: int) -> Iterator[Array]:
    """(some R, G) how often each group is drawn, in blocks that fit into memory beside C sums each."""
    groups, columns = shape
    chance = np.random.default_rng(seed)
    block = max(1, min(resamples, _CELLS // (groups + columns)))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        yield np.stack(
            [np.bincount(chance.integers(groups, size=groups), minlength=groups) for _ in range(count)]
        ).astype(np.float64)


def bounds(values_R: Array, value: float, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval; resamples where the statistic is undefined are left out."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return value, value
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), value), max(float(high), value)


def bounded(value: float, drawn_R: Array, chance: float, items: int, labels: int, groups: int | None = None) -> Measure:
    """A measure whose resamples are given; `groups` that were drawn, where not one per item."""
    if np.isnan(value):
        return Measure(None, None, None, chance, items, labels)
    low, high = bounds(drawn_R, value)
    if value >= 1.0:
        low = 1.0 - unseen(groups or items) * (1.0 - chance)
    return Measure(value, low, high, chance, items, labels)


def ratio(over: Array, under: Array) -> Array:
    """NaN where there is nothing to divide by: one value only."""
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=np.asarray(under) > 1e-12)
