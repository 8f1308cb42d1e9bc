"""Which columns make which record: one table, first match wins.

A row fits a shape when it has all its columns and none of them is null. Columns that a shape does not use stay in
`Prompt.meta`, where the user's own reward functions find them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from goodheart.data import answered, arena, argilla, labelstudio, openwebui, preferences, summaries, trees
from goodheart.data.cells import Data, truth
from goodheart.data.messages import RowError, as_object, is_turns
from goodheart.data.records import Demonstration, Judgement, Prompt, Rating, Text, Thumb
from goodheart.data.streams import visible

Record = Text | Prompt | Demonstration | Judgement | Rating | Thumb


@dataclass(frozen=True, slots=True)
class Shape:
    """Columns a row must have, the kind of record it gives, and how it is read."""

    name: str
    needs: tuple[str, ...]
    gives: str
    read: Callable[[Data], Sequence[Record]]
    fits: Callable[[Data], bool] | None = None  # a look at the values, where the columns alone do not tell
    says: str = ""  # what its columns are called, where that is not in `needs`

    @property
    def columns(self) -> str:
        return self.says or " + ".join(self.needs)


class NoShape(RowError):
    """The columns of a row fit no known shape."""


def _is_list(column: str) -> Callable[[Data], bool]:
    return lambda data: isinstance(data[column], list) and not is_turns(data[column])


def _is_label(column: str) -> Callable[[Data], bool]:
    return lambda data: truth(data[column]) is not None


def _has_messages(data: Data) -> bool:
    return "messages" in (as_object(data["input"]) or {})


def _stepwise(data: Data) -> list[Record]:
    raise RowError("labels for the single steps of an answer (prompt, completions, labels) are not supported")


def _vote(data: Data) -> list[Record]:
    raise RowError("labels of single items compare no answers; `goodheart.data.crowd.read_votes` reads them")


SHAPES = (
    Shape("Argilla", ("fields", "responses"), "preference", argilla.read_nested, argilla.is_nested),
    Shape("Argilla", (), "preference", argilla.read_flat, argilla.is_flat,
          "QUESTION.responses + QUESTION.responses.users"),
    Shape("Label Studio", ("data", "annotations"), "preference", labelstudio.read, labelstudio.is_task),
    Shape("summary comparison", ("info", "summaries", "choice"), "preference", summaries.read,
          summaries.is_comparison),
    Shape("summary rating", ("info", "summary"), "rating", summaries.read_rating, summaries.is_rating),
    Shape("arena log", ("type", "states"), "preference", arena.read_log, arena.is_log),
    Shape("arena vote", ("conversation_a", "conversation_b", "winner"), "preference", arena.read_table),
    Shape("Open WebUI feedback", ("data", "meta", "type"), "preference", openwebui.read, openwebui.is_feedback),
    Shape("OpenAssistant tree", ("prompt",), "preference", trees.read, trees.is_tree, "prompt with replies"),
    Shape("OpenAI preference", ("input", "preferred_output", "non_preferred_output"), "preference",
          preferences.openai_pair, _has_messages),
    Shape("ShareGPT preference", ("conversations", "chosen", "rejected"), "preference", preferences.sharegpt_pair),
    Shape("Alpaca preference", ("instruction", "chosen", "rejected"), "preference", preferences.alpaca_pair),
    Shape("preference", ("chosen", "rejected"), "preference", preferences.pair),
    Shape("numbered preference", ("prompt", "response_0", "response_1", "better_response_id"), "preference",
          preferences.numbered_pair),
    Shape("ranked answers", ("prompt", "completions", "ranks"), "preference", preferences.ranked),
    Shape("scored answers", ("prompt", "completions", "scores"), "preference", preferences.ranked),
    Shape("stepwise labels", ("prompt", "completions", "labels"), "none", _stepwise),
    Shape("answers", ("prompt", "completions"), "demonstration", answered.completions),
    Shape("thumbs", ("prompt", "completion", "label"), "thumb", answered.thumb, _is_label("label")),
    Shape("rating", ("prompt", "completion", "score"), "rating", answered.rating),
    Shape("prompt and completion", ("prompt", "completion"), "demonstration", answered.completion),
    Shape("ranked responses", ("prompt", "response"), "preference", preferences.listed, _is_list("response")),
    Shape("prompt and response", ("prompt", "response"), "demonstration", answered.response),
    *(Shape("ShareGPT thumbs", (name, "kto_tag"), "thumb", answered.dialogue_thumb, _is_label("kto_tag"))
      for name in answered.CONVERSATIONS),
    Shape("messages", ("messages",), "demonstration", answered.conversation),
    Shape("ShareGPT", ("conversations",), "demonstration", answered.conversation),
    Shape("ShareGPT", ("conversation",), "demonstration", answered.conversation),
    Shape("Self-Instruct", ("instruction", "instances"), "demonstration", answered.instances),
    Shape("ranked Alpaca", ("instruction", "output"), "preference", preferences.alpaca_listed, _is_list("output")),
    Shape("Alpaca", ("instruction", "output"), "demonstration", answered.alpaca),
    Shape("Dolly", ("instruction", "response"), "demonstration", answered.dolly),
    Shape("prompt", ("prompt",), "prompt", answered.question),
    Shape("text", ("text",), "text", answered.document),
    Shape("votes", ("worker", "label"), "none", _vote),
    Shape("Alpaca prompt", ("instruction",), "prompt", answered.alpaca_question),
)  # fmt: skip
TEXT = next(shape for shape in SHAPES if shape.name == "text")


def shape_of(data: Data, kind: str = "any") -> Shape:
    """The shape of a row. For kind "text" a `text` column wins over all others.

    Raises:
        NoShape: no shape fits.
    """
    if kind == "text" and data.get("text") is not None:
        return TEXT
    for shape in _with_columns(tuple(name for name, value in data.items() if value is not None)):
        if shape.fits is None or shape.fits(data):
            return shape
    raise NoShape(f"columns {visible(', '.join(data) or '(none)', 200)} fit no known shape")


@lru_cache(maxsize=1024)
def _with_columns(present: tuple[str, ...]) -> tuple[Shape, ...]:
    return tuple(shape for shape in SHAPES if set(shape.needs) <= set(present))


def explain(columns: Iterable[str], kind: str) -> str:
    """What columns were found, which shapes give records of `kind`, and which of them is nearest."""
    found = sorted(columns)
    usable = sorted(
        (shape for shape in SHAPES if shape.gives in GIVERS[kind]),
        key=lambda shape: (shape.gives != kind, shape.fits is not None, len(shape.needs)),  # the plainest first
    )
    accepted = list(dict.fromkeys(shape.columns for shape in usable))
    return (
        f"Found columns: {visible(', '.join(found) or '(none)', 300)}.\n"
        f"Accepted: {'; '.join(accepted)}.\n{_nearest(usable, found)}"
        "Rename columns in the file, or say which is what: goodheart data convert --map FILE."
    )


# From which kinds of row a record of each kind can be had (goodheart/data/kinds.py does it).
GIVERS = {
    "any": ("preference", "demonstration", "thumb", "rating", "prompt", "text"),
    "preference": ("preference",),
    "demonstration": ("demonstration", "preference", "thumb", "rating"),
    "thumb": ("thumb", "preference"),
    "rating": ("rating", "thumb", "preference"),
    "prompt": ("prompt", "demonstration", "preference", "thumb", "rating", "text"),
    "text": ("text",),
}


def _nearest(shapes: Sequence[Shape], found: Sequence[str]) -> str:
    def near(name: str) -> list[str]:
        return [name] if name in found else difflib.get_close_matches(name, found, n=1, cutoff=0.75)

    def closeness(shape: Shape) -> float:
        near_by = sum(1.0 if name in found else 0.9 * bool(near(name)) for name in shape.needs)
        return near_by / max(len(shape.needs), 1)

    # Where all columns are there and it was not taken, its values did not fit: another kind of row.
    shapes = [shape for shape in shapes if shape.fits is None or not set(shape.needs) <= set(found)]
    best = max(shapes, key=closeness)
    if not closeness(best):
        return ""
    notes: list[Any] = [
        f"{name!r} is missing" + (f" (is {visible(near(name)[0])!r} meant?)" if near(name) else "")
        for name in best.needs
        if name not in found
    ]
    return f"Nearest: {best.columns}: {', '.join(notes) or 'some rows have null in one of them'}.\n"
