"""Tics of whole models and what changed between two of them, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodheart.data.records import Answer
from goodheart.evaluate.interval import Array, Bootstrap, Measure, Samples, measures, prompt_means
from goodheart.evaluate.tics import ALL, CUT_OFF, DISTINCT, TICS, Said, Tic, cut_off, distinct

# Differences smaller than these are not worth a sentence however certain they are.
_LEAST_SHARE, _LEAST_RATIO = 0.02, 0.1
_TWICE = 2.0  # from here on a length is told as "n times" rather than "n % longer"


def tics_of(models: Mapping[str, Sequence[Sequence[Answer]]]) -> dict[str, dict[str, Samples]]:
    """tic -> model -> for each prompt the measure of each answer (`distinct_2`: one value per prompt)."""
    found: dict[str, dict[str, Samples]] = {tic.name: {} for tic in ALL}
    # More answers repeat more phrases: as many of each model are compared.
    fewest = [min(map(len, together)) for together in zip(*models.values(), strict=True)]
    for name, prompts in models.items():
        columns: dict[str, list[list[float | None]]] = {tic.name: [] for tic in ALL}
        for own, k in zip(prompts, fewest, strict=True):
            said = [Said.of(a.words) for a in own]  # those of one prompt at a time: all would fill the memory
            for tic in TICS:
                columns[tic.name].append([tic.measure(one) for one in said])
            columns[DISTINCT.name].append([distinct(said[:k])] if k > 1 else [None])
            columns[CUT_OFF.name].append([cut_off(a) for a in own])
        for tic_name, values in columns.items():
            found[tic_name][name] = values
    return found


def tic_measures(found: Mapping[str, dict[str, Samples]], bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """model -> tic -> measure."""
    table: dict[str, dict[str, Any]] = {}
    for tic, models in found.items():
        for name, measure in measures(models, bootstrap).items():
            table.setdefault(name, {})[tic] = measure.as_dict()
    return table


def tics_changed(
    found: Mapping[str, dict[str, Samples]], start: str, to: str, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """What is surely different between two models, each with a sentence; strongest first.

    `low` and `high` bound the difference after - before, at a level that holds for all tics together (95 % divided by
    their number, Bonferroni), so that a list without a single chance find is the rule. Differences of under two
    points of a share or a tenth of a mean are left out.
    """
    level = 1 - 0.05 / len(ALL)
    rows = []
    for tic in ALL:
        before_P, after_P = (prompt_means(found[tic.name][name]) for name in (start, to))
        both = ~np.isnan(before_P) & ~np.isnan(after_P)
        difference = bootstrap.difference(after_P, before_P, level=level)
        if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
            continue
        before, after = float(before_P[both].mean()), float(after_P[both].mean())
        if not _matters(tic, before, after):
            continue
        row = {"tic": tic.name, "before": before, "after": after, "from": start, "to": to}
        row |= {"low": difference.low, "high": difference.high}
        words = _length_words(before_P, after_P, both, start, to, bootstrap) if tic.name == "length" else ""
        rows.append((_strength(difference), row | {"words": words or _words(tic, before, after, start, to)}))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _matters(tic: Tic, before: float, after: float) -> bool:
    if tic.is_share:
        return abs(after - before) >= _LEAST_SHARE
    return abs(after - before) >= _LEAST_RATIO * max(abs(before), abs(after))


def _strength(difference: Measure) -> float:
    assert difference.value is not None
    assert difference.low is not None
    assert difference.high is not None
    return abs(difference.value) / max(difference.high - difference.low, 1e-12)


def _words(tic: Tic, before: float, after: float, start: str, to: str) -> str:
    show = _percent if tic.is_share else _number
    return tic.words.format(after=show(after), before=show(before), to=to, start=start)


def _length_words(
    before_P: Array, after_P: Array, both: NDArray[np.bool_], start: str, to: str, bootstrap: Bootstrap
) -> str:
    """The ratio of the mean lengths with its own 95 % interval; empty where it would divide by nothing."""
    resampled_before = bootstrap.means(np.where(both, before_P, math.nan))
    if not resampled_before.min() > 0:
        return ""
    ratios_R = bootstrap.means(np.where(both, after_P, math.nan)) / resampled_before
    found = bootstrap.measure(float(after_P[both].mean() / before_P[both].mean()), ratios_R, int(both.sum()))
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    if found.value >= _TWICE:
        how, interval = f"{found.value:.1f} times as long as", f"{found.low:.1f} to {found.high:.1f}"
    else:
        longer = found.value >= 1
        low, high = (found.low - 1, found.high - 1) if longer else (1 - found.high, 1 - found.low)
        how = f"{_percent(abs(found.value - 1))} {'longer' if longer else 'shorter'} than"
        interval = f"{_percent(low)} to {_percent(high)}"
    return f"answers of {to} are {how} those of {start} (95 % interval {interval})"


def _percent(value: float) -> str:
    whole = 0.1 <= abs(value) <= 0.99 or value in (0, 1)
    return f"{100 * value:.0f} %" if whole else f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 20 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
