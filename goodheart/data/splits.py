"""Train and held-out parts that share no conversation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from goodheart.data.records import Demonstration, Judgement, Prompt, Rating, Text, Thumb
from goodheart.data.shapes import Record
from goodheart.errors import DataError

R = TypeVar("R", bound=Record)


def opening(record: Record) -> str:
    """Identity of the conversation a record belongs to: hash of the normalised first question.

    A chat is known by its first user turn alone, so that a long dialogue and its own first turns (several rows of
    HH-RLHF, a demonstration and the pairs made from it) are one. A raw prompt or document is known by its whole text.
    """
    if isinstance(record, Text):
        return Prompt(text=record.text).key
    prompt = record if isinstance(record, Prompt) else record.prompt
    if not prompt.is_chat:
        return prompt.key
    first = next((turn.content for turn in prompt.messages if turn.role == "user" and turn.content.strip()), None)
    return Prompt(text=first).key if first is not None else prompt.key


def split_by_prompt(records: Sequence[R], held_out: float, seed: int = 0) -> tuple[list[R], list[R]]:
    """Split records so that all records of one conversation are on one side, whatever file they come from.

    The side follows from a hash of the first question and the seed alone, never from the other records; the share of
    held-out records is therefore `held_out` only on average. One exception: where a side would be empty, the
    conversation that lies nearest to the threshold is moved to it.

    Args:
        records: of any kind.
        held_out: share to hold out, 0 <= held_out < 1; 0 holds out nothing.
        seed: another seed gives another split.

    Returns:
        (train, held out), each in the order of `records`.

    Raises:
        DataError: a share out of range, or fewer than two conversations to split.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out must be at least 0 and below 1, found {held_out}")
    if held_out == 0:
        return list(records), []
    keys = [opening(record) for record in records]
    places = {key: _place(key, seed) for key in keys}
    if len(places) < 2:
        raise DataError(f"cannot hold out a part of {len(places)} conversation(s); give more prompts or held_out=0")
    out = {key for key, place in places.items() if place < held_out}
    if not out:
        out = {min(places, key=lambda key: places[key])}
    elif len(out) == len(places):
        out.remove(max(places, key=lambda key: places[key]))
    train = [record for record, key in zip(records, keys, strict=True) if key not in out]
    return train, [record for record, key in zip(records, keys, strict=True) if key in out]


def _place(key: str, seed: int) -> float:
    """Where in [0, 1) a key falls."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def texts_of(record: Record) -> Iterator[str]:
    """Every text in a record: the turns of its prompt, then of each answer."""
    if isinstance(record, Text):
        yield record.text
        return
    prompt = record if isinstance(record, Prompt) else record.prompt
    yield from [prompt.text] if prompt.text is not None else [turn.content for turn in prompt.messages]
    if isinstance(record, Judgement):
        answers = record.answers
    else:
        answers = (record.answer,) if isinstance(record, Demonstration | Rating | Thumb) else ()
    for answer in answers:
        yield from (turn.content for turn in answer.turns())
