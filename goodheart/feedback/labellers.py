"""Who labels well, and who does not look: one row per labeller, and a test with a known rate of false alarms.

Five things are measured at each judgement and averaged per person: saying what the others say, being right on gold
items, pace, choosing what is shown first, and repeating the last pattern. A person is compared with the others: how far
the mean lies from the median person's, in standard deviations of what chance and honest differences between people
explain (both estimated robustly, so that a third of careless people do not hide themselves). The five p-values become
one by the Cauchy combination test, which holds though they hang together (Liu and Xie, JASA 115, 2020): of people who
are like the others, the share `false_alarms` is flagged wrongly.

Letters: J judgements, N comparisons, L labellers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import bdtr, ndtr

from goodheart.data.records import Judgement
from goodheart.errors import DataError
from goodheart.feedback.agreement import agrees_with_others
from goodheart.feedback.effects import pace
from goodheart.feedback.intervals import Z, wilson
from goodheart.feedback.votes import NOBODY, Array, Codes, Names, comparisons

FALSE_ALARMS = 0.01
_FEWEST = 5  # people that a person can be compared with
_LEAST_SPREAD = {"agreement": 0.02, "pace": 0.1, "first": 0.02, "repeats": 0.02}
_BREAKDOWN = 1.4826  # standard deviations in a median absolute deviation of the normal distribution
# At which end each sign of carelessness lies: fewer, more, or either.
_SIDES: dict[str, Callable[[Array], Array]] = {
    "agreement": ndtr,
    "pace": ndtr,
    "first": lambda z_L: 2 * ndtr(-np.abs(z_L)),
    "repeats": lambda z_L: ndtr(-z_L),
}


@dataclass(frozen=True, eq=False)
class Judged:
    """What is known of each of J judgements, in the order in which they were given; NaN where it is not."""

    labeller_J: Codes
    labellers: Names
    agreement_J: Array  # share of its untied pairs that most others see the same way
    gold_J: Array  # 1 right, 0 wrong
    seconds_J: Array
    characters_J: Array  # of all answers
    first_J: Array  # 1 the answer shown first is alone the best, less the share that chance gives it
    repeats_J: Array  # 1 the ranks from left to right are those of the person's last judgement of as many answers


@dataclass(frozen=True, slots=True)
class Share:
    """Mean of one measure; None where nothing is known."""

    value: float | None
    low: float | None
    high: float | None
    judgements: int
    p: float | None  # how likely so careless a value is for somebody like the others


@dataclass(frozen=True, slots=True)
class Labeller:
    """One row of the table."""

    name: Any
    judgements: int
    agreement: Share
    gold: Share
    pace: Share  # log of the time taken over the usual time; -0.7 is twice as fast
    seconds: float | None  # median
    first: Share  # choosing what is shown first, over its share by chance
    repeats: Share
    p: float | None  # all together
    careless: bool


def judged(judgements: Iterable[Judgement], gold: Sequence[bool | None] | None = None) -> Judged:
    """What the records say.

    judgements: in the order in which they were given. gold: for each whether it was right; None = no gold item.

    Raises:
        DataError: no judgement, or `gold` of another length.
    """
    listed = list(judgements)
    if not listed:
        raise DataError("no judgements: nothing can be said about labellers")
    if gold is not None and len(gold) != len(listed):
        raise DataError(f"{len(gold)} entries of gold for {len(listed)} judgements")
    names = [f"{NOBODY} {i}" if j.rater is None else j.rater for i, j in enumerate(listed)]
    labellers = tuple(dict.fromkeys(names))
    place = {name: k for k, name in enumerate(labellers)}
    labeller_J = np.array([place[name] for name in names], dtype=np.int64)
    right = [None] * len(listed) if gold is None else gold
    return Judged(
        labeller_J,
        labellers,
        _agreement(listed, names),
        np.array([np.nan if each is None else float(each) for each in right]),
        np.array([np.nan if j.seconds is None else j.seconds for j in listed], dtype=np.float64),
        np.array([sum(len(a.words) for a in j.answers) for j in listed], dtype=np.float64),
        np.array([_first(j) for j in listed]),
        _repeats(listed, names),
    )


def table(judged: Judged, *, false_alarms: float = FALSE_ALARMS) -> list[Labeller]:
    """One row per labeller, the most suspicious first.

    false_alarms: share of people like the others that may be flagged as careless.
    """
    measures = {
        "agreement": judged.agreement_J,
        "gold": judged.gold_J,
        "pace": pace(judged.seconds_J, judged.characters_J),
        "first": judged.first_J,
        "repeats": judged.repeats_J,
    }
    L = len(judged.labellers)
    shares = {name: _shares(name, values_J, judged.labeller_J, L) for name, values_J in measures.items()}
    rows = []
    for k, name in enumerate(judged.labellers):
        own = {measure: each[k] for measure, each in shares.items()}
        p = combined([share.p for share in own.values() if share.p is not None])
        times = judged.seconds_J[judged.labeller_J == k]
        seconds = float(np.nanmedian(times)) if np.isfinite(times).any() else None
        count = int((judged.labeller_J == k).sum())
        rows.append(Labeller(name, count, **own, seconds=seconds, p=p, careless=p is not None and p < false_alarms))
    return sorted(rows, key=lambda row: 1.0 if row.p is None else row.p)


def combined(p: Sequence[float]) -> float | None:
    """One p-value for several that may hang together. Source: Liu and Xie, JASA 115 (2020), eq. 2."""
    if not p:
        return None
    safe = np.clip(p, 1e-15, 0.95)  # a p of nearly 1, as of who was right on all gold items, would outweigh the others
    return float(0.5 - np.arctan(np.mean(np.tan((0.5 - safe) * np.pi))) / np.pi)


def _shares(name: str, values_J: Array, labeller_J: Codes, L: int) -> list[Share]:
    known_J = ~np.isnan(values_J)
    who, values = labeller_J[known_J], values_J[known_J]
    n_L = np.bincount(who, minlength=L)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_L = np.bincount(who, values, L) / n_L
        within = float(((values - mean_L[who]) ** 2).sum() / max(len(values) - (n_L > 0).sum(), 1))
        error_L = np.sqrt(within / n_L)
    if name == "gold":  # few and mostly right: counted exactly, against what all people reach together
        p_L = bdtr(np.bincount(who, values, L), n_L, values.mean()) if len(values) else np.full(L, np.nan)
    else:
        p_L = _SIDES[name](_deviations(mean_L, error_L, _LEAST_SPREAD[name]))
    if name in ("agreement", "gold"):
        low_L, high_L = wilson(np.where(n_L > 0, np.nan_to_num(mean_L) * n_L, 0), n_L)
    else:
        low_L, high_L = mean_L - Z * error_L, mean_L + Z * error_L
    compared = (n_L > 0).sum() > _FEWEST
    return [
        Share(float(mean_L[k]), float(low_L[k]), float(high_L[k]), int(n_L[k]), float(p_L[k]) if compared else None)
        if n_L[k]
        else Share(None, None, None, 0, None)
        for k in range(L)
    ]


def _deviations(mean_L: Array, error_L: Array, least: float) -> Array:
    """(L,) distance from the median person, in standard deviations of chance and of honest differences together."""
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.isfinite(mean_L) & np.isfinite(error_L)
        if not known.any():
            return np.full(len(mean_L), np.nan)
        centre = np.median(mean_L[known])
        spread = _BREAKDOWN * np.median(np.abs(mean_L[known] - centre))
        honest = max(spread**2 - float(np.median(error_L[known] ** 2)), least**2)
        return np.asarray((mean_L - centre) / np.sqrt(honest + error_L**2))


def _agreement(judgements: Sequence[Judgement], names: Sequence[str]) -> Array:
    """(J,) mean over the judgement's untied pairs of agreeing with most others; NaN where no others judged them."""
    kept = comparisons(judgements).untied()
    agrees: dict[tuple[str, frozenset[Any]], float] = {}  # of a person, on two answers to a prompt
    if len(kept.item_N):
        agrees_N = agrees_with_others(kept.votes())[: len(kept.item_N)]
        for who, a, b, value in zip(kept.labeller_N, kept.first_N, kept.second_N, agrees_N, strict=True):
            if not np.isnan(value):
                agrees[kept.labellers[who], frozenset((kept.names[a], kept.names[b]))] = float(value)
    found = []
    for judgement, name in zip(judgements, names, strict=True):
        said = [(judgement.prompt.key, answer.words) for answer in judgement.answers]
        own = [agrees.get((name, frozenset(two))) for two in combinations(said, 2)]
        known = [value for value in own if value is not None]
        found.append(sum(known) / len(known) if known else np.nan)
    return np.array(found)


def _shown(judgement: Judgement) -> tuple[int, ...]:
    """Ranks from left to right."""
    return tuple(judgement.ranks[k] for k in judgement.shown_order or range(len(judgement.ranks)))


def _first(judgement: Judgement) -> float:
    ranks = _shown(judgement)
    if judgement.shown_order is None or ranks.count(min(ranks)) > 1:
        return np.nan
    return float(ranks[0] == min(ranks)) - 1 / len(ranks)


def _repeats(judgements: Sequence[Judgement], names: Sequence[str]) -> Array:
    last: dict[tuple[str, int], tuple[int, ...]] = {}
    found = []
    for judgement, name in zip(judgements, names, strict=True):
        ranks, key = _shown(judgement), (name, len(judgement.ranks))
        found.append(float(last[key] == ranks) if key in last else np.nan)
        last[key] = ranks
    return np.array(found)
