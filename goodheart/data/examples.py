"""Records to token examples, with every row that cannot be used counted and kept for the reader.

Nothing is dropped silently: `Prepared.skipped` says how many rows fell out, why, and shows the first of each kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from goodheart.data.batches import Example, truncate
from goodheart.data.formats import BadRow
from goodheart.data.records import Answer, Demonstration, Judgement, Prompt, Rating, Text, Thumb
from goodheart.data.template import Template
from goodheart.errors import DataError, TemplateError

T = TypeVar("T")

TOO_LONG = "prompt leaves no room for an answer within max_length"
EMPTY = "no token to train on"


@dataclass
class Skipped:
    """Rows set aside: how many for each reason, and the first few of each."""

    counts: Counter[str] = field(default_factory=Counter)
    shown: list[dict[str, Any]] = field(default_factory=list)
    shown_per_reason: int = 20

    def add(self, reason: str, where: str, excerpt: str = "") -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= self.shown_per_reason:
            self.shown.append({"where": where, "reason": reason, "excerpt": excerpt[:200]})

    def add_bad(self, bad: Iterable[BadRow]) -> None:
        for row in bad:
            self.add(row.reason, f"{row.source}:{row.line}", row.excerpt)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def summary(self) -> str:
        return "; ".join(f"{n} x {reason}" for reason, n in self.counts.most_common())


@dataclass
class Prepared(Generic[T]):
    """Usable items and what was set aside."""

    items: list[T]
    skipped: Skipped


@dataclass(frozen=True, slots=True)
class Compared:
    """K answers to one prompt as token examples; K = 1 carries a `target` instead of an order.

    ranks: one per answer, 0 best, equal = tie.  target: a score, or 1.0 / 0.0 for a thumb.
    """

    answers: tuple[Example, ...]
    ranks: tuple[int, ...] = (0,)
    target: float | None = None
    margin: float | None = None
    weight: float = 1.0
    prompt_key: str = ""
    words: tuple[int, ...] = ()  # length of each answer in characters, for the "always the longest" baseline
    shown_order: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        return max(len(a.ids) for a in self.answers)


def documents(
    records: Iterable[Text], template: Template, max_length: int, bad: Iterable[BadRow] = ()
) -> Prepared[Example]:
    """Plain text for pre-training; a document longer than `max_length` becomes several pieces, no token is lost."""
    pieces: list[Example] = []

    def make(record: Text, _: int) -> None:
        whole = template.text_ids(record.text)
        for start in range(0, len(whole), max_length):
            ids = whole[start : start + max_length]
            if len(ids) > 1:  # a single token has nothing to predict it from
                pieces.append(Example(ids, [False] + [True] * (len(ids) - 1)))

    skipped = _each(records, bad, make)
    return Prepared(pieces, skipped)


def demonstrations(
    records: Iterable[Demonstration], template: Template, max_length: int, bad: Iterable[BadRow] = ()
) -> Prepared[Example]:
    """Prompt and answer with the loss on what the assistant says; too long answers are cut and then carry no end."""
    examples: list[Example] = []

    def make(record: Demonstration, _: int) -> None:
        made = template.example(record.prompt, record.answer.turns() if record.prompt.is_chat else record.answer.text)
        kept = [e for e in (truncate(e, max_length) for e in made) if any(e.mask)]
        if not kept:
            raise TemplateError(TOO_LONG)
        examples.extend(kept)

    skipped = _each(records, bad, make)
    return Prepared(examples, skipped)


def comparisons(
    records: Iterable[Judgement | Rating | Thumb], template: Template, max_length: int, bad: Iterable[BadRow] = ()
) -> Prepared[Compared]:
    """Judgements, ratings and thumbs as token examples for a reward model."""
    items: list[Compared] = []

    def make(record: Judgement | Rating | Thumb, _: int) -> None:
        answers = record.answers if isinstance(record, Judgement) else (record.answer,)
        examples = tuple(answer_example(record.prompt, a, template, max_length) for a in answers)
        sizes = tuple(len(a.words) for a in answers)
        if isinstance(record, Judgement):
            items.append(
                Compared(
                    examples,
                    record.ranks,
                    margin=record.margin,
                    weight=record.weight,
                    prompt_key=record.prompt.key,
                    words=sizes,
                    shown_order=record.shown_order,
                )
            )
        else:
            target = record.score if isinstance(record, Rating) else float(record.label)
            weight = record.weight if isinstance(record, Thumb) else 1.0
            items.append(Compared(examples, target=target, weight=weight, prompt_key=record.prompt.key, words=sizes))

    skipped = _each(records, bad, make)
    return Prepared(items, skipped)


def answer_example(prompt: Prompt, answer: Answer, template: Template, max_length: int) -> Example:
    """One answer as a reward model reads it.

    Raises:
        TemplateError: the prompt alone fills `max_length`.
    """
    example = truncate(template.answer(prompt, answer.turns() if prompt.is_chat else answer.text), max_length)
    if not any(example.mask):
        raise TemplateError(TOO_LONG)
    return example


def prompts(
    records: Iterable[Prompt], template: Template, longest: int, bad: Iterable[BadRow] = ()
) -> Prepared[tuple[int, Prompt, list[int]]]:
    """(place in `records`, prompt, token ids) of each usable prompt; those over `longest` tokens are set aside."""
    items: list[tuple[int, Prompt, list[int]]] = []

    def make(prompt: Prompt, place: int) -> None:
        ids = template.prompt_ids(prompt)
        if not ids:
            raise TemplateError("empty prompt")
        if len(ids) > longest:
            raise TemplateError(f"prompt longer than {longest} tokens (the model's context less max_new_tokens)")
        items.append((place, prompt, ids))

    return Prepared(items, _each(records, bad, make))


def _each(records: Iterable[Any], bad: Iterable[BadRow], make: Callable[[Any, int], None]) -> Skipped:
    """Runs `make` on every record; a row that cannot be rendered exactly is set aside with its reason."""
    skipped = Skipped()
    skipped.add_bad(bad)
    for i, record in enumerate(records):
        try:
            make(record, i)
        except TemplateError as error:
            skipped.add(str(error), f"record {i + 1}", _excerpt(record))
    return skipped


def require(items: Sequence[Any], skipped: Skipped, what: str, sources: Sequence[str]) -> None:
    """Raises DataError when nothing usable is left."""
    if not items:
        raise DataError(f"{', '.join(sources)}: no usable {what}; set aside: {skipped.summary() or 'nothing was read'}")


def _excerpt(record: Any) -> str:
    prompt = getattr(record, "prompt", record)
    return prompt.text if isinstance(prompt, Text | Prompt) and prompt.text else str(prompt)
