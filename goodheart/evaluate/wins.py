"""How often one model's answer is preferred to another's, with intervals by prompt, also at equal length.

Letters: P prompts, N pairs of answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from goodheart.evaluate.interval import NOTHING, Array, Bootstrap, Measure

# Spread that the terms of the length model may have, in logits. Without a limit the answer for data that a straight
# line separates would be infinite. The model's own term is bound least: what length cannot be told from is its doing.
_MODEL_SPREAD, _LENGTH_SPREAD, _PROMPT_SPREAD = 10.0, 5.0, 2.0
_FAR = 3.0  # standard deviations from 0 at which the lengths of two models hardly meet
_STEPS = 50  # Newton steps; fewer than ten are needed


@dataclass(frozen=True, slots=True)
class Pairs:
    """Every pair (answer of a, answer of b) to the same prompt that has two scores."""

    prompt_N: np.ndarray[Any, np.dtype[np.int64]]
    preferred_N: Array  # 1 a's is better, 0 b's, 0.5 neither
    longer_N: Array  # length of a's minus length of b's
    sizes_P: Array  # independent pairs that each prompt's count for: the smaller number of answers
    prompts: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer in a comparison."""

    text: str
    score: float | None
    length: float


def pairs(first: Sequence[Sequence[Entry]], second: Sequence[Sequence[Entry]], tie: float = 0.0) -> Pairs:
    """All pairs of answers of two models.

    Equal texts are a tie by definition: a judge that scores in batches may score them apart by rounding.

    Args:
        first, second: for each prompt the answers; those without a score are left out.
        tie: scores that differ by no more than this are equal.
    """
    prompt, preferred, longer, sizes = [], [], [], []
    for p, (own, other) in enumerate(zip(first, second, strict=True)):
        a, b = ([(e.score, e) for e in entries if e.score is not None] for entries in (own, other))
        sizes.append(float(min(len(a), len(b))))
        for x, one in a:
            for y, two in b:
                prompt.append(p)
                # equal up to rounding is equal
                equal = one.text == two.text or math.isclose(x, y, rel_tol=1e-9, abs_tol=max(tie, 1e-12))
                preferred.append(0.5 if equal else float(x > y))
                longer.append(one.length - two.length)
    return Pairs(np.array(prompt, dtype=np.int64), np.array(preferred), np.array(longer), np.array(sizes), len(sizes))


def by_prompt(found: Pairs) -> Array:
    """(P,) share of its pairs that a wins, ties half; NaN for a prompt without pairs."""
    counts = np.bincount(found.prompt_N, minlength=found.prompts)
    with np.errstate(invalid="ignore"):
        won: Array = np.bincount(found.prompt_N, found.preferred_N, found.prompts).astype(np.float64)
        return won / np.where(counts, counts, np.nan)


def win_record(found: Pairs, bootstrap: Bootstrap) -> dict[str, Any]:
    """Win rate of a over b: `rate` and `length_controlled` as measures, and how many pairs were won, tied and lost."""
    rates_P = by_prompt(found)
    rate = bootstrap.mean(rates_P)
    return {
        "rate": rate.as_dict(),
        "wins": int((found.preferred_N == 1).sum()),
        "ties": int((found.preferred_N == 0.5).sum()),
        "losses": int((found.preferred_N == 0).sum()),
        "prompts": rate.n,
        "length_controlled": length_controlled(found, bootstrap).as_dict(),
    }


def mirrored(record: dict[str, Any]) -> dict[str, Any]:
    """The same comparison seen from the other model."""

    def other(measure: dict[str, Any]) -> dict[str, Any]:
        if measure["value"] is None:
            return measure
        return {
            "value": 1 - measure["value"],
            "low": 1 - measure["high"],
            "high": 1 - measure["low"],
            "n": measure["n"],
        }

    return record | {
        "rate": other(record["rate"]),
        "wins": record["losses"],
        "losses": record["wins"],
        "length_controlled": other(record["length_controlled"]),
    }


def length_controlled(found: Pairs, bootstrap: Bootstrap) -> Measure:
    """The win rate a would have over b if their answers were equally long.

    logit P(a preferred) = theta + u_x + phi tanh(length difference / its standard deviation), with theta for the
    model, u_x for prompt x (penalised) and phi for length; the rate is the mean over prompts of
    sigmoid(theta + u_x). Fitted by penalised maximum likelihood, each prompt weighing as many observations as it has
    independent pairs. The interval resamples prompts, each resample by one Newton step from the whole fit.
    Where no prompt differs from another in its share, resampling shows no spread of theta: the interval is then at
    least as wide as that of the plain rate. Where a's answers are nearly always longer, or shorter, by far, length and
    model cannot be told apart, and there is no answer.
    Source: Dubois et al. arXiv:2404.04475, with prompts in place of their instruction difficulty.
    """
    if not len(found.prompt_N) or _apart(found.longer_N):
        return NOTHING
    used = np.unique(found.prompt_N)
    fit = _LengthModel(found)
    values_P, slopes_P2 = fit.rates()
    value = float(values_P[used].mean())
    shifts_R2 = fit.resampled_shifts(bootstrap.weights_RP)
    weights_RP = bootstrap.weights_RP[:, used]
    moved = (weights_RP @ values_P[used]) + ((weights_RP @ slopes_P2[used]) * shifts_R2).sum(1)
    with np.errstate(invalid="ignore"):  # a resample without any of the used prompts
        measure = bootstrap.measure(value, np.clip(moved / weights_RP.sum(1), 0, 1), len(used))
    return _as_wide_as_the_rate(measure, by_prompt(found), bootstrap)


def _apart(longer_N: Array) -> bool:
    """Whether the differences of length lie far from 0 for their spread: all on one side, so to speak."""
    mean, spread = float(longer_N.mean()), float(longer_N.std())
    return mean != 0 and abs(mean) > _FAR * spread


def _as_wide_as_the_rate(measure: Measure, rates_P: Array, bootstrap: Bootstrap) -> Measure:
    """Widens it by the half-widths of the plain rate's interval where that is the same for every prompt."""
    plain = bootstrap.mean(rates_P)
    if np.nanmin(rates_P) < np.nanmax(rates_P) or plain.value is None or measure.value is None:
        return measure
    assert plain.low is not None
    assert plain.high is not None
    assert measure.low is not None
    assert measure.high is not None
    low, high = measure.value - (plain.value - plain.low), measure.value + (plain.high - plain.value)
    return Measure(measure.value, min(measure.low, max(low, 0.0)), max(measure.high, min(high, 1.0)), measure.n)


class _LengthModel:
    """theta and phi with each prompt's own u_x profiled out: u_x depends on its prompt's pairs alone."""

    def __init__(self, found: Pairs) -> None:
        self.prompt_N, self.preferred_N, self.prompts = found.prompt_N, found.preferred_N, found.prompts
        spread = float(found.longer_N.std())
        self.length_N = np.tanh(found.longer_N / spread) if spread > 0 else np.zeros_like(found.longer_N)
        counts = np.bincount(self.prompt_N, minlength=self.prompts)
        self.weight_N = (found.sizes_P / np.where(counts, counts, 1))[self.prompt_N]
        self.theta, self.phi, self.u_P = 0.0, 0.0, np.zeros(self.prompts)
        self._prior = np.array([1 / _MODEL_SPREAD**2, 1 / _LENGTH_SPREAD**2])
        for _ in range(_STEPS):
            step = self._newton()
            if step < 1e-9:
                break

    def _sum(self, values_N: Array) -> Array:
        return np.bincount(self.prompt_N, values_N, self.prompts).astype(np.float64)

    def _probability(self) -> Array:
        return _expit(self.theta + self.u_P[self.prompt_N] + self.phi * self.length_N)

    def _parts(self) -> tuple[Array, Array, Array, Array, Array]:
        """Per prompt: slope in (theta, phi), slope in u, and second derivatives (2x2, 2, 1) with their signs turned."""
        p_N = self._probability()
        off_N, bend_N = self.weight_N * (self.preferred_N - p_N), self.weight_N * p_N * (1 - p_N)
        slope_P2 = np.stack([self._sum(off_N), self._sum(off_N * self.length_N)], axis=1)
        across_P2 = np.stack([self._sum(bend_N), self._sum(bend_N * self.length_N)], axis=1)
        bend_P22 = np.empty((self.prompts, 2, 2))
        bend_P22[:, 0, 0], bend_P22[:, 0, 1] = across_P2[:, 0], across_P2[:, 1]
        bend_P22[:, 1, 0], bend_P22[:, 1, 1] = across_P2[:, 1], self._sum(bend_N * self.length_N**2)
        prior = 1 / _PROMPT_SPREAD**2
        return slope_P2, slope_P2[:, 0] - prior * self.u_P, bend_P22, across_P2, across_P2[:, 0] + prior

    def _newton(self) -> float:
        """One step on everything at once; the prompts' terms are eliminated first. Returns its size."""
        slope_P2, slope_u_P, bend_P22, across_P2, bend_u_P = self._parts()
        slope_2 = (slope_P2 - across_P2 * (slope_u_P / bend_u_P)[:, None]).sum(0)
        slope_2 -= self._prior * np.array([self.theta, self.phi])
        step_2 = np.linalg.solve(self._profiled(bend_P22, across_P2, bend_u_P).sum(0) + np.diag(self._prior), slope_2)
        step_P = (slope_u_P - across_P2 @ step_2) / bend_u_P
        largest = max(float(np.abs(step_2).max()), float(np.abs(step_P).max()))
        scale = (
            min(1.0, 5.0 / largest) if largest > 0 else 1.0
        )  # a long first step would overshoot where sigmoid is flat
        self.theta += scale * float(step_2[0])
        self.phi += scale * float(step_2[1])
        self.u_P += scale * step_P
        return largest

    @staticmethod
    def _profiled(bend_P22: Array, across_P2: Array, bend_u_P: Array) -> Array:
        return bend_P22 - across_P2[:, :, None] * across_P2[:, None, :] / bend_u_P[:, None, None]

    def rates(self) -> tuple[Array, Array]:
        """(P,) win rate at equal length for each prompt, and (P, 2) how it moves with theta and phi."""
        _, _, _, across_P2, bend_u_P = self._parts()
        rate_P = _expit(self.theta + self.u_P)
        with_u_P2 = np.array([1.0, 0.0]) - across_P2 / bend_u_P[:, None]  # u_x follows theta and phi
        return rate_P, (rate_P * (1 - rate_P))[:, None] * with_u_P2

    def resampled_shifts(self, weights_RP: Array) -> Array:
        """(R, 2) how far theta and phi move when prompts are weighted anew, by one Newton step."""
        slope_P2, _, bend_P22, across_P2, bend_u_P = self._parts()  # the slope in u is 0 at the fit
        slope_R2 = weights_RP @ slope_P2 - self._prior * np.array([self.theta, self.phi])
        bend_P4 = self._profiled(bend_P22, across_P2, bend_u_P).reshape(self.prompts, 4)
        bend_R22 = (weights_RP @ bend_P4).reshape(-1, 2, 2) + np.diag(self._prior)
        return np.linalg.solve(bend_R22, slope_R2[..., None])[..., 0]


def _expit(x: Array) -> Array:
    from scipy.special import expit  # half a second, which a plan need not spend

    return np.asarray(expit(x), dtype=np.float64)
