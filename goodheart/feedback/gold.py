"""Items whose right answer is known: is an answer right, and when does somebody stop labelling for want of care?

An answer's score is the mean over the pairs of answers: 1 for the gold's order, 1/2 where one of the two sees a tie and
the other does not, 0 for the opposite. It is right above 3/4: for two answers exactly the gold's order; for three, one
tie too many is forgiven, a swap is not.

A member is paused when the upper bound of the one-sided 95 % interval (Wilson) of their accuracy on the newest
`gold_window` gold answers lies below `gold_pause_below`, from five answers on. A threshold without an interval would
pause careful people for bad luck: docs/store.md shows how often each rule pauses whom.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

from goodheart.feedback.intervals import wilson

RIGHT_ABOVE = 0.75
LEAST_SEEN = 5  # gold answers before anybody is paused


def order_score(gold_K: Sequence[int], ranks_K: Sequence[int]) -> float:
    """How far ranks follow the gold ranks, 0 to 1. K: answers; 0 is the best rank, equal numbers tie."""
    scores = []
    for i, j in itertools.combinations(range(len(gold_K)), 2):
        apart = abs(_sign(gold_K[i] - gold_K[j]) - _sign(ranks_K[i] - ranks_K[j]))
        scores.append(1 - apart / 2)
    return sum(scores) / len(scores)


def is_right(gold_K: Sequence[int], ranks_K: Sequence[int]) -> bool:
    """Whether an answer to a gold item counts as right."""
    return order_score(gold_K, ranks_K) > RIGHT_ABOVE


@lru_cache(maxsize=10_000)
def upper(right: int, seen: int) -> float:
    """Upper bound of the one-sided 95 % interval of a share: the upper end of the two-sided 90 % one."""
    return float(wilson(right, seen, 0.90)[1])


def must_pause(right: int, seen: int, below: float) -> bool:
    """Whether so many right answers of so many are too few to go on."""
    return seen >= LEAST_SEEN and upper(right, seen) < below


def agreement(ranks_LK: Sequence[Sequence[int]]) -> float:
    """Share of labellers who see the most common order of a pair of answers, averaged over the pairs.

    Two labellers of three who agree on two answers: 2/3. L: labellers.
    """
    shares = []
    for i, j in itertools.combinations(range(len(ranks_LK[0])), 2):
        signs = [_sign(ranks[i] - ranks[j]) for ranks in ranks_LK]
        shares.append(max(map(signs.count, (-1, 0, 1))) / len(signs))
    return sum(shares) / len(shares)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
