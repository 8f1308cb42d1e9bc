"""Simulated labellers: people whose taste, noise and faults are known, so that what is learnt from them can be checked.

A labeller sees K answers in a random order and ranks them by what they perceive:

    perceived_k = taste_k                       weighted mean of the answer's aspects, in [0, 1]
                + length_bias * log2(length_k)  in characters: what one doubling of the length is worth to them
                + position_bias * p_k           p = 1 for the answer shown first, 0 for the last, even steps between
                + temperature * (1 + haste) * g_k

g is standard Gumbel noise, so a ranking of K follows Plackett-Luce and two answers follow Bradley-Terry:
P(a before b) = sigmoid((u_a - u_b) / temperature), u being all but the noise. Answers perceived within `tie` of the
best one of their tier share its rank, and equal texts always do. A share `carelessness` of the judgements is a random
order, and a labeller with a habit does nothing else than follow it.

Sources: Bradley and Terry 1952; Luce 1959 and Yellott 1977 (Gumbel noise); Plackett 1975.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from goodheart.data.records import Answer, Judgement, Prompt

Aspects = Mapping[str, float | None]
Habit = Literal["first", "longest"]

# A careful reader: some seconds to decide, and about 240 words a minute.
_SECONDS_TO_DECIDE = 4.0
_CHARACTERS_PER_SECOND = 20.0
_WIDE_CHARACTER = 3.0  # a Chinese character takes as long as three Latin letters
_SPREAD_OF_SECONDS = 0.3  # standard deviation of the logarithm
_SECONDS_WITHOUT_READING = (1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Guideline:
    """A version of the instructions: what it multiplies everybody's weights by, aspect by aspect."""

    name: str
    factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Labeller:
    """One simulated person. Everything but `name` and `weights` is off by default, except a little noise."""

    name: str
    weights: Mapping[str, float]  # aspect -> how much this person cares, 0 or more; only their ratios count
    culture: str | None = None  # written into the labels
    temperature: float = 0.1  # noise, in units of taste; 0 = none
    tie: float = 0.0  # difference in what is perceived that goes unnoticed
    length_bias: float = 0.0  # taste that one doubling of the length is worth
    position_bias: float = 0.0  # taste by which the answer shown first is favoured over the last
    haste: float = 0.0  # 1 = twice as fast, with twice the noise
    carelessness: float = 0.0  # share of judgements made without looking
    habit: Habit | None = None  # a spammer: always the answer shown first, or always the longest

    def compare(
        self,
        prompt: Prompt,
        answers: Sequence[Answer],
        aspects: Sequence[Aspects],
        chance: Random,
        guideline: Guideline | None = None,
    ) -> Judgement:
        """This person's ranking of the answers, with the order they were shown in and the seconds it took.

        Args:
            prompt: what was asked.
            answers: two or more.
            aspects: one mapping per answer, aspect -> score in [0, 1], None where the aspect does not apply.
            chance: where all randomness of this judgement comes from.
            guideline: the instructions in force.
        """
        shown = tuple(chance.sample(range(len(answers)), len(answers)))
        texts = [answer.words for answer in answers]
        looks = self.habit is None and chance.random() >= self.carelessness
        if looks:
            ranks = self._look(texts, [self.taste(a, guideline) for a in aspects], shown, chance)
        else:
            ranks = self._guess(texts, shown, chance)
        return Judgement(
            prompt,
            tuple(answers),
            ranks,
            rater=self.name,
            rater_attributes={} if self.culture is None else {"culture": self.culture},
            guideline=None if guideline is None else guideline.name,
            shown_order=shown,
            seconds=self._seconds(texts, looks, chance),
        )

    def taste(self, aspects: Aspects, guideline: Guideline | None = None) -> float:
        """What this person thinks of an answer after unlimited thought: the weighted mean of the aspects that apply."""
        factors = {} if guideline is None else guideline.factors
        weights = {name: weight * factors.get(name, 1.0) for name, weight in self.weights.items()}
        scored = [(weights[name], score) for name in weights if (score := aspects.get(name)) is not None]
        total = sum(weight for weight, _ in scored)
        return sum(weight * score for weight, score in scored) / total if total > 0 else 0.0

    def _look(
        self, texts: Sequence[str], tastes: Sequence[float], shown: Sequence[int], chance: Random
    ) -> tuple[int, ...]:
        noise = self.temperature * (1 + self.haste)
        perceived: dict[str, float] = {}
        for place, k in enumerate(shown):
            if texts[k] in perceived:  # read before: no second opinion on the same words
                continue
            position = 1 - place / (len(shown) - 1)
            perceived[texts[k]] = (
                tastes[k]
                + self.length_bias * math.log2(max(1, len(texts[k])))
                + self.position_bias * position
                + noise * gumbel(chance)
            )
        return tiers([perceived[text] for text in texts], self.tie)

    def _guess(self, texts: Sequence[str], shown: Sequence[int], chance: Random) -> tuple[int, ...]:
        """Ranks given without a look at what the answers say."""
        if self.habit == "longest":
            return tiers([float(len(text)) for text in texts], 0.0)
        order = list(shown) if self.habit == "first" else chance.sample(range(len(texts)), len(texts))
        places = list(dict.fromkeys(texts[k] for k in order))  # equal texts share the place of the first
        return tuple(places.index(text) for text in texts)

    def _seconds(self, texts: Sequence[str], looks: bool, chance: Random) -> float:
        if not looks:
            return round(chance.uniform(*_SECONDS_WITHOUT_READING), 1)
        reading = sum(_width(text) for text in texts) / _CHARACTERS_PER_SECOND
        careful = (_SECONDS_TO_DECIDE + reading) * math.exp(_SPREAD_OF_SECONDS * chance.gauss(0, 1))
        return round(careful / (1 + self.haste), 1)


def gumbel(chance: Random) -> float:
    """A draw of the standard Gumbel distribution; the difference of two is logistic."""
    # a draw of exactly 0 has no logarithm; the next smallest stands in
    return -math.log(-math.log(1.0 - chance.random()) or 0.5**53)


def tiers(perceived: Sequence[float], tie: float) -> tuple[int, ...]:
    """Ranks from 0, best first; what lies within `tie` of the best of a tier belongs to it.

    >>> tiers([0.50, 0.90, 0.85, 0.76], tie=0.1)
    (2, 0, 0, 1)
    """
    ranks = [0] * len(perceived)
    rank, best = -1, math.inf
    for k in sorted(range(len(perceived)), key=lambda k: -perceived[k]):
        if rank < 0 or best - perceived[k] > tie:
            rank, best = rank + 1, perceived[k]
        ranks[k] = rank
    return tuple(ranks)


def _width(text: str) -> float:
    return sum(_WIDE_CHARACTER if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)
