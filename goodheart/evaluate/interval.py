"""Means over prompts with 95 % intervals.

Prompts are what is drawn at random, not answers: several answers to one prompt are alike. So every measure is first
averaged within a prompt, and intervals come from resampling prompts. All measures of one evaluation share the same
resamples, so that differences between models are paired.

Letters: P prompts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodheart.losses.reward import wilson_interval

Array = NDArray[np.float64]
Samples = Sequence[Sequence[float | None]]  # for each prompt the values of its answers; None = does not apply


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean with its interval. `n` prompts it applies to; all None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


NOTHING = Measure(None, None, None, 0)


class Bootstrap:
    """Resamples of P prompts, drawn once with a fixed seed. Source: Efron and Tibshirani 1993, chapter 13."""

    def __init__(self, prompts: int, resamples: int = 2000, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.prompts = prompts
        # How often each prompt occurs in each resample: a mean over a resample is then a matrix product.
        self.weights_RP = generator.multinomial(prompts, np.full(prompts, 1 / prompts), resamples).astype(np.float64)

    def means(self, values_P: Array) -> Array:
        """(R,) mean of each resample over the prompts that are not NaN; NaN where none of those was drawn."""
        known = ~np.isnan(values_P)
        counts_R = self.weights_RP[:, known].sum(1)
        with np.errstate(invalid="ignore"):
            return (self.weights_RP[:, known] @ values_P[known]) / counts_R

    def mean(self, values_P: Array, *, level: float = 0.95) -> Measure:
        """Mean over prompts with its percentile interval.

        Where all prompts have one value in [0, 1], resampling shows no spread at all, which would claim certainty after
        three prompts: the interval is then Wilson's, with prompts as trials.
        """
        known = values_P[~np.isnan(values_P)]
        if not len(known):
            return NOTHING
        value = float(known.mean())
        if known.min() == known.max() and 0 <= value <= 1:
            low, high = wilson_interval(value * len(known), len(known), _deviations(level))
            return Measure(value, low, high, len(known))
        return self.measure(value, self.means(values_P), len(known), level=level)

    def difference(self, after_P: Array, before_P: Array, *, level: float = 0.95) -> Measure:
        """Mean of after - before over the prompts that have both."""
        change_P = after_P - before_P
        known = change_P[~np.isnan(change_P)]
        if not len(known):
            return NOTHING
        value = float(known.mean())
        if known.min() == known.max():  # as in `mean`: what never happened so far may happen in either direction
            unseen = wilson_interval(0, len(known), _deviations(level))[1]
            return Measure(value, value - unseen, value + unseen, len(known))
        return self.measure(value, self.means(change_P), len(known), level=level)

    def measure(self, value: float, resampled_R: Array, n: int, *, level: float = 0.95) -> Measure:
        """Percentile interval of any statistic that was computed on every resample."""
        low, high = np.nanquantile(resampled_R, [(1 - level) / 2, (1 + level) / 2])
        return Measure(value, min(float(low), value), max(float(high), value), n)


def surely_differs(after_P: Array, before_P: Array, bootstrap: Bootstrap, *, looks: int, yes_no: bool) -> bool:
    """Whether a difference is sure even as one of several that are looked at: `looks` chances to be wrong share 5 %.

    A share of yes must pass the sign test over prompts too, because resampling takes a few rare events for certain:
    4 of 123 prompts worse and none better is p = 2 / 2^4 = 0.125. Source: Bonferroni; Conover 1999, section 3.4.
    """
    level = 1 - 0.05 / max(looks, 1)
    found = bootstrap.difference(after_P, before_P, level=level)
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return False
    return not yes_no or sign_test(after_P - before_P) <= 1 - level


def sign_test(change_P: Array) -> float:
    """Two-sided chance of rises and falls so uneven where either is as likely; prompts that stay are left out."""
    from scipy.special import bdtr  # half a second, which a plan need not spend

    rises, falls = int((change_P > 0).sum()), int((change_P < 0).sum())
    return min(2 * float(bdtr(min(rises, falls), rises + falls, 0.5)), 1.0)


def _deviations(level: float) -> float:
    """How many standard deviations to either side hold a share `level` of a normal distribution."""
    return NormalDist().inv_cdf((1 + level) / 2)


def prompt_means(samples: Samples) -> Array:
    """(P,) mean of each prompt's answers; NaN where none has a value."""
    kept = [[float(x) for x in values if x is not None] for values in samples]
    return np.array([sum(values) / len(values) if values else math.nan for values in kept])


def is_yes_no(*models: Samples) -> bool:
    """Whether every value is 0, 1 or None."""
    return all(x in (None, 0, 1) for samples in models for values in samples for x in values)


def within_unit(*models: Samples) -> bool:
    """Whether every value lies in [0, 1] or is None."""
    return all(x is None or 0 <= x <= 1 for samples in models for values in samples for x in values)


def likeness(*models: Samples) -> float:
    """How alike yes/no answers to one prompt are: 0 like those to different prompts, 1 all the same.

    The variance between prompts' shares p_x is q (rho + (1 - rho) / S) with q = p (1 - p) and S answers per prompt;
    solved for rho, numerators and denominators summed over models. 1 (the careful end) where none shows any difference.
    """
    above = below = 0.0
    for samples in models:
        kept = [[float(x) for x in values if x is not None] for values in samples]
        kept = [values for values in kept if values]
        if len(kept) < 2:
            continue
        shares = np.array([sum(values) / len(values) for values in kept])
        one_over_s = float(np.mean([1 / len(values) for values in kept]))
        spread = float(shares.mean() * (1 - shares.mean()))
        above += float(shares.var(ddof=1)) - spread * one_over_s
        below += spread * (1 - one_over_s)
    return min(max(above / below, 0.0), 1.0) if below > 0 else 1.0


def share(samples: Samples, rho: float) -> Measure:
    """A share of yes: mean over prompts with Wilson's interval.

    rho: likeness of answers to one prompt, see `likeness`. As many trials are counted as independent answers would
    carry the same information: answers / (1 + (S - 1) rho) (Kish 1965). Unlike resampling, it stays right at 0 and 1.
    """
    means_P = prompt_means(samples)
    known = means_P[~np.isnan(means_P)]
    if not len(known):
        return NOTHING
    answers = sum(x is not None for values in samples for x in values)
    per_prompt = answers / len(known)
    trials = answers / (1 + (per_prompt - 1) * rho)
    value = float(known.mean())
    low, high = wilson_interval(value * trials, trials)
    return Measure(value, low, high, len(known))


def measures(models: dict[str, Samples], bootstrap: Bootstrap) -> dict[str, Measure]:
    """The same quantity of several models: shares by Wilson's interval, other means by resampling.

    A model's answers to one prompt count as at least as alike as those of all models are: a policy that says the same
    every time must not borrow certainty from the variety of the others.
    """
    if is_yes_no(*models.values()):
        pooled = likeness(*models.values())
        return {name: share(samples, max(pooled, likeness(samples))) for name, samples in models.items()}
    return {name: bootstrap.mean(prompt_means(samples)) for name, samples in models.items()}


def select(samples: Samples, wanted: Callable[[int], bool]) -> Samples:
    """Values of the wanted prompts; the others count as not applicable, so that resamples still fit."""
    return [values if wanted(i) else [None] * len(values) for i, values in enumerate(samples)]
