"""How far people agree: alpha, kappas and raw agreement, each with an interval over items and its level by chance.

Intervals are percentiles over items drawn with replacement (1,000 times, fixed seed), because items are what a campaign
draws at random; pairs of one ranking are drawn together. Where no two people ever disagree, resampling would claim
certainty: the lower end then leaves room for as many items judged by chance as might not have been met yet. Two peers
do something else: evalica's `alpha_bootstrap` draws pairs of labels as if they were independent, and scikit-learn's
`cohen_kappa_score` has no interval and takes one table at a time (both are oracles of the tests).

Letters: N labels, I items, G groups of items, L labellers, V values, C pairs of different values, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from goodheart.errors import DataError
from goodheart.feedback.intervals import RESAMPLES, Measure, bounded, ratio, resampled
from goodheart.feedback.votes import Array, Codes, Flags, Names, Votes

Distance = Literal["nominal", "ordinal", "interval", "absolute"]

_DENSE = 256  # columns up to which a full matrix is faster than a sparse one
_NOTHING = Measure(None, None, None, None, 0, 0)


@dataclass(frozen=True, slots=True)
class Report:
    """One set of labels by every measure."""

    raw: Measure
    with_others: Measure
    alpha: Measure
    fleiss: Measure


def report(votes: Votes, distance: Distance = "nominal", *, resamples: int = RESAMPLES, seed: int = 0) -> Report:
    """Raw agreement, agreement with the majority of the others, Krippendorff's alpha and Fleiss' kappa."""
    return Report(
        raw_agreement(votes, resamples=resamples, seed=seed),
        agreement_with_others(votes, resamples=resamples, seed=seed),
        alpha(votes, distance, resamples=resamples, seed=seed),
        fleiss_kappa(votes, resamples=resamples, seed=seed),
    )


def by_slice(
    votes: Votes,
    slice_I: Sequence[Any],
    measure: Callable[[Votes], Measure | Report],
) -> dict[Any, Measure | Report]:
    """A measure for each slice of the items (topic, language, ...); items whose slice is None are left out."""
    names = [name for name in dict.fromkeys(slice_I) if name is not None]
    found = {}
    for name in names:
        inside_I = np.array([each == name for each in slice_I])
        found[name] = measure(votes.where(inside_I[votes.item_N]))
    return found


def raw_agreement(votes: Votes, *, resamples: int = RESAMPLES, seed: int = 0) -> Measure:
    """How often two people who judged the same item say the same; each group of items weighs one.

    Its chance level is that of two people who answer as often with each value as all do: the sum of squared shares.
    """
    counts_IV, labels_I = _several(votes)
    agreeing_I = (counts_IV * (counts_IV - 1)).sum(1)
    pairs_G, agreeing_G = (np.bincount(votes.group_I, weights) for weights in (labels_I * (labels_I - 1), agreeing_I))
    values_G = agreeing_G[pairs_G > 0] / pairs_G[pairs_G > 0]
    return _mean(values_G, _chance(counts_IV), labels_I, votes.sides, resamples, seed)


def agreement_with_others(votes: Votes, *, resamples: int = RESAMPLES, seed: int = 0) -> Measure:
    """How often a person says what most of the others say; each group of items weighs one. See `agrees_with_others`."""
    agrees_N = agrees_with_others(votes)
    known_N = ~np.isnan(agrees_N)
    if not known_N.any():
        return _NOTHING
    group_N = votes.group_I[votes.item_N[known_N]]
    labels_G, agreeing_G = (np.bincount(group_N, w, len(votes.items)) for w in (None, agrees_N[known_N]))
    shares_V = np.bincount(votes.value_N[known_N], minlength=len(votes.values)) / known_N.sum()
    others_V = np.bincount(_others(votes)[known_N], minlength=len(votes.values)) / known_N.sum()
    labels_I = np.bincount(votes.item_N[known_N], minlength=len(votes.items))
    values_G = agreeing_G[labels_G > 0] / labels_G[labels_G > 0]
    return _mean(values_G, float(shares_V @ others_V), labels_I, votes.sides, resamples, seed)


def agrees_with_others(votes: Votes) -> Array:
    """(N,) 1 where a label is what most of the item's other labels are, 0 where not; NaN where those are split."""
    most_N = _others(votes)
    return np.where(most_N < 0, np.nan, (most_N == votes.value_N).astype(np.float64))


def _others(votes: Votes) -> Codes:
    """(N,) the value that most of the other people gave the item; -1 where there is no single one."""
    others_NV = votes.counts()[votes.item_N]
    others_NV[np.arange(len(others_NV)), votes.value_N] -= 1
    most_N = others_NV.argmax(1)
    single_N = (others_NV == others_NV.max(1, keepdims=True)).sum(1) == 1
    return np.where(single_N, most_N, -1)


def fleiss_kappa(votes: Votes, *, resamples: int = RESAMPLES, seed: int = 0) -> Measure:
    """(agreement - agreement by chance) / (1 - agreement by chance), chance from all people's shares of each value.

    Items may have different numbers of labels; those with one say nothing. Source: Fleiss, Psychological Bulletin 76
    (1971), with the mean over items as there.
    """
    counts_IV, labels_I = _several(votes)
    pairs_I = labels_I * (labels_I - 1)
    agreeing_I = np.divide((counts_IV * (counts_IV - 1)).sum(1), pairs_I, out=np.zeros(len(pairs_I)), where=pairs_I > 0)
    columns_IC = np.column_stack([agreeing_I, pairs_I > 0, counts_IV])

    def statistic(sums_RC: Array) -> Array:
        shares_RV = sums_RC[:, 2:] / sums_RC[:, 2:].sum(1, keepdims=True)
        return _beyond_chance(sums_RC[:, 0] / sums_RC[:, 1], (shares_RV**2).sum(1))

    return _measure(_by_group(sparse.csr_array(columns_IC), votes), statistic, labels_I, votes.sides, resamples, seed)


def alpha(votes: Votes, distance: Distance = "nominal", *, resamples: int = RESAMPLES, seed: int = 0) -> Measure:
    """Krippendorff's alpha: 1 - observed / expected disagreement; 1 is perfect, 0 is chance. Labels may be missing.

    distance: between two values. nominal: different or not. ordinal: squared, in ranks (Krippendorff's). interval:
        squared difference of numbers. absolute: difference of numbers. For rankings take `Comparisons.votes()` with
        `absolute`: a pair of answers that one person puts the other way round counts 2, one that only one of them ties
        counts 1, which summed over pairs is the distance of Kemeny and Snell (1962).

    Raises:
        DataError: values are not numbers where the distance needs them.

    Source: Krippendorff, Content Analysis (2018), chapter 12.
    """
    V = len(votes.values)
    labels_I = np.bincount(votes.item_N, minlength=len(votes.items))
    kept = votes.where(labels_I[votes.item_N] > 1)
    if not len(kept.item_N):
        return _NOTHING
    cell_X, count_X = np.unique(kept.item_N * V + kept.value_N, return_counts=True)
    item_X, value_X = np.divmod(cell_X, V)
    a_Y, b_Y = _pairs_within(item_X)
    weight_Y = 2 * count_X[a_Y] * count_X[b_Y] / (labels_I[item_X[a_Y]] - 1)
    pairs_C, column_Y = np.unique(value_X[a_Y] * V + value_X[b_Y], return_inverse=True)
    C = len(pairs_C)
    rows = votes.group_I[np.concatenate([item_X[a_Y], item_X])]
    columns = np.concatenate([column_Y, C + value_X])
    sums_GC = sparse.coo_array(
        (np.concatenate([weight_Y, count_X]), (rows, columns)), shape=(int(votes.group_I.max()) + 1, C + V)
    )
    embed = _embedding(distance, votes.values)
    low_C, high_C = np.divmod(pairs_C, V)

    def statistic(sums_RC: Array) -> Array:
        counts_RV = sums_RC[:, C:]
        place_RVM = embed(counts_RV)
        apart_RC = ((place_RVM[:, low_C] - place_RVM[:, high_C]) ** 2).sum(2)
        n_R = counts_RV.sum(1)
        first_RM = np.einsum("rv,rvm->rm", counts_RV, np.broadcast_to(place_RVM, (len(n_R), *place_RVM.shape[1:])))
        second_R = (counts_RV * (place_RVM**2).sum(2)).sum(1)
        expected_R = 2 * (n_R * second_R - (first_RM**2).sum(1)) / (n_R - 1)
        observed_R = (sums_RC[:, :C] * apart_RC).sum(1)
        return ratio(expected_R - observed_R, expected_R)

    return _measure(_nonempty(sums_GC.tocsr()), statistic, labels_I, votes.sides, resamples, seed)


def _embedding(distance: Distance, values: Names) -> Callable[[Array], Array]:
    """Counts (R, V) -> places (R or 1, V, M) of the values; the squared distance of two places is the distance."""
    if distance == "ordinal":
        return lambda counts_RV: (np.cumsum(counts_RV, axis=1) - counts_RV / 2)[:, :, None]
    if distance == "nominal":
        place_VM = np.eye(len(values)) / np.sqrt(2)
    else:
        try:
            number_V = np.array([float(value) for value in values])
        except (TypeError, ValueError):
            raise DataError(f"distance `{distance}` needs numbers, not {list(values)[:5]}") from None
        steps = np.sqrt(np.diff(number_V))  # climbed one by one, so that squares add up to the absolute difference
        place_VM = number_V[:, None] if distance == "interval" else np.tri(len(values), k=-1)[:, :-1] * steps
    return lambda counts_RV: place_VM[None]


def _pairs_within(item_X: Codes) -> tuple[Codes, Codes]:
    """All pairs a < b of places with the same item; `item_X` is sorted."""
    _, start_X, size_X = np.unique(item_X, return_index=True, return_counts=True)
    place_X = np.arange(len(item_X))
    after_X = np.repeat(start_X + size_X, size_X) - place_X - 1
    a_Y = np.repeat(place_X, after_X)
    b_Y = a_Y + 1 + np.arange(len(a_Y)) - np.repeat(np.cumsum(after_X) - after_X, after_X)
    return a_Y, b_Y


def _several(votes: Votes) -> tuple[Array, Codes]:
    """(I, V) counts and (I,) numbers of labels; 0 for items that fewer than two people labelled."""
    counts_IV = votes.counts()
    counts_IV[counts_IV.sum(1) < 2] = 0
    return counts_IV, counts_IV.sum(1).astype(np.int64)


def _chance(counts_IV: Array) -> float:
    total = counts_IV.sum()
    return float(((counts_IV.sum(0) / total) ** 2).sum()) if total else 0.0


def _by_group(columns_IC: sparse.csr_array, votes: Votes) -> Array | sparse.csr_array:
    items = len(votes.items)
    membership_GI = sparse.csr_array((np.ones(items), (votes.group_I, np.arange(items))))
    return _nonempty(membership_GI @ columns_IC)


def _nonempty(sums_GC: sparse.csr_array) -> Array | sparse.csr_array:
    """Without groups that add nothing: they are not part of what is drawn."""
    kept: Flags = np.asarray(abs(sums_GC).sum(1)).reshape(-1) > 0
    sums_GC = sums_GC[kept]
    return sums_GC.toarray() if sums_GC.shape[1] <= _DENSE else sums_GC


def _measure(
    sums_GC: Array | sparse.csr_array,
    statistic: Callable[[Array], Array],
    labels_I: Codes,
    sides: int,
    resamples: int,
    seed: int,
) -> Measure:
    if not sums_GC.shape[0]:
        return _NOTHING
    value = float(statistic(np.asarray(sums_GC.sum(0)).reshape(1, -1))[0])
    items, labels = int((labels_I > 1).sum()) // sides, int(labels_I[labels_I > 1].sum()) // sides
    if np.isnan(value):
        return Measure(None, None, None, 0.0, items, labels)
    return bounded(value, resampled(sums_GC, statistic, resamples, seed), 0.0, items, labels, sums_GC.shape[0])


def _mean(values_G: Array, chance: float, labels_I: Codes, sides: int, resamples: int, seed: int) -> Measure:
    if not len(values_G):
        return _NOTHING
    drawn_R = resampled(values_G[:, None], lambda sums_RC: sums_RC[:, 0] / len(values_G), resamples, seed)
    items, labels = int((labels_I > 0).sum()) // sides, int(labels_I.sum()) // sides
    return bounded(float(values_G.mean()), drawn_R, chance, items, labels, len(values_G))


def _beyond_chance(agreement_R: Array, chance_R: Array) -> Array:
    return ratio(agreement_R - chance_R, 1 - chance_R)


__all__ = [
    "Report",
    "agreement_with_others",
    "agrees_with_others",
    "alpha",
    "by_slice",
    "fleiss_kappa",
    "raw_agreement",
    "report",
]
