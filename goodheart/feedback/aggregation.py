"""From several people's labels to one: by majority, or minding who can be trusted.

    majority(votes)                                   shares of the values
    dawid_skene(votes)                                each labeller has a table of mistakes
    majority_of_pairs(comparisons), dawid_skene_of_pairs(comparisons)

Labels of careless people look like others; who they are shows only in how they disagree. Dawid and Skene's model finds
a table of mistakes per labeller. `goodheart.feedback.noisy_pairs` finds a score per answer besides.

Letters: N labels, I items, L labellers, V values, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from goodheart.feedback.intervals import wilson
from goodheart.feedback.votes import TIE, Array, Codes, Comparisons, Names, Votes

_PASSES = 200  # of expectation and maximisation, at most
_SETTLED = 1e-6  # largest change of a probability that ends them
_TINY = 1e-12  # keeps logarithms finite


@dataclass(frozen=True, eq=False)
class Reliability:
    """How far each labeller can be trusted, with a 95 % interval; what it is a share of says the method."""

    labellers: Names
    value_L: Array
    low_L: Array
    high_L: Array
    labels_L: Codes  # that it rests on


@dataclass(frozen=True, eq=False)
class Consensus:
    """What each item most likely is."""

    probability_IV: Array
    reliability: Reliability  # share of right labels, over the items that somebody else labelled too
    confusion_LVV: Array  # how often this labeller says w (last) where v is true


@dataclass(frozen=True, eq=False)
class PairLabels:
    """One label per pair of answers: `better_P` is the soft label, P(first better) + P(tie) / 2."""

    keys_P: Codes  # (P, 3): item, first, second; numbers of the comparisons' `items` and `names`
    better_P: Array
    tie_P: Array
    weight_P: Array  # trust, mean 1: how many labels stand behind it, each counted by its labeller's reliability


def majority(votes: Votes) -> Array:
    """(I, V) share of each value among an item's labels; NaN where it has none."""
    counts_IV = votes.counts()
    with np.errstate(invalid="ignore"):
        return counts_IV / counts_IV.sum(1, keepdims=True)


def dawid_skene(votes: Votes, *, strength: float = 4.0) -> Consensus:
    """True values and tables of mistakes that make the labels most likely, found in turns.

    strength: labels that the table of mistakes of all labellers together counts for in that of each, so that who gave
        few labels is taken to be like the others.

    Source: Dawid and Skene, Applied Statistics 28 (1979), by expectation and maximisation from the majority on; the
    shared table is a Dirichlet prior as in Paun et al., TACL 6 (2018), section 3.3, with its mean estimated.
    """
    V, L = len(votes.values), len(votes.labellers)
    probability_IV = np.nan_to_num(majority(votes), nan=1 / V)
    for _ in range(_PASSES):
        share_V = probability_IV[np.unique(votes.item_N)].mean(0) + _TINY
        confusion_LVV = _confusion(votes, probability_IV, strength)
        likely_NV = np.log(confusion_LVV[votes.labeller_N, :, votes.value_N])
        before = probability_IV
        probability_IV = softmax(np.log(share_V) + _sum_by(votes.item_N, likely_NV, len(votes.items)), axis=1)
        if np.abs(probability_IV - before).max() < _SETTLED:
            break
    right_N = probability_IV[votes.item_N, votes.value_N]
    alone_I = np.bincount(votes.item_N, minlength=len(votes.items)) < 2
    judged_N = ~alone_I[votes.item_N]
    labels_L = np.bincount(votes.labeller_N[judged_N], minlength=L)
    right_L = np.bincount(votes.labeller_N[judged_N], right_N[judged_N], minlength=L)
    low_L, high_L = wilson(right_L / votes.sides, labels_L / votes.sides)
    with np.errstate(invalid="ignore"):
        reliability = Reliability(votes.labellers, right_L / labels_L, low_L, high_L, labels_L // votes.sides)
    return Consensus(probability_IV, reliability, confusion_LVV)


def _confusion(votes: Votes, probability_IV: Array, strength: float) -> Array:
    """(L, V, V) expected counts of saying w where v is true, with the shared table, as shares of each row."""
    V, L = len(votes.values), len(votes.labellers)
    cell_N = votes.labeller_N * V + votes.value_N
    counts_LVV = np.stack(
        [np.bincount(cell_N, probability_IV[votes.item_N, v], minlength=L * V).reshape(L, V) for v in range(V)],
        axis=1,
    )
    shared_VV = counts_LVV.sum(0) + _TINY
    shared_VV /= shared_VV.sum(1, keepdims=True)
    counts_LVV = counts_LVV + strength * shared_VV + _TINY
    return np.asarray(counts_LVV / counts_LVV.sum(2, keepdims=True))


def majority_of_pairs(comparisons: Comparisons) -> PairLabels:
    """Share of the labels for the first answer, ties counting half; everybody is trusted alike."""
    keys_P, pair_N = comparisons.pairs()
    sign_N = _turned(comparisons)
    labels_P = np.bincount(pair_N, minlength=len(keys_P))
    better_P = np.bincount(pair_N, sign_N) / labels_P
    tie_P = np.bincount(pair_N, sign_N == TIE) / labels_P
    return PairLabels(keys_P, better_P, tie_P, labels_P / labels_P.mean())


def dawid_skene_of_pairs(comparisons: Comparisons, *, strength: float = 4.0) -> tuple[PairLabels, Consensus]:
    """Dawid and Skene's model of pairs, with the three values first, tie, second; sides mean nothing.

    Raises:
        DataError: two judgements of one person on one pair.
    """
    votes = comparisons.votes()
    found = dawid_skene(votes, strength=strength)
    keys_P, pair_N = comparisons.pairs()
    P = len(keys_P)
    trust_P = np.bincount(pair_N, np.nan_to_num(found.reliability.value_L, nan=0.5)[comparisons.labeller_N])
    probability_PV = found.probability_IV[:P]
    better_P = probability_PV[:, 2] + probability_PV[:, 1] / 2
    pairs = PairLabels(keys_P, better_P, probability_PV[:, 1], trust_P / trust_P.mean())
    return pairs, Consensus(probability_PV, found.reliability, found.confusion_LVV)


def _turned(comparisons: Comparisons) -> Array:
    """(N,) outcome from the side of the answer with the lower number, which `pairs()` lists first."""
    turned_N = comparisons.first_N > comparisons.second_N
    return np.where(turned_N, 1 - comparisons.outcome_N, comparisons.outcome_N)


def _sum_by(group_N: Codes, values_NV: Array, groups: int) -> Array:
    return np.stack([np.bincount(group_N, column, groups) for column in values_NV.T], axis=1)
