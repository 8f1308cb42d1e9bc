"""From comparisons and rankings to one scale: Bradley-Terry with ties, Elo, Plackett-Luce.

What was never compared, not even through others, cannot be placed by any data. So each scale says into how many
components the comparisons fall, and a weak prior (an imagined comparison of each with one middling opponent, half won)
keeps scores finite. Without a prior evalica returns the same 1e-6 for all of {a beats b twice, c beats d}.

Unit: 400 points more are odds of 10 to 1, and the mean is 1000, as in chess. Intervals (95 %) draw items, which is
prompts, with replacement; where nothing varies, because somebody always won, the likelihood's
curvature bounds them.

Letters: N comparisons, E what is compared, R resamples, G items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from goodheart.errors import DataError
from goodheart.feedback.intervals import Z, drawn
from goodheart.feedback.votes import FIRST, SECOND, TIE, Array, Codes, Comparisons

SCALE, MEAN = 400.0, 1000.0
_POINTS = SCALE / math.log(10)  # of a difference of one in log odds
_TOLERANCE, _LIMIT = 1e-9, 10_000  # of evalica's and choix's iterations
_K = 4.0  # points that one comparison moves an Elo rating by at most: models do not learn while they are compared
_ORDERS = 50  # that Elo ratings are averaged over
_TWO_SIDED_95 = (0.025, 0.975)

Ranking = tuple[Hashable, Sequence[Hashable], Sequence[int]]  # item, what is ranked, ranks (0 best, equal numbers tie)


@dataclass(frozen=True, slots=True)
class Rated:
    """One row of a scale."""

    name: Any
    rating: float
    low: float
    high: float
    won: float  # comparisons, ties counting half
    comparisons: int
    component: int  # ratings of different components say nothing about each other


@dataclass(frozen=True, slots=True)
class Scale:
    """All that is compared, best first."""

    rows: tuple[Rated, ...]
    components: int  # 1 = everything can be compared with everything
    tie: float | None = None  # odds of a tie between two equals, against either winning; None = nobody ties


def bradley_terry(comparisons: Comparisons, *, prior: float = 1.0, resamples: int = 500, seed: int = 0) -> Scale:
    """Ratings by the Bradley-Terry model with ties, solved by evalica.

        P(a better) : P(tie) : P(b better) = s_a : 2 v sqrt(s_a s_b) : s_b

    prior: imagined comparisons of each with the middling opponent.

    Sources: Davidson, JASA 65 (1970); Newman, JMLR 24 (2023).
    """
    c, E = comparisons, len(comparisons.names)
    keys, row_N = np.unique(np.stack([c.first_N, c.second_N, 2 * c.outcome_N], axis=1), axis=0, return_inverse=True)
    rows = [(int(a), int(b), twice / 2) for a, b, twice in keys]

    def solve(weight_N: Array) -> tuple[Array, float]:
        return strengths(rows, np.bincount(row_N.reshape(-1), weight_N, len(rows)).tolist(), E, prior)

    found_E, tie = solve(np.ones(len(c.item_N)))
    log_E = np.log(found_E)
    drawn_RE = [np.log(solve(w_G[c.item_N])[0]) for w_G in _resampled(c, resamples, seed)]
    apart_N = log_E[c.first_N] - log_E[c.second_N]
    odds_N3 = np.stack([np.exp(apart_N / 2), np.full(len(apart_N), 2 * tie), np.exp(-apart_N / 2)], axis=1)
    p_N3 = odds_N3 / odds_N3.sum(1, keepdims=True)
    bend_N = (p_N3[:, 0] + p_N3[:, 2] - (p_N3[:, 0] - p_N3[:, 2]) ** 2) / 4
    graph_EE = _weighted(c.first_N, c.second_N, bend_N, E)
    curve_EE = np.diag(graph_EE.sum(1)) - graph_EE
    centred_E = log_E - log_E.mean()
    curve_EE += np.diag(prior / (2 + 2 * np.cosh(centred_E)))  # p (1 - p) of the imagined comparison
    return _scale(comparisons, log_E, drawn_RE, curve_EE, 2 * tie if (c.outcome_N == TIE).any() else None)


def strengths(
    rows: Sequence[tuple[int, int, float]], weights: Sequence[float] | Array, count: int, prior: float
) -> tuple[Array, float]:
    """(count,) strengths and the parameter v of ties, by evalica with the prior that it lacks; ratios are what counts.

    rows: first and second (numbers under `count`) and outcome (1 first better, 0 second, 0.5 tie). weights: one each.

    Raises:
        DataError: no prior, and the rows do not tie all together in both directions.
    """
    from evalica import Winner, bradley_terry, newman  # loads pandas, which takes its time

    given = [(a, b, y, float(w)) for (a, b, y), w in zip(rows, weights, strict=True) if w > 0]
    if prior > 0:
        given += [(e, count, y, prior / 2) for e in range(count) for y in (FIRST, SECOND)]
    _whole(given, count + (prior > 0))
    said = {FIRST: Winner.X, SECOND: Winner.Y, TIE: Winner.Draw}
    solver = newman if any(y == TIE for _, _, y, _ in given) else bradley_terry
    result = solver(
        [a for a, _, _, _ in given],
        [b for _, b, _, _ in given],
        [said[y] for _, _, y, _ in given],
        weights=[w for _, _, _, w in given],
        tolerance=_TOLERANCE,
        limit=_LIMIT,
    )
    found_E = result.scores.reindex(range(count)).to_numpy()
    return found_E, float(result.v) if solver is newman else 0.0


def elo(
    comparisons: Comparisons, *, k: float = _K, orders: int = _ORDERS, resamples: int = 200, seed: int = 0
) -> Scale:
    """Elo ratings, averaged over random orders, for those who are used to them; solved by evalica.

    A rating moves by k (won - expected) at each comparison, so it depends on the order, and after few comparisons it
    has hardly left 1000. With many it comes to lie where Bradley-Terry's ratings are, which need neither.

    k: points. orders: shuffles to average over. Source: Elo, The rating of chessplayers (1978).
    """
    from evalica import Winner
    from evalica import elo as run

    c, chance = comparisons, np.random.default_rng(seed)
    winner_N = np.select([c.outcome_N == FIRST, c.outcome_N == SECOND], [0, 1], 2)
    said = np.array([Winner.X, Winner.Y, Winner.Draw], dtype=object)[winner_N]

    def rate(order_X: Codes) -> Array:
        order_X = chance.permutation(order_X)
        first, second = c.first_N[order_X].tolist(), c.second_N[order_X].tolist()
        result = run(first, second, said[order_X].tolist(), initial=MEAN, scale=SCALE, k=k)
        return np.asarray(result.scores.reindex(range(len(c.names))).fillna(MEAN)) / _POINTS

    all_N = np.arange(len(c.item_N))
    found_E = np.mean([rate(all_N) for _ in range(orders)], axis=0)
    drawn_RE = [rate(np.repeat(all_N, w_G[c.item_N].astype(np.int64))) for w_G in _resampled(c, resamples, seed)]
    return _scale(comparisons, found_E, drawn_RE, None, None)


def plackett_luce(rankings: Iterable[Ranking], *, prior: float = 0.1, resamples: int = 100, seed: int = 0) -> Scale:
    """Ratings from rankings of several at once, solved by choix.

    A ranking is a row of choices: the best of all, the best of the rest, ... (Plackett 1975, Luce 1959). Answers that
    tie are each chosen once from all that are not ranked above them (Breslow's rule, Biometrics 30, 1974).

    prior: choix's `alpha`, how strongly all are drawn together.

    Raises:
        DataError: no ranking of at least two.
    """
    import choix

    listed = list(rankings)
    place: dict[Hashable, int] = {}
    for _, names, _ in listed:
        for name in names:
            place.setdefault(name, len(place))
    choices = [_choices([place[name] for name in names], ranks) for _, names, ranks in listed]
    comparisons = Comparisons.of(row for ranking in listed for row in _pairs(ranking))
    E = len(place)

    def solve(weight_G: Array) -> Array:
        data = [
            one for often, own in zip(weight_G.astype(int), choices, strict=True) for _ in range(often) for one in own
        ]
        return np.asarray(choix.ilsr_top1(E, data, alpha=prior, max_iter=_LIMIT))

    # what `Comparisons.of` numbered in its own order of appearance
    order_E = np.array([place[name] for name in comparisons.names])
    found_E = solve(np.ones(len(listed)))
    blocks = drawn((len(listed), 1), resamples, seed)
    drawn_RE = [solve(weight_G)[order_E] for weights_RG in blocks for weight_G in weights_RG]
    curve_EE = np.zeros((E, E))
    for chosen, rest in (one for own in choices for one in own):
        among = [chosen, *rest]
        p = np.exp(found_E[among] - found_E[among].max())
        p /= p.sum()
        curve_EE[np.ix_(among, among)] += np.diag(p) - np.outer(p, p)
    curve_EE += prior * (np.eye(E) - 1 / E) / E + np.full((E, E), 1 / E)  # the mean is fixed
    return _scale(comparisons, found_E[order_E], drawn_RE, curve_EE[np.ix_(order_E, order_E)], None)


def _choices(names: Sequence[int], ranks: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Who was chosen, and out of which others."""
    found = []
    for name, rank in zip(names, ranks, strict=True):
        rest = [other for other, below in zip(names, ranks, strict=True) if below >= rank and other != name]
        if rest:
            found.append((name, rest))
    return found


def _pairs(ranking: Ranking) -> Iterable[tuple[Hashable, Hashable, Hashable, Hashable, float]]:
    item, names, ranks = ranking
    for i, (a, x) in enumerate(zip(names, ranks, strict=True)):
        for b, y in zip(names[i + 1 :], ranks[i + 1 :], strict=True):
            yield item, None, a, b, FIRST if x < y else SECOND if x > y else TIE


def _resampled(comparisons: Comparisons, resamples: int, seed: int) -> Iterable[Array]:
    """(G,) how often each item is drawn, for each resample."""
    for weights_RG in drawn((len(comparisons.items), 1), resamples, seed):
        yield from weights_RG


def _whole(rows: Sequence[tuple[int, int, float, float]], count: int) -> None:
    """Refuses what has no finite answer: somebody who never won (or lost) against the rest, or parts never compared."""
    won = [(a, b) for a, b, y, _ in rows if y != SECOND] + [(b, a) for a, b, y, _ in rows if y != FIRST]
    graph = sparse.coo_array((np.ones(len(won)), np.array(won, dtype=np.int64).reshape(-1, 2).T), shape=(count, count))
    parts, _ = connected_components(graph, directed=True, connection="strong")
    if parts > 1:
        raise DataError(
            f"the comparisons fall into {parts} parts of which one never beats another: without a prior "
            "they have no ratings; set prior over 0"
        )


def _weighted(first_N: Codes, second_N: Codes, weight_N: Array, count: int) -> Array:
    """(E, E) symmetric sums of weights."""
    one_way = sparse.coo_array((weight_N, (first_N, second_N)), shape=(count, count)).toarray()
    return np.asarray(one_way + one_way.T)


def _scale(
    comparisons: Comparisons, log_E: Array, drawn_RE: Sequence[Array], curve_EE: Array | None, tie: float | None
) -> Scale:
    """Rows in points; an interval is the wider of what resampling and the curvature say, at either end."""
    c, E = comparisons, len(comparisons.names)
    rating_E = MEAN + _POINTS * (log_E - log_E.mean())
    low_E = high_E = rating_E
    if len(drawn_RE):
        points_RE = MEAN + _POINTS * (np.array(drawn_RE) - np.mean(drawn_RE, axis=1, keepdims=True))
        low_E, high_E = np.quantile(points_RE, _TWO_SIDED_95, axis=0)
        if curve_EE is not None:
            centre_EE = np.eye(E) - 1 / E
            variance_E = np.diag(centre_EE @ np.linalg.pinv(curve_EE, hermitian=True) @ centre_EE)
            half_E = _POINTS * Z * np.sqrt(np.maximum(variance_E, 0))
            low_E, high_E = np.minimum(low_E, rating_E - half_E), np.maximum(high_E, rating_E + half_E)
    won_E = np.bincount(c.first_N, c.outcome_N, E) + np.bincount(c.second_N, 1 - c.outcome_N, E)
    count_E = np.bincount(c.first_N, minlength=E) + np.bincount(c.second_N, minlength=E)
    components, component_E = components_of(c)
    rows = [
        Rated(
            c.names[e],
            float(rating_E[e]),
            float(min(low_E[e], rating_E[e])),
            float(max(high_E[e], rating_E[e])),
            float(won_E[e]),
            int(count_E[e]),
            int(component_E[e]),
        )
        for e in np.argsort(-rating_E, kind="stable")
    ]
    return Scale(tuple(rows), components, tie)


def components_of(comparisons: Comparisons) -> tuple[int, Codes]:
    """How many parts were never compared with each other, and (E,) the part of each; the largest part is 0."""
    c, E = comparisons, len(comparisons.names)
    graph = sparse.coo_array((np.ones(len(c.first_N)), (c.first_N, c.second_N)), shape=(E, E))
    count, part_E = connected_components(graph, directed=False)
    by_size = np.argsort(-np.bincount(part_E), kind="stable")
    return int(count), np.argsort(by_size)[part_E].astype(np.int64)
