"""All models on one scale: Bradley-Terry ratings from every pair of models, with intervals by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from goodheart.evaluate.interval import Array, Bootstrap

_PRIOR = 1.0  # comparisons added to every pair, won half by each
_RESAMPLES = 1000  # of the bootstrap's, because each is solved anew
_SCALE, _MEAN = 400.0, 1000.0  # of Elo: 400 points more are odds of 10 to 1; the models' mean is 1000


def leaderboard(
    names: Sequence[str], rates: Mapping[tuple[str, str], Array], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Ratings, best first.

    Every prompt is one comparison of each pair of models, shared out by its win rate. Half a win for each side is
    added to every pair, so that a model which always wins has a finite rating and models that were never compared are
    not put anywhere by accident. Source: Bradley and Terry 1952; solved by evalica.

    Args:
        names: the models.
        rates: (a, b) -> (P,) share won by a, NaN where a prompt says nothing; one direction per pair.

    Returns:
        Rows {"model", "rating", "low", "high"}; the interval (95 %) resamples prompts.
    """
    if len(names) < 2:
        return []
    pairs = [pair for pair in combinations(names, 2) if pair in rates]
    won = np.array([np.nansum(rates[pair]) for pair in pairs])
    counted = np.array([(~np.isnan(rates[pair])).sum() for pair in pairs], dtype=float)
    rating = _ratings(names, pairs, won, counted)
    weights_RP = bootstrap.weights_RP[:_RESAMPLES]
    resampled_won = np.stack([weights_RP @ np.nan_to_num(rates[pair]) for pair in pairs], axis=1)
    resampled_counts = np.stack([weights_RP @ (~np.isnan(rates[pair])).astype(float) for pair in pairs], axis=1)
    resampled = np.array([_ratings(names, pairs, w, c) for w, c in zip(resampled_won, resampled_counts, strict=True)])
    rows = []
    for i, name in enumerate(names):
        found = bootstrap.measure(float(rating[i]), resampled[:, i], 0)
        rows.append({"model": name, "rating": found.value, "low": found.low, "high": found.high})
    return sorted(rows, key=lambda row: -float(row["rating"] or 0))


def _ratings(names: Sequence[str], pairs: Sequence[tuple[str, str]], won: Array, counted: Array) -> Array:
    from evalica import Winner, bradley_terry  # loads pandas, which takes its time

    place = {name: i for i, name in enumerate(names)}
    ends = [(place[a], place[b]) for a, b in combinations(names, 2)]
    wins = dict(zip(((place[a], place[b]) for a, b in pairs), zip(won, counted - won, strict=True), strict=True))
    winners, losers, weights = [], [], []
    for a, b in ends:
        first, second = wins.get((a, b), (0.0, 0.0))
        winners += [a, b]
        losers += [b, a]
        weights += [float(first) + _PRIOR / 2, float(second) + _PRIOR / 2]
    result = bradley_terry(winners, losers, [Winner.X] * len(winners), weights=weights, tolerance=1e-9, limit=10_000)
    strengths = np.log10(result.scores.reindex(range(len(names))).to_numpy())
    return _MEAN + _SCALE * (strengths - strengths.mean())
