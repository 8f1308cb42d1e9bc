"""Labels of several people made into what is trained on: each of them, their majority, or their share.

    each      every judgement as it is, weighing what its rater is trusted with
    majority  one judgement for each set of answers that was compared
    soft      the same with `probability`, the trusted share of those who agree with its order, ties counted half; of
              more than two answers each order that was given once, weighing its share

An adjudication is the last word: where there is one, the labels it decided on are left out.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from goodheart.data.cells import number
from goodheart.data.files import read_rows
from goodheart.data.messages import RowError
from goodheart.data.rankings import compared, said_by
from goodheart.data.records import Judgement, Rating, Thumb
from goodheart.data.shapes import Record
from goodheart.errors import DataError

Labels = Literal["each", "majority", "soft"]
LABELS: tuple[Labels, ...] = ("each", "majority", "soft")
EVERYBODY_ELSE = "*"  # name in a file of weights


def gather(records: Iterable[Record], labels: Labels, weights: Mapping[str, float] | None = None) -> Iterator[Record]:
    """Records as `labels` has it. Other records than comparisons only take the weight of their rater.

    weights: trust in each rater, 0 or more; "*" is everybody who is not named. None = everybody weighs 1. Adjudications
        are decisions, and are not weighed.
    The majority and the soft labels come at the place of the first judgement of their answers.

    Raises:
        DataError: a rater has no weight.
    """
    weighed = (_weighed(record, weights) for record in records)
    if labels == "each":
        yield from (record for record in weighed if getattr(record, "weight", 1) > 0)
        return
    items: dict[Any, list[Judgement]] = {}
    order: list[Any] = []
    for record in weighed:
        key = compared(record.prompt, record.answers) if isinstance(record, Judgement) else None
        if key is None or key not in items:
            order.append(record if key is None else key)
        if key is not None and isinstance(record, Judgement):
            items.setdefault(key, []).append(record)
    for each in order:
        yield from _together(items[each], labels) if isinstance(each, tuple) else [each]


def read_weights(path: str | Path) -> dict[str, float]:
    """Trust in raters: rows of rater and weight, or one JSON object {rater: weight}.

    Raises:
        DataError: the file cannot be read, or a weight is no number or below 0; names file and line.
    """
    weights: dict[str, float] = {}
    for row in read_rows(path):
        data = row.data
        given = {str(data["rater"]): data["weight"]} if "rater" in data and "weight" in data else data
        try:
            if row.error is not None:
                raise RowError(row.error)
            weights |= {str(rater): number(weight, f"the weight of {rater}") for rater, weight in given.items()}
        except RowError as error:
            raise DataError(f"{path}:{row.number}: {error}") from error
        if any(weight < 0 for weight in weights.values()):
            raise DataError(f"{path}:{row.number}: a weight is below 0; 0 leaves a rater out")
    if not weights:
        raise DataError(f"{path}: no weights; write one JSON object {{rater: weight}}, or rows of rater and weight")
    return weights


def _weighed(record: Record, weights: Mapping[str, float] | None) -> Record:
    if weights is None or not isinstance(record, Judgement | Thumb | Rating):
        return record
    if isinstance(record, Judgement) and record.kind == "adjudication":
        return record
    weight = weights.get(record.rater or "", weights.get(EVERYBODY_ELSE))
    if weight is None:
        whose = f"rater {record.rater}" if record.rater else "labels without a rater"
        raise DataError(f'no weight for {whose}: name them, or give "*" for everybody who is not named')
    return replace(record, weight=record.weight * weight)


@dataclass(slots=True)
class _Tally:
    """Trusted votes on one pair of answers."""

    first: float = 0.0  # that the first is better
    second: float = 0.0
    tie: float = 0.0

    def add(self, first: int, second: int, weight: float, sure: float) -> None:
        """ranks of the two; sure: probability that their order is right."""
        if first == second:
            self.tie += weight
        else:
            self.first += weight * (sure if first < second else 1 - sure)
            self.second += weight * (1 - sure if first < second else sure)

    def verdict(self) -> int:
        """1 the first is better, -1 the second, 0 as many prefer either, or more than half call it a tie."""
        if self.tie > self.first + self.second:
            return 0
        return (self.first > self.second) - (self.first < self.second)

    def share(self) -> float:
        """Of the first; ties count half."""
        return (self.first + self.tie / 2) / (self.first + self.second + self.tie)


def _together(judged: Sequence[Judgement], labels: Labels) -> Iterator[Judgement]:
    last_words = [each for each in judged if each.kind == "adjudication"]
    alike = [_in_the_order_of(judged[0], each) for each in last_words or judged if each.weight > 0]
    if not alike:
        return
    if labels == "soft" and len(judged[0].answers) > 2:
        yield from _rankings(alike)
        return
    tallies: dict[tuple[int, int], _Tally] = defaultdict(_Tally)
    for each in alike:
        sure = 1.0 if each.probability is None else each.probability
        for i, j in itertools.combinations(range(len(each.ranks)), 2):
            tallies[i, j].add(each.ranks[i], each.ranks[j], each.weight, sure)
    if labels == "soft":
        tally = tallies[0, 1]
        share = tally.share()
        if tally.first == tally.second == 0:  # nobody prefers either
            yield _one(alike, (0, 0))
        else:  # as many for either is no tie: it stays a pair, of probability 1/2
            yield _one(alike, (0, 1) if share >= 0.5 else (1, 0), probability=max(share, 1 - share))
    else:
        yield _one(alike, _copeland(len(alike[0].answers), tallies))


def _copeland(answers: int, tallies: Mapping[tuple[int, int], _Tally]) -> tuple[int, ...]:
    """Ranks by pairs won less pairs lost (Copeland, 1951): of two answers the majority itself."""
    lead = [0] * answers
    for (i, j), tally in tallies.items():
        lead[i] += tally.verdict()
        lead[j] -= tally.verdict()
    tiers = sorted(set(lead), reverse=True)
    return tuple(tiers.index(value) for value in lead)


def _rankings(alike: Sequence[Judgement]) -> Iterator[Judgement]:
    """Each ranking that somebody gave once, weighing the trusted share of those who gave it: the expected loss over
    drawn raters, which for two answers is the loss of the soft label.
    """
    trust: dict[tuple[int, ...], float] = defaultdict(float)
    for each in alike:
        trust[each.ranks] += each.weight
    total = sum(trust.values())
    for ranks, weight in trust.items():
        yield replace(_one(alike, ranks), weight=weight / total)


def _one(alike: Sequence[Judgement], ranks: tuple[int, ...], **more: Any) -> Judgement:
    """One judgement for many; it keeps what all of them say, and of strength and margin the mean of those who agree."""
    first = alike[0]
    both_bad = sum(each.weight for each in alike if each.flags.get("both_bad")) * 2 > sum(e.weight for e in alike)
    agree = [each for each in alike if each.ranks == ranks]
    strengths = [each.strength for each in agree if each.strength is not None]
    margins = [each.margin for each in agree if each.margin is not None]
    sources = {each.source for each in alike}
    return Judgement(
        replace(first.prompt, meta={**first.prompt.meta, "votes": len(alike), "agree": len(agree)}),
        first.answers,
        ranks,
        strength=round(sum(strengths) / len(strengths)) if strengths else None,
        margin=sum(margins) / len(margins) if margins else None,
        flags={"both_bad": True} if both_bad else {},
        source=sources.pop() if len(sources) == 1 else None,
        item_id=first.item_id,
        gold=all(each.gold for each in alike),
        **more,
    )


def _in_the_order_of(model: Judgement, judged: Judgement) -> Judgement:
    """The same judgement with its answers standing as in `model`."""
    places = {said_by(answer): place for place, answer in reversed(list(enumerate(judged.answers)))}
    order = [places[said_by(answer)] for answer in model.answers]
    if order == list(range(len(order))):
        return judged
    tiers = sorted({judged.ranks[place] for place in order})
    ranks = tuple(tiers.index(judged.ranks[place]) for place in order)
    return replace(judged, answers=model.answers, ranks=ranks, shown_order=None)
