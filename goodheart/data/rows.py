"""What the rows of several layouts are made of: pairs of a ranking, turns of a prompt, the cell of an answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from goodheart.data.messages import RowError
from goodheart.data.notes import group_of, write_notes
from goodheart.data.records import Answer, Judgement, Message, Prompt

Rows = Iterator[dict[str, Any]]
Pair = tuple[int, int, bool]  # answers of a ranking: the better one, the other one, whether they tie


def row(columns: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """A row of these columns, and of the other columns its record came with."""
    return {**columns, **{key: value for key, value in meta.items() if key not in columns}}


def all_pairs(judgement: Judgement) -> Iterator[Pair]:
    """The K(K-1)/2 comparisons in a ranking of K answers, best answers first."""
    order = sorted(range(len(judgement.ranks)), key=judgement.ranks.__getitem__)
    for better, worse in itertools.combinations(order, 2):
        yield better, worse, judgement.ranks[better] == judgement.ranks[worse]


def untied_pairs(judgement: Judgement) -> Iterator[tuple[Answer, Answer]]:
    """All (better, worse) pairs, ties left out."""
    for better, worse, tied in all_pairs(judgement):
        if not tied:
            yield judgement.answers[better], judgement.answers[worse]


def group(judgement: Judgement) -> dict[str, str]:
    """The column that pairs cut from one ranking share; none where the judgement is a pair of its own."""
    several = len(judgement.answers) > 2 or judgement.group_id is not None
    return {"group_id": group_of(judgement)} if several else {}


def pair_notes(judgement: Judgement) -> dict[str, Any]:
    """What a row of one pair says beside its answers: what training needs, and who judged what."""
    notes = write_notes(judgement)
    kept = ("margin", "strength", "weight", "probability", "rater", "item_id")
    return {**{name: notes[name] for name in kept if name in notes}, **group(judgement)}


def other_notes(judgement: Judgement, *but: str) -> dict[str, Any]:
    """The notes of a judgement for a layout that writes its pairs one by one, and has columns of its own for `but`.

    The shown order of many says nothing about a pair any more.
    """
    notes = write_notes(judgement, "group_id", *but, *(["shown_order"] if len(judgement.answers) > 2 else []))
    return {**notes, **group(judgement)}


def said(answer: Answer, *, as_chat: bool) -> str | list[dict[str, Any]]:
    """The cell of an answer: text, or messages for a chat and for more than text."""
    if not as_chat and not answer.messages:
        return answer.text
    return [turn.as_dict() for turn in answer.turns()]


def asked(prompt: Prompt) -> tuple[Message, ...]:
    """The turns of a prompt; raw text becomes the user's."""
    return prompt.messages if prompt.text is None else (Message("user", prompt.text),)


def plain(answer: Answer, layout: str = "this layout") -> str:
    """The text of an answer for a layout that holds nothing else.

    Raises:
        RowError: it has several turns, or calls tools.
    """
    turns = answer.turns()
    if len(turns) > 1 or turns[0].extra:
        raise RowError(f"{layout} holds answers of one plain turn only")
    return turns[0].content


def plain_turns(turns: Sequence[Message], layout: str) -> Sequence[Message]:
    """The turns, where each is plain text.

    Raises:
        RowError: one carries tool calls or the like.
    """
    if any(turn.extra or turn.role == "tool" for turn in turns):
        raise RowError(f"{layout} holds turns of plain text only")
    return turns


def iso_time(seconds: Any) -> str | None:
    """Seconds since 1970 as ISO 8601 in UTC; None where they are no such number."""
    try:
        return datetime.fromtimestamp(float(seconds), UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def seconds_of(time: str | None) -> float | None:
    """ISO 8601 as seconds since 1970, where `iso_time` gives the same text back; else None."""
    try:
        found = datetime.fromisoformat(time or "").timestamp()
    except (ValueError, OverflowError):
        return None
    return found if iso_time(found) == time else None
