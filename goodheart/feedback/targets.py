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

from goodheart.data.gather import EVERYBODY_ELSE, LABELS, gather
from goodheart.data.rankings import Said, asked_by, compared, said_by
from goodheart.data.records import Answer, Judgement, Rating
from goodheart.data.rows import all_pairs
from goodheart.data.shapes import Record
from goodheart.errors import ConfigError
from goodheart.feedback.scores import strengths
from goodheart.feedback.trust import reliability, trusted
from goodheart.feedback.votes import FIRST, SECOND, TIE

SCORES, TRUSTED = "scores", "trusted"
KNOWN = (*LABELS, TRUSTED, SCORES)
_PRIOR = 1.0  # imagined comparisons of each answer with a middling one: one vote says little

Through = Callable[[Iterable[Record]], Iterator[Record]]


def through(labels: str, weights: Mapping[str, float] | None = None, *, trust: bool = False) -> Through | None:
    """What turns records as people gave them into records to train on; None where nothing is to be done.

    Args:
        labels: each, majority, soft, trusted or scores.
        weights: trust in each rater, see `gather`.
        trust: weigh each rater by how reliable their labels show them to be; labels "trusted" do so in any case.

    Raises:
        ConfigError: unknown labels, or weights where the trust in each rater is found in the labels.
    """
    if weights is not None and (trust or labels == TRUSTED):
        raise ConfigError("the trust in each rater is found in the labels, or given as weights: leave one of them out")
    if labels == TRUSTED:
        return trusted
    if trust:
        return partial(_by_trust, labels=labels)
    if labels == SCORES:
        return partial(scored, weights=weights)
    for known in LABELS:
        if labels == known:
            return None if labels == "each" and weights is None else partial(gather, labels=known, weights=weights)
    raise ConfigError(f"unknown labels {labels!r}; known are {', '.join(KNOWN)}")


def _by_trust(records: Iterable[Record], labels: str) -> Iterator[Record]:
    listed = list(records)
    found = reliability(record for record in listed if isinstance(record, Judgement))
    made = through(labels, {EVERYBODY_ELSE: 1.0, **found})
    assert made is not None
    yield from made(listed)


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
        yield from _of_prompt(_standing(judged), prior)


def _standing(judged: Sequence[Judgement]) -> list[Judgement]:
    """Without the labels on which an adjudicator decided."""
    last_words = [each for each in judged if each.kind == "adjudication"]
    decided = {compared(each.prompt, each.answers) for each in last_words}
    return last_words + [
        each for each in judged if each.kind == "label" and compared(each.prompt, each.answers) not in decided
    ]


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
