"""What else than the answers moves a label: position, length, time at work; and how fast people work.

Effects are log odds from logistic regressions: 0.7 doubles the odds. A weak normal prior keeps those of people finite
who always say the same; intervals (95 %) hold whatever else labels of one item have in common (sandwich, by item).

Letters: N labels or comparisons, X columns of a regression, L labellers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.special import expit, ndtri

from goodheart.errors import DataError
from goodheart.feedback.intervals import Z
from goodheart.feedback.votes import TIE, Array, Codes, Comparisons, Flags

SESSION_GAP = 1800.0  # seconds without a label that end a session
_PRIOR = 2.5  # standard deviation of effects, in log odds: nine of ten are weaker than 60 to 1
_NEWTON = 50  # steps at most; a handful is usual
_LEAST = 20  # labels that an effect of one person is worth telling from


@dataclass(frozen=True, slots=True)
class Effect:
    """Log odds per unit of a column."""

    value: float
    low: float
    high: float
    labels: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def preference_effects(
    comparisons: Comparisons, *, length_N: Array | None = None, hours_N: Array | None = None
) -> dict[str, Effect]:
    """What makes people choose the answer shown first, beyond what the others think of the two answers.

    comparisons: first = shown first; ties are left out.
    length_N: log2 of the first answer's length over the second's.
    hours_N: since the labeller's session began (`hours_at_work`).

    Returns:
        position (log odds of the first where nothing else speaks for it), length (per doubling), others (per unit of
        the others' mean, from -1 to 1), and position_by_hour: how the first grows on them.

    Raises:
        DataError: a column that is not one finite number per comparison.
    """
    kept_N = comparisons.outcome_N != TIE
    columns = _columns(comparisons, length_N, hours_N)
    return _effects(comparisons, columns, kept_N) if kept_N.any() else {}


def _columns(comparisons: Comparisons, length_N: Array | None, hours_N: Array | None) -> dict[str, Array]:
    count = len(comparisons.item_N)
    columns = {"position": np.ones(count), "others": others_lean(comparisons)}
    for name, column_N in (("length", length_N), ("position_by_hour", hours_N)):
        if column_N is not None:
            if len(column_N) != count or not np.isfinite(column_N).all():
                raise DataError(f"`{name}`: need one finite number for each of the {count} comparisons")
            columns[name] = column_N
    return columns


def _effects(comparisons: Comparisons, columns: dict[str, Array], kept_N: Flags) -> dict[str, Effect]:
    columns_NX = np.stack([column_N[kept_N] for column_N in columns.values()], axis=1)
    found = regress(columns_NX, comparisons.outcome_N[kept_N], comparisons.item_N[kept_N])
    return dict(zip(columns, found, strict=True))


def trend(agrees_N: Array, time_N: Array, item_N: Codes) -> Effect | None:
    """How the odds of saying what the others say change per unit of time; None where nothing can be said.

    agrees_N: 1, 0 or NaN (`agreement.agrees_with_others`). time_N: hours at work for fatigue, or hundreds of labels
    given before for drift.
    """
    kept_N = ~np.isnan(agrees_N)
    if kept_N.sum() < 2 or np.ptp(time_N[kept_N]) == 0:
        return None
    columns_NX = np.stack([np.ones(kept_N.sum()), time_N[kept_N]], axis=1)
    return regress(columns_NX, agrees_N[kept_N], item_N[kept_N])[1]


def by_labeller(
    comparisons: Comparisons, *, length_N: Array | None = None, hours_N: Array | None = None, least: int = _LEAST
) -> dict[object, dict[str, Effect]]:
    """`preference_effects` of each person with at least `least` untied comparisons."""
    columns, found = _columns(comparisons, length_N, hours_N), {}
    for k, name in enumerate(comparisons.labellers):
        mine_N = (comparisons.labeller_N == k) & (comparisons.outcome_N != TIE)
        if mine_N.sum() >= least:
            found[name] = _effects(comparisons, columns, mine_N)
    return found


def others_lean(comparisons: Comparisons) -> Array:
    """(N,) what the others say of the two answers: 1 all for the first, -1 all for the second, 0 nobody or split."""
    _, pair_N = comparisons.pairs()
    turned_N = np.where(comparisons.first_N > comparisons.second_N, -1, 1)
    sign_N = (2 * comparisons.outcome_N - 1) * turned_N
    sums_P, counts_P = np.bincount(pair_N, sign_N), np.bincount(pair_N)
    return np.asarray((sums_P[pair_N] - sign_N) / np.maximum(counts_P[pair_N] - 1, 1) * turned_N)


def hours_at_work(seconds_N: Array, labeller_N: Codes, gap: float = SESSION_GAP) -> Array:
    """(N,) hours since each label's session began.

    seconds_N: when each label was given, from any zero. gap: seconds without a label that end a session.
    """
    order_N = np.lexsort([seconds_N, labeller_N])
    new_N = np.ones(len(order_N), dtype=bool)
    new_N[1:] = (np.diff(labeller_N[order_N]) != 0) | (np.diff(seconds_N[order_N]) > gap)
    began_N = seconds_N[order_N][np.maximum.accumulate(np.where(new_N, np.arange(len(order_N)), 0))]
    hours_N = np.empty(len(order_N))
    hours_N[order_N] = (seconds_N[order_N] - began_N) / 3600
    return hours_N


def pace(seconds_N: Array, characters_N: Array) -> Array:
    """(N,) log of the time taken over the time that such lengths usually take; NaN where no time is known.

    What is usual is the median among the labels of about the same length (twentieths of all).
    """
    known = np.flatnonzero((seconds_N > 0) & np.isfinite(seconds_N))
    found_N = np.full(len(seconds_N), np.nan)
    if not len(known):
        return found_N
    order = known[np.argsort(characters_N[known], kind="stable")]
    ends = np.linspace(0, len(order), min(20, max(len(order) // 50, 1)) + 1).astype(int)
    for start, end in pairwise(ends):
        log_seconds = np.log(seconds_N[order[start:end]])
        found_N[order[start:end]] = log_seconds - np.median(log_seconds)
    return found_N


def too_fast(pace_N: Array, deviations: float = 3.0) -> Flags:
    """(N,) whether a judgement took so little time that nobody reads so fast; unknown times are not.

    pace_N: from `pace`. deviations: below the middle of those who read. Middle and spread are told from the slower
    quarter (the 75th and 95th percentile), where nobody is who did not look; with 3, one careful judgement in 700 is
    taken for careless.
    """
    known = pace_N[~np.isnan(pace_N)]
    if not len(known):
        return np.zeros(len(pace_N), dtype=bool)
    slow, slowest = np.quantile(known, [0.75, 0.95])
    spread = (slowest - slow) / (ndtri(0.95) - ndtri(0.75))
    middle = slow - ndtri(0.75) * spread
    return np.asarray(np.nan_to_num(pace_N, nan=middle) < middle - deviations * spread)


def regress(columns_NX: Array, outcome_N: Array, cluster_N: Codes) -> list[Effect]:
    """Logistic regression: log odds of outcome 1, per unit of each column, with intervals that hold within clusters.

    Newton's method on the penalised likelihood; covariance H^-1 (sum over clusters of g g^T) H^-1, and never less than
    H^-1, which is what independent labels would have. Source: Liang and Zeger, Biometrika 73 (1986).
    """
    X = columns_NX.shape[1]
    penalty_X = np.full(X, 1 / _PRIOR**2)
    beta_X = np.zeros(X)
    for _ in range(_NEWTON):
        p_N = expit(columns_NX @ beta_X)
        slope_X = columns_NX.T @ (outcome_N - p_N) - penalty_X * beta_X
        curve_XX = (columns_NX * (p_N * (1 - p_N))[:, None]).T @ columns_NX + np.diag(penalty_X)
        step_X = np.linalg.solve(curve_XX, slope_X)
        beta_X = beta_X + step_X * min(1.0, 2.0 / max(float(np.abs(step_X).max()), 1e-300))
        if np.abs(step_X).max() < 1e-9:
            break
    inverse_XX = np.linalg.inv(curve_XX)
    score_NX = columns_NX * (outcome_N - p_N)[:, None]
    _, place_N = np.unique(cluster_N, return_inverse=True)
    together = sparse.csr_array((np.ones(len(place_N)), (place_N, np.arange(len(place_N)))))
    score_GX = together @ score_NX
    variance_X = np.maximum(np.diag(inverse_XX @ (score_GX.T @ score_GX) @ inverse_XX), np.diag(inverse_XX))
    half_X = Z * np.sqrt(variance_X)
    return [Effect(float(b), float(b - h), float(b + h), len(outcome_N)) for b, h in zip(beta_X, half_X, strict=True)]
