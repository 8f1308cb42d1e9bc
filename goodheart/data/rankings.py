"""What is the same comparison, and rankings out of the pairs they were cut into (pairs of one `group_id`)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from goodheart.data.records import Answer, Judgement, Message, Prompt

T = TypeVar("T")
Said = tuple[tuple[str, str, str], ...]


def said_by(answer: Answer) -> Said:
    """What an answer says, to tell answers apart: equal for equal turns, whoever gave them."""
    return _said(answer.turns())


def asked_by(prompt: Prompt) -> tuple[str | None, Said]:
    """What a prompt asks, to tell prompts apart: equal for equal turns, whatever else is known of them."""
    return prompt.text, _said(prompt.messages)


def compared(prompt: Prompt, answers: Iterable[Answer]) -> tuple[str | None, Said, tuple[Said, ...]]:
    """What is compared: equal for the same answers to the same prompt, in whatever order they stand."""
    return *asked_by(prompt), tuple(sorted(map(said_by, answers)))


def _said(turns: Iterable[Message]) -> Said:
    return tuple((t.role, t.content, json.dumps(t.extra, sort_keys=True, default=str)) for t in turns)


def ranking_of(pairs: Sequence[Judgement]) -> Judgement | None:
    """The one ranking whose pairs these are; a pair that is not there is a tie, which many layouts leave out.

    None where they are no such pairs: of several prompts or people, the same two answers twice, soft labels, or in a
    circle (a over b, b over c, c over a). Notes are those of the first pair; the answers stand in the order in which
    they stand in the pairs.
    """
    first = pairs[0]
    if len(pairs) < 2 or any(
        len(pair.answers) != 2 or pair.probability is not None or pair.rater != first.rater
        or (pair.prompt.messages, pair.prompt.text) != (first.prompt.messages, first.prompt.text)
        for pair in pairs
    ):  # fmt: skip
        return None
    answers = {said_by(answer): answer for pair in pairs for answer in pair.answers}
    better: set[tuple[Said, Said]] = set()  # (better, worse)
    earlier: dict[Said, int] = dict.fromkeys(answers, 0)  # how many answers stand before it
    for pair in pairs:
        left, right = (said_by(answer) for answer in pair.answers)
        earlier[right] += 1
        if pair.ranks[0] != pair.ranks[1]:
            better.add((left, right) if pair.ranks[0] < pair.ranks[1] else (right, left))
    if len({frozenset(map(said_by, pair.answers)) for pair in pairs}) < len(pairs):
        return None
    lead = {said: sum(a == said for a, _ in better) - sum(b == said for _, b in better) for said in answers}
    for one, other in itertools.combinations(answers, 2):
        found = ((one, other) in better) - ((other, one) in better)
        wanted = (lead[one] > lead[other]) - (lead[one] < lead[other])
        if found != wanted or ((one, other) in better and (other, one) in better):
            return None
    tiers = sorted(set(lead.values()), reverse=True)
    order = sorted(answers, key=earlier.__getitem__)
    ranks = tuple(tiers.index(lead[said]) for said in order)
    return replace(first, answers=tuple(answers[said] for said in order), ranks=ranks, group_id=None, shown_order=None)


def merged(records: Iterable[T], judgement_of: Callable[[T], object], put: Callable[[T, Judgement], T]) -> Iterator[T]:
    """The same, with each run of pairs of one group made one ranking where they are one.

    judgement_of: the record in an item. put: the item with another record in its place.
    """
    for group, run in itertools.groupby(records, key=lambda item: _group(judgement_of(item))):
        if group is None:
            yield from run
            continue
        items = list(run)
        whole = ranking_of([found for item in items if isinstance(found := judgement_of(item), Judgement)])
        yield from items if whole is None else [put(items[0], whole)]


def _group(record: object) -> str | None:
    return record.group_id if isinstance(record, Judgement) else None
