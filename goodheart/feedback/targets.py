"""From people's labels to what is trained on: how several labels of the same answers become rows.

each, majority, soft   see `goodheart.data.gather`
trusted                soft labels that mind who can be trusted, see `goodheart.feedback.trust`
scores                 a number for each answer, to be regressed on: its Bradley-Terry score among the answers to
                       its prompt, in log odds, so that the difference of two scores is that of a reward model
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from goodheart.data.gather import LABELS, gather
from goodheart.data.rankings import Said, asked_by, said_by
from goodheart.data.records import Answer, Judgement, Rating
from goodheart.data.rows import all_pairs
from goodheart.data.shapes import Record
from goodheart.errors import ConfigError
from goodheart.feedback.scores import strengths
from goodheart.feedback.trust import trusted
from goodheart.feedback.votes import FIRST, SECOND, TIE

SCORES, TRUSTED = "scores", "trusted"
KNOWN = (*LABELS, TRUSTED, SCORES)
_PRIOR = 1.0  # imagined comparisons of each answer with a middling one: one vote says little

Through = Callable[[Iterable[Record]], Iterator[Record]]


def through(labels: str, weights: Mapping[str, float] | None = None) -> Through | None:
    """What turns records as people gave them into records to train on; None where nothing is to be done.

    Args:
        labels: each, majority, soft, trusted or scores.
        weights: trust in each rater, see `gather`.

    Raises:
        ConfigError: unknown labels, or weights with labels that find them by themselves.
    """
    if labels == TRUSTED:
        if weights is not None:
            raise ConfigError("labels `trusted` find the trust in each rater by themselves; leave the weights out")
        return trusted
    if labels == SCORES:
        return partial(scored, weights=weights)
    for known in LABELS:
        if labels == known:
            return None if labels == "each" and weights is None else partial(gather, labels=known, weights=weights)
    raise ConfigError(f"unknown labels {labels!r}; known are {', '.join(KNOWN)}")


def scored(
    records: Iterable[Record], weights: Mapping[str, float] | None = None, *, prior: float = _PRIOR
) -> Iterator[Record]:
    """A rating for each answer that was compared, prompt by prompt; other records as they are.

    The mean over the answers to a prompt is 0: how good prompts' answers are among each other nobody has said. Ties are
    taken in by Davidson's model, soft labels as shares of two votes. An adjudication is the last word.

    weights, prior: see `gather` and `scores.bradley_terry`.

    Raises:
        DataError: a rater has no weight.
    """
    by_prompt: dict[tuple[str | None, Said], list[Judgement]] = defaultdict(list)
    others: list[Record] = []
    for record in gather(records, "each", weights):
        if isinstance(record, Judgement):
            by_prompt[asked_by(record.prompt)].append(record)
        else:
            others.append(record)
    yield from others
    for judged in by_prompt.values():
        last_words = [each for each in judged if each.kind == "adjudication"]
        yield from _of_prompt(last_words or judged, prior)


def _of_prompt(judged: Sequence[Judgement], prior: float) -> Iterator[Rating]:
    answers: dict[Said, Answer] = {}
    place: dict[Said, int] = {}
    trust: dict[tuple[int, int, float], float] = defaultdict(float)
    for judgement in judged:
        keys = [said_by(answer) for answer in judgement.answers]
        for key, answer in zip(keys, judgement.answers, strict=True):
            answers.setdefault(key, answer)
            place.setdefault(key, len(place))
        for better, worse, tied in all_pairs(judgement):
            a, b = place[keys[better]], place[keys[worse]]
            sure = 1.0 if judgement.probability is None else judgement.probability
            if tied:
                trust[min(a, b), max(a, b), TIE] += judgement.weight
            elif a != b:
                trust[a, b, FIRST] += judgement.weight * sure
                trust[a, b, SECOND] += judgement.weight * (1 - sure)
    rows = [row for row, weight in trust.items() if weight > 0 and row[0] != row[1]]
    if not rows:
        return
    found, _ = strengths(rows, [trust[row] for row in rows], len(answers), prior)
    logs = [math.log(strength) for strength in found]
    mean = sum(logs) / len(logs)
    for key, answer in answers.items():
        yield Rating(judged[0].prompt, answer, logs[place[key]] - mean)
