"""Records to token examples, with every row that cannot be used counted and kept for the reader.

Nothing is dropped silently: `Skipped` says how many rows fell out, why and where they lie, `Prepared.cut` how many lost
their end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from goodheart.data.batches import Example, truncate
from goodheart.data.formats import BadRow, Loaded
from goodheart.data.records import Answer, Demonstration, Judgement, Prompt, Rating, Text, Thumb
from goodheart.data.shapes import Record
from goodheart.data.splits import opening
from goodheart.data.template import Template
from goodheart.data.writing import write_rows
from goodheart.errors import DataError, TemplateError

T = TypeVar("T")

TOO_LONG = "prompt leaves no room for an answer within max_length"
EMPTY = "no token to train on"
SAME = "the answers are the same within max_length"
TIED = "all answers tie: nothing is preferred to anything"
NOTHING_WANTED = "holds nothing of the wanted kind (a thumb down, say, is nothing to imitate)"


@dataclass
class Skipped:
    """Rows set aside: how many for each reason, and the first few of each."""

    counts: Counter[str] = field(default_factory=Counter)
    shown: list[dict[str, Any]] = field(default_factory=list)
    shown_per_reason: int = 20
    _loads: list[Loaded] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, *loads: Loaded) -> Skipped:
        """The rows that reading set aside; records of `loads` that fall out later are named by file and line."""
        skipped = cls()
        for loaded in loads:
            skipped._loads.append(loaded)
            skipped.add_bad(loaded.bad)
            if loaded.counts["skipped"]:
                skipped.counts[NOTHING_WANTED] += loaded.counts["skipped"]
        return skipped

    def add(self, reason: str, where: str, excerpt: str = "") -> None:
        """Counts a row; the first of each reason are kept with their place."""
        self.counts[reason] += 1
        if self.counts[reason] <= self.shown_per_reason:
            self.shown.append({"where": where, "reason": reason, "excerpt": excerpt[:200]})

    def add_bad(self, bad: Iterable[BadRow]) -> None:
        """Counts rows that could not be read."""
        for row in bad:
            self.add(row.reason, f"{row.source}:{row.line}", row.excerpt)

    def add_record(self, reason: str, record: Any) -> None:
        """Counts a record that was read well but cannot be used."""
        shown = self.counts[reason] < self.shown_per_reason  # finding its place takes a search
        self.add(reason, self.place(record) if shown else "", _excerpt(record) if shown else "")

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def summary(self, most: int = 5) -> str:
        """`3 x chosen is empty; 1 x ...`, the most frequent reasons first."""
        told = [f"{n} x {reason}" for reason, n in self.counts.most_common(most)]
        rest = self.counts.most_common()[most:]
        if rest:
            told.append(f"{sum(n for _, n in rest)} for {len(rest)} other reason{'s' * (len(rest) > 1)}")
        return "; ".join(told)

    def place(self, record: Any) -> str:
        """`file:line` of a record that was read; empty for others. It takes a search."""
        for loaded in self._loads:
            for found, (source, line) in zip(loaded.records, loaded.places, strict=False):
                if found is record:
                    return f"{source}:{line}"
        return ""


@dataclass
class Prepared(Generic[T]):
    """Usable items, what was set aside, and of each item its record and whether that lost its end to max_length."""

    items: list[T]
    skipped: Skipped
    records: list[Any] = field(default_factory=list, repr=False)
    cuts: list[bool] = field(default_factory=list, repr=False)  # of a record's several items the first carries it

    @property
    def cut(self) -> int:
        """How many records lost their end to max_length."""
        return sum(self.cuts)

    def where(self, index: int) -> str:
        """File and line of the record that an item came from; empty where that is not known."""
        return self.skipped.place(self.records[index])

    def set_aside(self, places: Collection[int], reason: str) -> None:
        """Takes the items at these places out and counts them for `reason`."""
        for i in sorted(places):
            self.skipped.add_record(reason, self.records[i])
        kept = [i for i in range(len(self.items)) if i not in places]
        self.items, self.records = [self.items[i] for i in kept], [self.records[i] for i in kept]
        self.cuts = [self.cuts[i] for i in kept]


@dataclass(frozen=True, slots=True)
class Compared:
    """K answers to one prompt as token examples; K = 1 carries a `target` instead of an order.

    ranks: one per answer, 0 best, equal = tie.  target: a score, or 1.0 / 0.0 for a thumb.
    probability: that the order of a pair is right, 1/2 or more: `ranks` has the likelier one; None = a hard label.
    """

    answers: tuple[Example, ...]
    ranks: tuple[int, ...] = (0,)
    target: float | None = None
    margin: float | None = None
    weight: float = 1.0
    prompt_key: str = ""
    sizes: tuple[int, ...] = ()  # length of each answer in characters, for the "always the longest" baseline
    shown_order: tuple[int, ...] | None = None
    probability: float | None = None
    strength: int | None = None  # how much better, as said, 1 to 4

    @property
    def tokens(self) -> int:
        return max(len(a.ids) for a in self.answers)


def documents(
    records: Iterable[Text], template: Template, max_length: int, skipped: Skipped | None = None
) -> Prepared[Example]:
    """Plain text for pre-training; a document longer than `max_length` becomes several pieces.

    A piece begins with the last token of the one before it, so that every token but a document's first is predicted
    exactly once.
    """
    pieces: list[Example] = []

    def make(record: Text) -> bool:
        whole = template.text_ids(record.text)
        if len(whole) < 2:  # a single token has nothing to predict it from
            raise TemplateError(EMPTY)
        for start in range(0, len(whole) - 1, max_length - 1):
            ids = whole[start : start + max_length]
            pieces.append(Example(ids, [False] + [True] * (len(ids) - 1), row=len(pieces)))
        return False

    return _each(records, skipped, make, pieces)


def demonstrations(
    records: Iterable[Demonstration], template: Template, max_length: int, skipped: Skipped | None = None
) -> Prepared[Example]:
    """Prompt and answer with the loss on what the assistant says; too long answers are cut and then carry no end."""
    examples: list[Example] = []

    def make(record: Demonstration) -> bool:
        made = template.example(record.prompt, record.answer.turns() if record.prompt.is_chat else record.answer.text)
        kept = [e for e in (truncate(e, max_length) for e in made) if any(e.mask)]
        if not kept:
            raise TemplateError(TOO_LONG)
        first = len(examples)
        examples.extend(replace(e, row=first + i) for i, e in enumerate(kept))
        return sum(map(len, kept)) < sum(map(len, made))

    return _each(records, skipped, make, examples)


def comparisons(
    records: Iterable[Judgement | Rating | Thumb], template: Template, max_length: int, skipped: Skipped | None = None
) -> Prepared[Compared]:
    """Judgements, ratings and thumbs as token examples for a reward model."""
    items: list[Compared] = []

    def make(record: Judgement | Rating | Thumb) -> bool:
        answers = record.answers if isinstance(record, Judgement) else (record.answer,)
        whole = [_answer(record.prompt, a, template) for a in answers]
        examples = tuple(_fitted(e, max_length) for e in whole)
        sizes = tuple(len(a.words) for a in answers)
        if isinstance(record, Judgement):
            if all(e.ids == examples[0].ids for e in examples):
                raise TemplateError(SAME)
            ranks, probability = _likelier_order(record)
            items.append(
                Compared(
                    examples,
                    ranks,
                    margin=record.margin,
                    weight=record.weight,
                    prompt_key=record.prompt.key,
                    sizes=sizes,
                    shown_order=record.shown_order,
                    probability=probability,
                    strength=record.strength,
                )
            )
        else:
            target = record.score if isinstance(record, Rating) else float(record.label)
            key = record.prompt.key
            items.append(Compared(examples, target=target, weight=record.weight, prompt_key=key, sizes=sizes))
        return any(len(e) > max_length for e in whole)

    return _each(records, skipped, make, items)


def _likelier_order(record: Judgement) -> tuple[tuple[int, ...], float | None]:
    """The ranks of a judgement and how likely they are right; turned round where the other order is likelier."""
    if record.probability is None or record.probability >= 0.5:
        return record.ranks, record.probability
    return tuple(max(record.ranks) - rank for rank in record.ranks), 1 - record.probability


def answer_example(prompt: Prompt, answer: Answer, template: Template, max_length: int) -> Example:
    """One answer as a reward model reads it, cut at `max_length`.

    Raises:
        TemplateError: the prompt alone fills `max_length`.
    """
    return _fitted(_answer(prompt, answer, template), max_length)


def prompts(
    records: Sequence[Prompt],
    template: Template,
    longest: int,
    bad: Iterable[BadRow] = (),
    skipped: Skipped | None = None,
) -> Prepared[tuple[int, Prompt, list[int]]]:
    """(place in `records`, prompt, token ids) of each usable prompt; those over `longest` tokens are set aside.

    bad: rows that reading set aside, where no `skipped` holds them already.
    """
    skipped = skipped if skipped is not None else Skipped()
    skipped.add_bad(bad)
    items: list[tuple[int, Prompt, list[int]]] = []
    places = iter(range(len(records)))

    def make(prompt: Prompt) -> bool:
        place = next(places)
        ids = template.prompt_ids(prompt)
        if not ids:
            raise TemplateError("empty prompt")
        if len(ids) > longest:
            raise TemplateError(f"prompt longer than {longest} tokens (the model's context less max_new_tokens)")
        items.append((place, prompt, ids))
        return False

    return _each(records, skipped, make, items)


def _answer(prompt: Prompt, answer: Answer, template: Template) -> Example:
    """`meta["finish"]` of a sampled answer says how it ended; one that was cut off must not look complete (but of
    nothing at all only the end can be read).
    """
    said = answer.turns() if prompt.is_chat else answer.text
    return template.answer(prompt, said, end=answer.meta.get("finish") != "length" or not answer.words)


def _fitted(example: Example, max_length: int) -> Example:
    cut = truncate(example, max_length)
    if not any(cut.mask):
        raise TemplateError(TOO_LONG)
    return cut


def _each(records: Iterable[Any], skipped: Skipped | None, make: Callable[[Any], bool], items: list[T]) -> Prepared[T]:
    """Runs `make` (which fills `items` and says whether it cut something) on every record; one that cannot be rendered
    exactly is set aside with its reason.
    """
    skipped = skipped if skipped is not None else Skipped()
    made = Prepared(items, skipped)
    for record in records:
        try:
            was_cut = make(record)
        except TemplateError as error:
            skipped.add_record(str(error), record)
            continue
        made.cuts += [was_cut and n == 0 for n in range(len(items) - len(made.records))]
        made.records += [record] * (len(items) - len(made.records))
    return made


def list_skipped(out: Path, skipped: Skipped) -> Path | None:
    """Writes what was set aside to `NAME.skipped.jsonl` beside `NAME.jsonl`; removes an older such file instead where
    nothing was. Returns the file written.
    """
    name = out.name.removesuffix(".gz").removesuffix(".zst")
    file = out.with_name(f"{Path(name).stem}.skipped.jsonl")
    if not skipped.total:
        file.unlink(missing_ok=True)
        return None
    write_rows(file, skipped.shown)
    return file


def shared_prompts(train: Iterable[Record], held_out: Iterable[Record]) -> int:
    """How many conversations are in both; what is measured on those is not measured on unseen data."""
    return len({opening(r) for r in train} & {opening(r) for r in held_out})


def require(items: Sequence[Any], skipped: Skipped, what: str, sources: Sequence[str]) -> None:
    """Raises DataError when nothing usable is left."""
    if not items:
        raise DataError(f"{', '.join(sources)}: no usable {what}; set aside: {skipped.summary() or 'nothing was read'}")


def _excerpt(record: Any) -> str:
    """What was asked, as far as it helps to find the row."""
    prompt = getattr(record, "prompt", record)
    if isinstance(prompt, Prompt) and prompt.is_chat:
        return f"{prompt.messages[-1].role}: {prompt.messages[-1].content}"
    return str(prompt.text)
