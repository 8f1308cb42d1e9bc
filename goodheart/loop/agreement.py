"""How far people who judged the same answers agree, counted over untied pairs of answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from goodheart.data.records import Judgement
from goodheart.losses.reward import wilson_interval


def agreement(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Pairwise agreement between people, and of each with the majority of the others.

    A pair of answers counts where both sides have an opinion; ties and majorities that are split stay out. Each prompt
    weighs one. By chance both are 0.5, because a pair that is not tied can go either way.

    Returns:
        agreement and agreement_with_majority, each with a 95 % Wilson interval over prompts; None where no two people
        judged the same answers.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        groups[judgement.prompt.key, tuple(a.words for a in judgement.answers)].append(judgement)
    between, majority = [], []
    for group in groups.values():
        votes = [_votes(judgement) for judgement in group]
        between.append(list(_between(votes)))
        majority.append(list(_with_majority(votes)))
    return _rate("agreement", between) | _rate("agreement_with_majority", majority)


def _votes(judgement: Judgement) -> list[int]:
    """For each pair of answers: 1 the former is better, -1 the latter, 0 tied."""
    return [(b > a) - (b < a) for a, b in combinations(judgement.ranks, 2)]


def _between(votes: Sequence[Sequence[int]]) -> Iterable[float]:
    for one, other in combinations(votes, 2):
        yield from (float(a == b) for a, b in zip(one, other, strict=True) if a and b)


def _with_majority(votes: Sequence[Sequence[int]]) -> Iterable[float]:
    for pair in zip(*votes, strict=True):
        total = sum(pair)
        for vote in pair:
            others = total - vote
            if vote and others:
                yield float((vote > 0) == (others > 0))


def _rate(name: str, by_prompt: Iterable[Sequence[float]]) -> dict[str, Any]:
    means = [sum(values) / len(values) for values in by_prompt if values]
    if not means:
        return {name: None}
    low, high = wilson_interval(sum(means), len(means))
    return {name: sum(means) / len(means), f"{name}_low": low, f"{name}_high": high}
