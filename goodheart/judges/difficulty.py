"""How hard prompts and pairs are, from scores: pass rates, spreads, margins, and how much of that is noise."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

# Differences of score below this are rounding of float32.
_NO_SPREAD = 1e-6
_BINS = 10
# A score beyond this, or infinite, is none: sums and squares of such do not fit into a float.
LARGEST = 1e100


@dataclass(frozen=True, slots=True)
class AnswersMeasured:
    """What the scores of the answers to one prompt say.

    pass_rate: share of them over the bar. std: of a sample (divided by K - 1); None of a single answer. flat: all are
    equal, so that comparing them teaches nothing.
    """

    answers: int
    pass_rate: float
    mean: float
    std: float | None
    flat: bool

    def columns(self) -> dict[str, Any]:
        """As columns of the prompt's row."""
        return {
            "pass_rate": self.pass_rate,
            "reward_mean": self.mean,
            "reward_std": self.std,
            "answers_measured": self.answers,
        }


def of_answers(scores: Sequence[float], bar: float) -> AnswersMeasured:
    """Measures the answers to one prompt; `scores` holds one or more, `bar` is the score over which one passes."""
    count = len(scores)
    return AnswersMeasured(
        count,
        sum(score > bar for score in scores) / count,
        statistics.fmean(scores),
        statistics.stdev(scores) if count > 1 else None,
        max(scores) - min(scores) <= _NO_SPREAD,
    )


def ranking_margin(ranks: Sequence[int], scores: Sequence[float]) -> float:
    """Mean of score(better) - score(worse) over all untied pairs of a ranking; of a pair the difference itself.

    Small: the judge hardly tells them apart. Negative: it prefers what people put lower.
    """
    leads = [
        scores[i] - scores[j] if ranks[i] < ranks[j] else scores[j] - scores[i]
        for i, j in combinations(range(len(ranks)), 2)
        if ranks[i] != ranks[j]
    ]
    return statistics.fmean(leads)


def reliability(measured: Sequence[AnswersMeasured]) -> float | None:
    """Share of the variance of prompts' mean scores that is no noise of the few answers drawn, 0 to 1.

    1 - mean of std^2 / answers, over the variance of the means (the intraclass correlation of means, Shrout and Fleiss
    1979, ICC(1,k)). None with fewer than two prompts of two or more answers, or where all means are equal.
    """
    several = [(each.mean, each.std**2 / each.answers) for each in measured if each.std is not None]
    if len(several) < 2:
        return None
    between = statistics.variance(mean for mean, _ in several)
    if between <= _NO_SPREAD**2:  # rounding
        return None
    return max(0.0, 1 - statistics.fmean(noise for _, noise in several) / between)


def prompts_report(
    measured: Sequence[AnswersMeasured], bar: float, kinds: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """What all prompts are like, and those of each kind (name -> places)."""
    return {
        **_prompts(measured),
        "answers": sum(each.answers for each in measured),
        "bar": bar,
        "reliability": reliability(measured),
        "histogram": _of_rates([each.pass_rate for each in measured], max(each.answers for each in measured)),
        **_apart(kinds, lambda places: _prompts([measured[i] for i in places])),
    }


def pairs_report(margins: Sequence[float], kinds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the margins of all pairs are like, and those of each kind (name -> places)."""
    return {
        **_pairs(margins),
        "histogram": histogram(margins, min(margins), max(margins)),
        **_apart(kinds, lambda places: _pairs([margins[i] for i in places])),
    }


def histogram(values: Sequence[float], low: float, high: float, bins: int = _BINS) -> dict[str, Any]:
    """Counts in bins of equal width from `low` to `high`; the last takes in its upper end."""
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width + 1e-9), bins - 1)] += 1
    return {"low": low, "high": low + bins * width, "counts": counts}


def _of_rates(rates: Sequence[float], answers: int) -> dict[str, Any]:
    """Pass rates of so many answers at most: of few there are few rates, and each is the middle of a bin of its own."""
    if answers > _BINS:
        return histogram(rates, 0.0, 1.0)
    half = 0.5 / answers
    return histogram(rates, -half, 1.0 + half, answers + 1)


def middles(found: Mapping[str, Any]) -> list[float]:
    """Middle of each bin of a histogram."""
    width = (found["high"] - found["low"]) / len(found["counts"])
    return [found["low"] + (i + 0.5) * width for i in range(len(found["counts"]))]


def _prompts(measured: Sequence[AnswersMeasured]) -> dict[str, Any]:
    spreads = [each.std for each in measured if each.std is not None]
    return {
        "prompts": len(measured),
        "pass_rate": statistics.fmean(each.pass_rate for each in measured),
        "reward_mean": statistics.fmean(each.mean for each in measured),
        "reward_std": statistics.fmean(spreads) if spreads else None,
        "all_pass": statistics.fmean(each.pass_rate == 1 for each in measured),
        "none_pass": statistics.fmean(each.pass_rate == 0 for each in measured),
        "no_spread": statistics.fmean(each.flat for each in measured),
    }


def _pairs(margins: Sequence[float]) -> dict[str, Any]:
    return {
        "pairs": len(margins),
        "margin": statistics.fmean(margins),
        "median": statistics.median(margins),
        "against": statistics.fmean(margin < 0 for margin in margins),
    }


def _apart(kinds: Mapping[str, Sequence[int]], report: Callable[[Sequence[int]], dict[str, Any]]) -> dict[str, Any]:
    return {"kinds": {name: report(places) for name, places in kinds.items()}} if kinds else {}
