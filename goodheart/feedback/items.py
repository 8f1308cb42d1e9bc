"""What is compared: a prompt with its answers, from files and records into the store and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from goodheart.data.cells import answer, prompt, spare
from goodheart.data.files import Row, read_rows
from goodheart.data.kinds import is_identical
from goodheart.data.messages import RowError, as_list
from goodheart.data.rankings import compared
from goodheart.data.reading import parse
from goodheart.data.records import Answer, Judgement, Message, Prompt
from goodheart.errors import DataError, FeedbackError

MOST_ANSWERS = 50
MOST_BYTES = 4_000_000  # of one item as JSON: the longest that a browser still shows
_SINGULAR = {"scores": "score", "logprobs": "logprob"}
_COLUMNS = ("models", "finish", "tokens", "scores", "logprobs", "settings")  # with one value for each completion
_BESIDE = ("models", "finish", "tokens", "scores", "logprobs", "best_of", "settings", "ranks", "gold", "why")


@dataclass(frozen=True, slots=True)
class NewItem:
    """A comparison to be put before people."""

    prompt: Prompt
    answers: tuple[Answer, ...]
    slice: Mapping[str, Any] = field(default_factory=dict)  # {"topic": ..., "language": ...}
    batch: str | None = None
    priority: int = 0  # higher comes first
    gold: Mapping[str, Any] | None = None  # {"ranks": [0, 1], "why": "..."}: the right answer, known beforehand
    phase: str = "work"  # with gold: gold, training or qualification

    @property
    def key(self) -> str:
        """Equal for the same answers to the same prompt, whatever their order."""
        return hashlib.sha256(json.dumps(compared(self.prompt, self.answers)).encode("ascii")).hexdigest()


def checked(item: NewItem) -> NewItem:
    """The item itself.

    Raises:
        FeedbackError: too few, too many or equal answers, or gold ranks that do not fit.
    """
    count = len(item.answers)
    if not 2 <= count <= MOST_ANSWERS:
        raise FeedbackError(f"an item has {count} answers; 2 to {MOST_ANSWERS} can be compared")
    if is_identical(Judgement(item.prompt, item.answers, (0,) * count)):
        raise FeedbackError("all answers of an item are the same: there is nothing to compare")
    if (item.phase == "work") == (item.gold is not None):
        raise FeedbackError("items of training, qualification and gold have `gold` ranks, items of work have none")
    if item.gold is not None:
        ranks = item.gold.get("ranks")
        if not isinstance(ranks, list | tuple) or len(ranks) != count or not all(type(r) is int for r in ranks):
            raise FeedbackError(
                f"gold ranks must be {count} whole numbers, one per answer, 0 the best; found {ranks!r}"
            )
    return item


def read_items(
    path: str | Path,
    *,
    at_once: int | None = None,
    slices: Sequence[str] = (),
    phase: str = "work",
    batch: str | None = None,
    bad: list[str] | None = None,
) -> Iterator[NewItem]:
    """Items out of a file of `goodheart sample` (prompt, completions, models) or of any file of preferences.

    Args:
        at_once: how many answers are shown at a time; longer lists are cut. None: all.
        slices: columns beside the prompt that say which slice a row belongs to.
        phase: work; or gold, training, qualification, for rows with a column `gold` (ranks of their completions, and
            `why` in words) or with ranks of their own.
        bad: gets one line for each row that cannot be used; None raises at the first.

    Raises:
        DataError: a row cannot be used and `bad` is None, or the file cannot be read.
    """
    for row in read_rows(path):
        try:
            found = list(_items(row, at_once, phase))
        except (RowError, FeedbackError) as error:
            if bad is None:
                raise DataError(f"{row.source}:{row.number}: {error}") from error
            bad.append(f"{row.source}:{row.number}: {error}")
            continue
        for item in found:
            cut = {name: item.prompt.meta[name] for name in slices if item.prompt.meta.get(name) is not None}
            yield replace(item, slice=cut, batch=item.batch or batch)


def _items(row: Row, at_once: int | None, phase: str) -> Iterator[NewItem]:
    if row.error is not None:
        raise RowError(row.error)
    sampled = as_list(row.data.get("completions")) is not None and row.data.get("prompt") is not None
    for asked, answers, ranks in [_sampled(row)] if sampled else _compared(row):
        gold = None
        if phase != "work":
            if ranks is None:
                raise RowError(
                    "an item of gold needs a column `gold` (or `ranks`): one rank per completion, 0 the best"
                )
            gold = {"ranks": ranks} | ({"why": row.data["why"]} if isinstance(row.data.get("why"), str) else {})
        priority = row.data.get("priority") if type(row.data.get("priority")) is int else 0
        size = at_once or len(answers)
        if phase != "work":
            size = len(answers)  # gold ranks are of all of them
        groups = [answers[i : i + size] for i in range(0, len(answers), size)]
        usable = [group for group in groups if len({a.words for a in group}) > 1]
        if not usable:
            raise RowError("fewer than two different answers: nothing to compare")
        for group in usable:
            yield checked(NewItem(asked, tuple(group), gold=gold, phase=phase, priority=priority or 0))


def _sampled(row: Row) -> tuple[Prompt, list[Answer], list[int] | None]:
    """A row with `completions`, and what stands beside each of them."""
    said = as_list(row.data["completions"]) or []
    columns = {name: as_list(row.data.get(name)) for name in _COLUMNS}
    for name, values in columns.items():
        if values is not None and len(values) != len(said):
            raise RowError(f"{len(said)} completions but {len(values)} {name}")
    settings = row.data.get("settings")
    shared = [settings] * len(said) if isinstance(settings, dict) else columns["settings"]
    answers = []
    for i, text in enumerate(said):
        each = answer(text, f"answer {i + 1}")
        about = {
            _SINGULAR.get(name, name): values[i]
            for name, values in columns.items()
            if values and name not in ("models", "settings") and values[i] is not None
        }
        sampling = {"sampling": shared[i]} if shared and isinstance(shared[i], dict) else {}
        models = columns["models"]
        model = each.model if models is None else str(models[i])
        answers.append(replace(each, model=model, meta={**each.meta, **about, **sampling}))
    gold = as_list(row.data.get("gold"))
    ranks = gold if gold is not None else as_list(row.data.get("ranks"))
    asked = prompt(row.data["prompt"], spare(row.data, "prompt", "completions", "system", *_BESIDE))
    return asked, answers, None if ranks is None else list(ranks)


def _compared(row: Row) -> Iterator[tuple[Prompt, list[Answer], list[int] | None]]:
    """A row of preferences in any shape that goodheart reads: its order counts only as gold."""
    _, found = parse(row, "preference")
    for record in found:
        if isinstance(record, Judgement):
            yield record.prompt, list(record.answers), list(record.ranks)


def pack_prompt(asked: Prompt) -> dict[str, Any]:
    """A prompt as JSON."""
    said = {"text": asked.text} if asked.text is not None else {"messages": [m.as_dict() for m in asked.messages]}
    return said | ({"meta": _plain(asked.meta)} if asked.meta else {})


def unpack_prompt(packed: Mapping[str, Any]) -> Prompt:
    """A prompt out of JSON."""
    turns = tuple(_message(each) for each in packed.get("messages", ()))
    return Prompt(messages=turns, text=packed.get("text"), meta=packed.get("meta", {}))


def pack_answer(said: Answer) -> dict[str, Any]:
    """An answer as JSON, what is empty left out."""
    packed: dict[str, Any] = (
        {"messages": [m.as_dict() for m in said.messages]} if said.messages else {"text": said.text}
    )
    more = {f.name: getattr(said, f.name) for f in fields(said) if f.name not in ("text", "messages")}
    return packed | {name: _plain(value) for name, value in more.items() if value not in (None, {}, (), [])}


def unpack_answer(packed: Mapping[str, Any]) -> Answer:
    """An answer out of JSON."""
    turns = tuple(_message(each) for each in packed.get("messages", ()))
    known = {f.name for f in fields(Answer)} - {"messages"}
    return Answer(messages=turns, **{name: value for name, value in packed.items() if name in known})


def _message(packed: Mapping[str, Any]) -> Message:
    extra = {key: value for key, value in packed.items() if key not in ("role", "content")}
    return Message(packed["role"], packed["content"], extra)


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: dates and the like of Parquet files as text."""
    return json.loads(json.dumps(value, default=str))
