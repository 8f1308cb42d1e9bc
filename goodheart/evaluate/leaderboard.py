"""All models on one scale: Bradley-Terry ratings from every pair of models, with intervals by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from goodheart.evaluate.interval import Array, Bootstrap
from goodheart.feedback.scores import MEAN, SCALE, strengths
from goodheart.feedback.votes import FIRST, SECOND
from goodheart.losses.reward import wilson_interval

_PRIOR = 1.0  # comparisons added to every pair, won half by each
_RESAMPLES = 1000  # of the bootstrap's, because each is solved anew


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
        Rows {"model", "rating", "low", "high"}; the interval (95 %) resamples prompts. Where every prompt says the
        same of two models, resampling shows no spread: the bounds of the share won (Wilson's) then bound the ratings.
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
        worst, best = (
            _ratings(names, pairs, _at_the_bounds(name, pairs, rates, won, end), counted)[i] for end in (0, 1)
        )
        found = bootstrap.measure(float(rating[i]), resampled[:, i], 0)
        assert found.low is not None
        assert found.high is not None
        found = replace(found, low=min(found.low, float(worst)), high=max(found.high, float(best)))
        rows.append({"model": name, "rating": found.value, "low": found.low, "high": found.high})
    return sorted(rows, key=lambda row: -float(row["rating"] or 0))


def _at_the_bounds(
    name: str, pairs: Sequence[tuple[str, str]], rates: Mapping[tuple[str, str], Array], won: Array, end: int
) -> Array:
    """What is won where the shares that never vary lie at the bounds worst (end 0) or best (1) for one model."""
    moved = won.copy()
    for place, pair in enumerate(pairs):
        known = rates[pair][~np.isnan(rates[pair])]
        if name in pair and len(known) and known.min() == known.max():
            bounds = wilson_interval(float(known.sum()), len(known))
            moved[place] = len(known) * bounds[end if pair[0] == name else 1 - end]
    return moved


def _ratings(names: Sequence[str], pairs: Sequence[tuple[str, str]], won: Array, counted: Array) -> Array:
    place = {name: i for i, name in enumerate(names)}
    wins = {(place[a], place[b]): (w, c - w) for (a, b), w, c in zip(pairs, won, counted, strict=True)}
    rows, weights = [], []
    for pair in combinations(range(len(names)), 2):
        for outcome, sure in zip((FIRST, SECOND), wins.get(pair, (0.0, 0.0)), strict=True):
            rows.append((*pair, outcome))
            weights.append(float(sure) + _PRIOR / 2)
    found, _ = strengths(rows, weights, len(names), prior=0)
    logs = np.log10(found)
    return MEAN + SCALE * (logs - logs.mean())
