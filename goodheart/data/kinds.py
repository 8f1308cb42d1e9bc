"""One kind of record as another, where that has a plain meaning; otherwise a reason why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from goodheart.data.cells import number
from goodheart.data.messages import RowError
from goodheart.data.preferences import IDENTICAL
from goodheart.data.records import Answer, Demonstration, Judgement, Prompt, Rating, Text, Thumb
from goodheart.data.shapes import Record


class WrongKind(RowError):
    """A good row of a kind that cannot be turned into the wanted one."""


def kind_of(record: Record) -> str:
    """text, prompt, demonstration, preference, rating or thumb."""
    return _NAMES[type(record)]


_NAMES: dict[type, str] = {
    Text: "text",
    Prompt: "prompt",
    Demonstration: "demonstration",
    Judgement: "preference",
    Rating: "rating",
    Thumb: "thumb",
}


def as_kind(record: Record, kind: str) -> Sequence[Record]:
    """Records of `kind` that `record` holds; none where it holds none on purpose (a thumb down is nothing to imitate).

    Raises:
        RowError: it cannot be one; the row counts as bad.
    """
    return _VIEWS[kind](record)


def is_identical(judgement: Judgement) -> bool:
    """Whether all answers that were compared are the same: nothing can be learned from their order."""
    first = judgement.answers[0].turns()
    return all(answer.turns() == first for answer in judgement.answers[1:])


def _any(record: Record) -> Sequence[Record]:
    return _preference(record) if isinstance(record, Judgement) else (record,)


def _preference(record: Record) -> Sequence[Record]:
    if not isinstance(record, Judgement):
        lone = not isinstance(record, Prompt | Text)
        raise WrongKind("the row has no second answer to compare with" if lone else "the row has no answers")
    if is_identical(record):
        raise RowError(IDENTICAL if len(record.answers) == 2 else "all answers are identical")
    return (record,)


def _demonstration(record: Record) -> Sequence[Record]:
    if isinstance(record, Demonstration):
        return (record,)
    if isinstance(record, Judgement):
        # Of answers that are all bad the best is still nothing to imitate.
        return () if record.flags.get("both_bad") else (Demonstration(record.prompt, best_answer(record)),)
    if isinstance(record, Thumb):
        return (Demonstration(record.prompt, record.answer),) if record.label else ()
    if isinstance(record, Rating):
        return (Demonstration(record.prompt, record.answer),)
    raise WrongKind("the row has no answer")


def best_answer(judgement: Judgement) -> Answer:
    """The first of the answers with the best rank; of a soft label the likelier one."""
    doubted = judgement.probability is not None and judgement.probability < 0.5
    return judgement.answers[judgement.ranks.index((max if doubted else min)(judgement.ranks))]


def _thumb(record: Record) -> Sequence[Record]:
    if isinstance(record, Thumb):
        return (record,)
    if isinstance(record, Judgement):
        if is_identical(record):
            return ()
        if record.flags.get("both_bad"):
            return [Thumb(record.prompt, answer, False, record.weight, record.rater) for answer in record.answers]
        # Of a soft label what speaks for the order is left after what speaks against it.
        sure = 1.0 if record.probability is None else 2 * record.probability - 1
        top, bottom = min(record.ranks), max(record.ranks)
        if top == bottom or sure == 0:
            return ()
        return [
            Thumb(record.prompt, answer, (rank == top) == (sure > 0), record.weight * abs(sure), record.rater)
            for answer, rank in zip(record.answers, record.ranks, strict=True)
            if rank in (top, bottom)
        ]
    raise WrongKind("the row has no true or false label")


def _rating(record: Record) -> Sequence[Record]:
    if isinstance(record, Rating):
        return (record,)
    if isinstance(record, Thumb):
        return (Rating(record.prompt, record.answer, float(record.label), record.rater, record.weight),)
    if isinstance(record, Judgement) and all("score" in answer.meta for answer in record.answers):
        scores = [number(each.meta["score"], "score") for each in record.answers]
        return [
            Rating(record.prompt, each, score, record.rater, record.weight)
            for each, score in zip(record.answers, scores, strict=True)
        ]
    raise WrongKind("the row has no score")


def _prompt(record: Record) -> Sequence[Record]:
    """The question: of a conversation all turns before its last answer."""
    if isinstance(record, Prompt):
        return (record,)
    if isinstance(record, Text):
        return (Prompt(text=record.text, meta=record.meta),)
    if isinstance(record, Demonstration) and record.prompt.is_chat and len(record.answer.messages) > 1:
        turns = (*record.prompt.messages, *record.answer.messages[:-1])
        return (Prompt(messages=turns, meta=record.prompt.meta),)
    return (record.prompt,)


def _text(record: Record) -> Sequence[Record]:
    if isinstance(record, Text):
        return (record,)
    raise WrongKind("the row has no text column")


_VIEWS: dict[str, Callable[[Record], Sequence[Record]]] = {
    "any": _any,
    "preference": _preference,
    "demonstration": _demonstration,
    "thumb": _thumb,
    "rating": _rating,
    "prompt": _prompt,
    "text": _text,
}
