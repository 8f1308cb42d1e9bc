"""How far every two labellers agree: raw agreement and Cohen's kappa, each with an interval over items.

Letters: V values, X tables, or items that both of two labelled, K kinds of tables, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import sparse

from goodheart.feedback.intervals import RESAMPLES, Measure, bounded, ratio
from goodheart.feedback.votes import Array, Codes, Votes

Weights = Literal["none", "linear", "quadratic"]


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two labellers on the items that both labelled."""

    a: Any
    b: Any
    raw: Measure
    kappa: Measure


def cohen_kappa(table_XVV: Array, weights: Weights = "none") -> Array:
    """(X,) Cohen's kappa of tables: how often one person said v (rows) where the other said w (columns).

    weights: what a disagreement counts: none 1, linear the steps between the values, quadratic their square.
    NaN where both always say one and the same value. Source: Cohen, Psychological Bulletin 70 (1968).
    """
    V = table_XVV.shape[-1]
    steps_VV = np.abs(np.subtract.outer(np.arange(V), np.arange(V))).astype(np.float64)
    apart_VV = {"none": (steps_VV > 0).astype(np.float64), "linear": steps_VV, "quadratic": steps_VV**2}[weights]
    share_XVV = table_XVV / np.maximum(table_XVV.sum((1, 2), keepdims=True), 1)
    observed_X = (share_XVV * apart_VV).sum((1, 2))
    expected_X = np.einsum("xv,xw,vw->x", share_XVV.sum(2), share_XVV.sum(1), apart_VV)
    return ratio(expected_X - observed_X, expected_X)


def by_pair(
    votes: Votes, weights: Weights = "none", *, least: int = 10, resamples: int = RESAMPLES, seed: int = 0
) -> list[PairAgreement]:
    """Raw agreement and Cohen's kappa of every two labellers with `least` items in common or more, most items first."""
    V, found = len(votes.values), []
    for a, b, group_X, cell_X in _common(votes, least):
        kinds_KX, often_K = _kinds(group_X, cell_X, V * V)
        groups, labels = int(often_K.sum()), 2 * len(cell_X) // votes.sides
        drawn_RK = np.random.default_rng(seed).multinomial(groups, often_K / groups, resamples)
        tables_RVV = (np.vstack([often_K, drawn_RK]) @ kinds_KX).reshape(-1, V, V)  # the first is what was seen
        sums_R = tables_RVV.sum((1, 2))
        chance = float(tables_RVV[0].sum(0) @ tables_RVV[0].sum(1) / sums_R[0] ** 2)
        raw_R, kappa_R = np.trace(tables_RVV, axis1=1, axis2=2) / sums_R, cohen_kappa(tables_RVV, weights)
        raw, kappa = (
            bounded(float(each_R[0]), each_R[1:], level, groups, labels)
            for each_R, level in ((raw_R, chance), (kappa_R, 0.0))
        )
        found.append(PairAgreement(votes.labellers[a], votes.labellers[b], raw, kappa))
    return sorted(found, key=lambda pair: -pair.raw.items)


def _common(votes: Votes, least: int) -> Iterator[tuple[int, int, Codes, Codes]]:
    """Two labellers, and for each of the X items that both labelled its group and what they said: V v + w."""
    items, labellers = len(votes.items), len(votes.labellers)
    ones_N = np.ones(len(votes.item_N), dtype=np.int64)
    given_IL = sparse.csr_array((ones_N, (votes.item_N, votes.labeller_N)), (items, labellers))
    together = sparse.triu(given_IL.T @ given_IL, k=1).tocsr()
    order_N = np.argsort(votes.labeller_N, kind="stable")
    ends = np.searchsorted(votes.labeller_N[order_N], np.arange(labellers + 1))
    own = [order_N[start:end] for start, end in pairwise(ends)]
    for a in range(labellers):
        said_I = np.full(items, -1, dtype=np.int64)
        said_I[votes.item_N[own[a]]] = votes.value_N[own[a]]
        row = slice(together.indptr[a], together.indptr[a + 1])
        for b, count in zip(together.indices[row], together.data[row], strict=True):
            if count < least:
                continue
            of_a = said_I[votes.item_N[own[b]]]
            both = own[b][of_a >= 0]
            group_X = votes.group_I[votes.item_N[both]]
            if len(np.unique(group_X)) >= least:
                yield a, int(b), group_X, of_a[of_a >= 0] * len(votes.values) + votes.value_N[both]


def _kinds(group_X: Codes, cell_X: Codes, cells: int) -> tuple[Array, Codes]:
    """(K, cells) the different tables that groups have, and how often each occurs.

    To draw groups with replacement is to draw from the multinomial of their kinds, and kinds are few.
    """
    _, place_X = np.unique(group_X, return_inverse=True)
    groups = int(place_X.max()) + 1
    if groups == len(cell_X):  # one item each: its kind is the cell it lies in
        often = np.bincount(cell_X, minlength=cells)
        return np.eye(cells)[often > 0], often[often > 0]
    tables = np.bincount(place_X * cells + cell_X, minlength=groups * cells).reshape(groups, cells)
    kinds, often = np.unique(tables, axis=0, return_counts=True)
    return kinds.astype(np.float64), often
