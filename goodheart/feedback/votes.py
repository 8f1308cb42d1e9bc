"""Who said what of what, as plain arrays: what the statistics of labels take in.

    Votes.of([("item 1", "ann", "spam"), ("item 1", "bob", "ham"), ...])      one value per person and item
    Comparisons.of([("prompt", "ann", "answer a", "answer b", 1.0), ...])     one outcome per pair of answers
    comparisons(judgements)                                                   the pairs of whole rankings

Names may be any hashable; inside they are numbers, so that a million labels are a few arrays.

Letters: N labels, I items, L labellers, V values, E what is compared (answers or models).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodheart.data.records import Judgement
from goodheart.errors import DataError

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]
Names = tuple[Any, ...]

FIRST, TIE, SECOND = 1.0, 0.5, 0.0  # outcomes of a comparison: the share that the first of two takes
NOBODY = "unknown"  # stands for the labeller of labels that name none


@dataclass(frozen=True, eq=False)
class Votes:
    """N labels; a person labels an item at most once."""

    item_N: Codes
    labeller_N: Codes
    value_N: Codes  # place in `values`
    items: Names
    labellers: Names
    values: Names  # from low to high where they have an order
    group_I: Codes  # items of one group hang together (the pairs of one ranking): they are resampled together
    sides: int = 1  # how often each label is listed: 2 where a pair of answers is an item from either side

    @classmethod
    def of(cls, rows: Iterable[tuple[Hashable, Hashable, Any]], *, values: Sequence[Any] | None = None) -> Votes:
        """Labels from (item, labeller, value).

        values: the scale from low to high; None = the values that occur, sorted.

        Raises:
            DataError: no row, a value outside the scale, or two labels of one person for one item.
        """
        listed = list(rows)
        if not listed:
            raise DataError("no labels: nothing can be said about agreement")
        item_N, items = _coded([row[0] for row in listed])
        labeller_N, labellers = _coded([row[1] for row in listed])
        scale = tuple(sorted({row[2] for row in listed}) if values is None else values)
        place = {value: i for i, value in enumerate(scale)}
        for row in listed:
            if row[2] not in place:
                raise DataError(f"item {row[0]!r}: {row[1]!r} says {row[2]!r}, which is none of {list(scale)}")
        value_N = np.array([place[row[2]] for row in listed], dtype=np.int64)
        _once(item_N, labeller_N, items, labellers)
        return cls(item_N, labeller_N, value_N, items, labellers, scale, np.arange(len(items)))

    def where(self, kept_N: Flags) -> Votes:
        """The labels for which it is true; names keep their places."""
        return replace(
            self, item_N=self.item_N[kept_N], labeller_N=self.labeller_N[kept_N], value_N=self.value_N[kept_N]
        )

    def counts(self) -> Array:
        """(I, V) how many people gave each item each value."""
        flat = np.bincount(self.item_N * len(self.values) + self.value_N, minlength=len(self.items) * len(self.values))
        return flat.reshape(len(self.items), len(self.values)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Comparisons:
    """N outcomes of pairs: `outcome_N` is 1 where the first is better, 0 the second, 0.5 a tie."""

    first_N: Codes
    second_N: Codes
    outcome_N: Array
    labeller_N: Codes
    item_N: Codes  # the prompt: its pairs hang together
    names: Names  # what is compared
    labellers: Names
    items: Names

    @classmethod
    def of(cls, rows: Iterable[tuple[Hashable, Hashable, Hashable, Hashable, float]]) -> Comparisons:
        """Comparisons from (item, labeller, first, second, outcome); first is the one shown first where that is known.

        Raises:
            DataError: no row, something compared with itself, or an outcome that is not 0, 0.5 or 1.
        """
        listed = list(rows)
        if not listed:
            raise DataError("no comparisons: there is nothing to rank")
        for item, labeller, first, second, outcome in listed:
            if outcome not in (FIRST, TIE, SECOND) or first == second:
                raise DataError(
                    f"item {item!r}: {labeller!r} gave {outcome!r} for {first!r} against {second!r}; "
                    "need two different answers and 1 (first is better), 0 (second) or 0.5 (tie)"
                )
        ends, names = _coded([row[2] for row in listed] + [row[3] for row in listed])
        item_N, items = _coded([row[0] for row in listed])
        labeller_N, labellers = _coded([row[1] for row in listed])
        outcome_N = np.array([row[4] for row in listed], dtype=np.float64)
        count = len(listed)
        return cls(ends[:count], ends[count:], outcome_N, labeller_N, item_N, names, labellers, items)

    def where(self, kept_N: Flags) -> Comparisons:
        """The comparisons for which it is true; names keep their places."""
        return replace(
            self,
            first_N=self.first_N[kept_N],
            second_N=self.second_N[kept_N],
            outcome_N=self.outcome_N[kept_N],
            labeller_N=self.labeller_N[kept_N],
            item_N=self.item_N[kept_N],
        )

    def untied(self) -> Comparisons:
        """Those where somebody has an opinion."""
        return self.where(self.outcome_N != TIE)

    def votes(self) -> Votes:
        """Each pair of answers as an item of the values -1, 0 and 1, once from either side: items P to 2P are 0 to P.

        Which of two answers is listed first means nothing, so either side counts once: 1 is as frequent as -1, and two
        people who toss coins agree on half of the pairs. Pairs of one prompt are one group.

        Raises:
            DataError: two judgements of one person on one pair.
        """
        keys_P, pair_N = self.pairs()
        sign_N = np.rint(2 * self.outcome_N - 1).astype(np.int64)
        sign_N = np.where(self.first_N <= self.second_N, sign_N, -sign_N)
        _once(pair_N, self.labeller_N, tuple(map(tuple, keys_P.tolist())), self.labellers)
        P = len(keys_P)
        names = [(self.items[i], self.names[a], self.names[b]) for i, a, b in keys_P.tolist()]
        return Votes(
            np.concatenate([pair_N, pair_N + P]),
            np.concatenate([self.labeller_N, self.labeller_N]),
            np.concatenate([sign_N, -sign_N]) + 1,
            (*names, *((i, b, a) for i, a, b in names)),
            self.labellers,
            (-1, 0, 1),
            np.concatenate([keys_P[:, 0], keys_P[:, 0]]),
            sides=2,
        )

    def pairs(self) -> tuple[Codes, Codes]:
        """(P, 3) item and the two compared, lower number first; (N,) the pair of each comparison."""
        low_N, high_N = np.minimum(self.first_N, self.second_N), np.maximum(self.first_N, self.second_N)
        keys_P, pair_N = np.unique(np.stack([self.item_N, low_N, high_N], axis=1), axis=0, return_inverse=True)
        return keys_P, pair_N.reshape(-1)


def comparisons(judgements: Iterable[Judgement], *, models: bool = False) -> Comparisons:
    """The K(K-1)/2 pairs of each ranking, as shown from first to last where that is recorded.

    Of several judgements of one person on one pair the last counts; who is not named is a person of their own.

    models: compare the models that wrote the answers, not the answers; pairs of one model are then left out.

    Raises:
        DataError: none is left, or a model is not named.
    """
    found = {}
    for place, judgement in enumerate(judgements):
        who = f"{NOBODY} {place}" if judgement.rater is None else judgement.rater
        order, item = judgement.shown_order or range(len(judgement.answers)), judgement.prompt.key
        for a, b in combinations(order, 2):
            first, second = (_named(judgement, item, k, models) for k in (a, b))
            if first != second:
                better = judgement.ranks[b] - judgement.ranks[a]
                texts = (judgement.answers[a].words, judgement.answers[b].words)
                outcome = FIRST if better > 0 else SECOND if better < 0 else TIE
                found[item, who, frozenset(texts)] = (item, who, first, second, outcome)
    return Comparisons.of(found.values())


def _named(judgement: Judgement, item: str, k: int, models: bool) -> Hashable:
    answer = judgement.answers[k]
    if not models:
        return item, answer.words
    if answer.model is None:
        raise DataError(f"answer {k + 1} to prompt {item} names no model: models cannot be ranked")
    return answer.model


def _coded(column: Sequence[Hashable]) -> tuple[Codes, Names]:
    """Numbers in order of first appearance, and what they stand for."""
    place: dict[Hashable, int] = {}
    codes = np.fromiter((place.setdefault(name, len(place)) for name in column), np.int64, len(column))
    return codes, tuple(place)


def _once(item_N: Codes, labeller_N: Codes, items: Names, labellers: Names) -> None:
    key_N = item_N * len(labellers) + labeller_N
    found, counts = np.unique(key_N, return_counts=True)
    if len(found) and counts.max() > 1:
        item, labeller = divmod(int(found[counts.argmax()]), len(labellers))
        raise DataError(
            f"item {items[item]!r} has {counts.max()} labels of {labellers[labeller]!r}; keep the last of each person"
        )
