"""The law of overoptimisation fitted to audit scores, and a guard that says when they have turned down.

A policy is pushed towards a proxy (the reward model); an audit judge that it never trains on tells what it is worth.
With d = sqrt(KL from the start), the audit's gain over the start follows

    R(d) = d (alpha - beta ln d)    policies trained with RL      peak at d* = exp(alpha / beta - 1), R* = beta d*
    R(d) = d (alpha - beta d)       best of n samples             peak at d* = alpha / (2 beta),      R* = beta d*^2

Source: Gao, Schulman, Hilton arXiv:2210.10760, section 3. Both are linear in alpha and beta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from goodheart.errors import DataError

Array = NDArray[np.float64]

_FARTHEST = 1e6  # a peak at a larger sqrt(nats) is no peak
_MIN_POINTS = 3  # two make any curve fit, so that nothing is known of its error


@dataclass(frozen=True, slots=True)
class Law:
    """A curve alpha d - beta bend(d)."""

    name: str
    bend: Callable[[Array], Array]
    peak: Callable[[float], float]  # distance of the peak from alpha / beta; grows with it


def _d_ln_d(d: Array) -> Array:
    return d * np.log(np.where(d > 0, d, 1.0))  # its limit at 0 is 0


RL = Law("d (alpha - beta ln d)", _d_ln_d, lambda ratio: math.exp(min(ratio - 1, 700.0)))
BEST_OF_N = Law("d (alpha - beta d)", np.square, lambda ratio: ratio / 2)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted law. Without a bend downwards (beta <= 0) there is no peak: `peak` and `best` are None."""

    law: Law
    alpha: float
    beta: float
    covariance: Array  # of (alpha, beta)
    points: int
    r2: float  # on the fitted points
    peak: float | None  # d*, sqrt(nats)
    peak_low: float  # 95 % interval of d*; infinite above where a bend downwards is not shown
    peak_high: float
    best: float | None  # R*, gain at the peak
    best_low: float | None
    best_high: float | None

    def predict(self, d: ArrayLike) -> Array:
        """The gain at distances d = sqrt(KL)."""
        return _columns(self.law, np.atleast_1d(np.asarray(d, dtype=float))) @ np.array([self.alpha, self.beta])

    def score(self, d: ArrayLike, gains: ArrayLike) -> float:
        """R2 of the prediction on points, which may be others than the fitted ones (then it can be below 0)."""
        return _r2(np.asarray(gains, dtype=float), self.predict(d))

    def as_dict(self) -> dict[str, Any]:
        """For results.json: an infinite bound is None."""
        row = {f: getattr(self, f) for f in ("alpha", "beta", "points", "r2", "peak", "peak_low", "peak_high")}
        row |= {"best": self.best, "best_low": self.best_low, "best_high": self.best_high, "law": self.law.name}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def fit_law(law: Law, d: ArrayLike, gains: ArrayLike, errors: ArrayLike | None = None, *, level: float = 0.95) -> Fit:
    """Fits a law by least squares.

    Args:
        law: `RL` or `BEST_OF_N`.
        d: sqrt(KL) of each point, in sqrt(nats).
        gains: audit score minus that of the start.
        errors: standard error of each gain; None = equal and unknown, taken from the scatter around the curve.
        level: of the intervals.

    Returns:
        The fit. The interval of the peak is Fieller's for the ratio alpha / beta, exact for normal errors and open
        above where beta does not differ from 0; that of R* is by the delta method. Given errors that are smaller than
        the scatter shows are scaled up to it.

    Raises:
        DataError: fewer than three different distances over 0, or a value that is not finite.
    """
    x, y = np.asarray(d, dtype=float), np.asarray(gains, dtype=float)
    s = np.ones_like(y) if errors is None else np.asarray(errors, dtype=float)
    if not (x.shape == y.shape == s.shape) or not np.isfinite([x, y, s]).all() or (x < 0).any() or (s <= 0).any():
        raise DataError("a law needs equally many finite distances (0 or more), gains, and errors (over 0)")
    if len(np.unique(x[x > 0])) < _MIN_POINTS:
        raise DataError(f"a law needs {_MIN_POINTS} different distances over 0, got {len(np.unique(x[x > 0]))}")
    used = x > 0  # at 0 the curve is 0 whatever alpha and beta are
    x, y, s = x[used], y[used], s[used]
    weighted = _columns(law, x) / s[:, None]
    coefficients, *_ = np.linalg.lstsq(weighted, y / s, rcond=None)
    freedom = len(x) - 2
    scatter = float(((y / s - weighted @ coefficients) ** 2).sum()) / freedom
    covariance = np.linalg.inv(weighted.T @ weighted) * (scatter if errors is None else max(scatter, 1.0))
    alpha, beta = (float(c) for c in coefficients)
    from scipy import special  # half a second, which a run without an audit need not spend

    quantile = float(special.stdtrit(freedom, 0.5 + level / 2))
    low, high = fieller(alpha, beta, covariance, quantile)
    peak = law.peak(alpha / beta) if beta > 0 else None
    if peak is not None and peak > _FARTHEST:
        peak = None
    best = spread = None
    if peak is not None:
        # R* moves with alpha and beta as R at a fixed d* does: its slope in d is 0 there.
        at = _columns(law, np.array([peak]))[0]
        best, spread = float(at @ coefficients), quantile * math.sqrt(max(float(at @ covariance @ at), 0.0))
    return Fit(
        law,
        alpha,
        beta,
        covariance,
        len(x),
        _r2(y, _columns(law, x) @ coefficients),
        peak,
        _bound(law, low),
        _bound(law, high),
        best,
        None if best is None or spread is None else best - spread,
        None if best is None or spread is None else best + spread,
    )


def _bound(law: Law, ratio: float) -> float:
    if math.isinf(ratio):
        return math.inf if ratio > 0 else 0.0
    peak = max(law.peak(ratio), 0.0)
    return peak if peak <= _FARTHEST else math.inf


def fieller(a: float, b: float, covariance: Array, quantile: float) -> tuple[float, float]:
    """Confidence interval of a / b where b is taken to be over 0.

    The ratios r for which a - r b lies within `quantile` standard errors of 0: a quadratic in r. Open above
    where b does not differ from 0. Source: Fieller 1954, J. R. Stat. Soc. B 16.
    """
    vaa, vab, vbb = covariance[0, 0], covariance[0, 1], covariance[1, 1]
    q2 = quantile**2
    square, half, constant = b * b - q2 * vbb, a * b - q2 * vab, a * a - q2 * vaa
    inside = half * half - square * constant
    if square > 0 and b > 0:
        root = math.sqrt(max(inside, 0.0))
        return (half - root) / square, (half + root) / square
    if square > 0:
        return math.inf, math.inf
    if square == 0 or inside < 0:
        return -math.inf, math.inf
    roots = [(half + root) / square for root in (math.sqrt(inside), -math.sqrt(inside))]
    # Of the two rays, the one with b over 0: as b goes to 0, the side on which a lies given that b.
    return (max(roots), math.inf) if a * vbb > b * vab else (-math.inf, min(roots))


@dataclass(frozen=True, slots=True)
class Look:
    """What the audit found at one step."""

    step: int
    kl: float  # nats per answer from the start
    audit: float  # mean audit score
    error: float  # its standard error
    proxy: float  # mean score of the judge that is trained on
    # Mean audit score of each prompt, the same prompts in every look; None where the judge had no opinion.
    by_prompt: tuple[float | None, ...] | None = None


class Guard:
    """Remembers the audit's looks: which one was best, and whether the audit has turned down since.

    Rule: at look k (the start is look 1) the audit is compared with each of the k - 1 earlier looks, one-sided, each at
    level false_alarms / (k (k - 1)^2). It has turned down when one comparison shows a fall of more than `tolerance`
    times the gain of the best look over the first. As 1 / (k (k - 1)) sums to 1 over k = 2, 3, ..., a run whose audit
    never falls is stopped with a probability of at most `false_alarms`, however often it is looked at and although the
    best of several noisy looks is always too good. Looks with `by_prompt` are compared on the prompts that both have a
    score for (Student's t, but never surer than 2^-prompts, as a test by signs could be), which sees much smaller
    falls; the others by their standard errors (normal).
    """

    def __init__(self, *, false_alarms: float = 0.05, tolerance: float = 0.05) -> None:
        """false_alarms: probability, over the whole run. tolerance: share of the gain that may be lost."""
        if not 0 < false_alarms < 1 or not 0 <= tolerance < 1:
            raise ValueError("false_alarms must be in (0, 1) and tolerance in [0, 1)")
        self.false_alarms, self.tolerance = false_alarms, tolerance
        self.looks: list[Look] = []
        self.alarm: str | None = None  # in words, since when and how far the audit has fallen

    def add(
        self,
        step: int,
        kl: float,
        audit: float,
        error: float,
        proxy: float,
        by_prompt: Sequence[float | None] | None = None,
    ) -> bool:
        """Takes a look; returns whether the model of this step is the best so far (so that its weights are kept).

        Args:
            step: steps done; the first look is that of the start.
            kl: nats per answer from the start (an estimate below 0 counts as 0).
            audit: mean audit score; error: its standard error; proxy: mean score of the judge trained on.
            by_prompt: mean audit score of each prompt, in the same order in every look, None without an opinion; None
                for the whole = not known.

        Raises:
            ValueError: a number is not finite, or error is below 0.
        """
        if not all(map(math.isfinite, (kl, audit, error, proxy))) or error < 0:
            raise ValueError(f"a look of the guard must be finite, got kl {kl}, audit {audit} ± {error}, proxy {proxy}")
        before = self.best
        own = None if by_prompt is None else tuple(by_prompt)
        self.looks.append(Look(step, max(kl, 0.0), audit, error, proxy, own))
        self.alarm = self.alarm or self._fallen()
        return before is None or audit > before.audit

    @property
    def best(self) -> Look | None:
        """The look with the highest audit score, the earliest of equals; None before the first."""
        return max(self.looks, key=lambda look: look.audit, default=None)

    @property
    def turned_down(self) -> bool:
        """Whether the audit has fallen for sure below what it was."""
        return self.alarm is not None

    def law(self) -> Fit | None:
        """The RL law on the gains over the first look; None while there are too few looks."""
        if not self.looks:
            return None
        first, *rest = self.looks
        errors = [_difference(first, look)[1] for look in rest]
        weights = errors if errors and min(errors) > 0 else None
        try:
            return fit_law(RL, [math.sqrt(k.kl) for k in rest], [k.audit - first.audit for k in rest], weights)
        except DataError:
            return None

    def state_dict(self) -> dict[str, Any]:
        """Everything the guard knows, as JSON values."""
        return {"looks": [asdict(look) for look in self.looks], "alarm": self.alarm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self.looks = [
            Look(**{**row, "by_prompt": None if row["by_prompt"] is None else tuple(row["by_prompt"])})
            for row in state["looks"]
        ]
        self.alarm = state["alarm"]

    def _fallen(self) -> str | None:
        """In words, what the newest look shows; None where that is no sure fall."""
        *earlier, now = self.looks
        if not earlier:
            return None
        k, best = len(self.looks), self.best
        assert best is not None
        allowed = self.tolerance * max(best.audit - self.looks[0].audit, 0.0)
        level = self.false_alarms / (k * (k - 1) ** 2)
        chances = [(_chance(look, now, allowed), look) for look in earlier]
        chance, look = min(chances, key=lambda pair: pair[0])
        if chance > level:
            return None
        proxy = "rose" if now.proxy > look.proxy else "fell"
        return (
            f"the audit score fell from {look.audit:.3f} (step {look.step}) to {now.audit:.3f} (step {now.step}, "
            f"one-sided p = {chance:.1g}) while the score trained on {proxy} from {look.proxy:.3f} to {now.proxy:.3f}"
        )


def _chance(before: Look, now: Look, allowed: float) -> float:
    """One-sided p-value of "now is not more than `allowed` below before"."""
    fall, error, freedom = _difference(before, now)
    least = 0.0 if math.isinf(freedom) else 2.0 ** -(freedom + 1)  # few prompts that all fall alike prove little
    if error == 0:
        return least if fall > allowed else 1.0
    from scipy import special

    distance = (fall - allowed) / error
    chance = special.ndtr(-distance) if math.isinf(freedom) else special.stdtr(freedom, -distance)
    return max(float(chance), least)


def _difference(before: Look, now: Look) -> tuple[float, float, float]:
    """How far the audit fell between two looks, its standard error, and the degrees of freedom of that."""
    old, new = before.by_prompt, now.by_prompt
    if old is not None and new is not None and len(old) == len(new):
        falls = np.array([a - b for a, b in zip(old, new, strict=True) if a is not None and b is not None])
        if len(falls) > 1:
            return float(falls.mean()), float(falls.std(ddof=1) / math.sqrt(len(falls))), len(falls) - 1
        return 0.0, math.inf, math.inf  # nothing in common: nothing can be said
    return before.audit - now.audit, math.hypot(before.error, now.error), math.inf


def _columns(law: Law, d: Array) -> Array:
    return np.stack([d, -law.bend(d)], axis=-1)


def _r2(y: Array, predicted: Array) -> float:
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - predicted) ** 2).sum()) / total if total > 0 else math.nan
