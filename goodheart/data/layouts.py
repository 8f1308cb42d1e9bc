"""Records to rows in each layout we write, and what each loses.

What a layout cannot hold at all is a RowError: it is counted and never bent. What it holds but for a part comes back
without that part, and `LOSES` says which; `docs/formats.md` has the same as a table, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from goodheart.data import arena, argilla, crowd, labelstudio, openwebui, summaries, trees
from goodheart.data import training_layouts as training
from goodheart.data.messages import RowError
from goodheart.data.notes import NOTES, write_notes
from goodheart.data.records import Judgement, Rating
from goodheart.data.rows import Rows, row, said
from goodheart.data.shapes import Record


def to_rows(record: Record, layout: str) -> list[dict[str, Any]]:
    """Rows of `layout` that hold `record`; several for a ranking of many answers, none where all are tied.

    Raises:
        RowError: the layout cannot hold it.
    """
    return list(LAYOUTS[layout](record))


def ranked(record: Record) -> Rows:
    """prompt, completions, ranks, every note of the judgement and what is known of each answer: our own layout."""
    if not isinstance(record, Judgement):
        raise RowError("only comparisons of answers have ranks")
    for judgement in training.comparisons(record):
        chat = judgement.prompt.is_chat
        cells = []
        for each in judgement.answers:
            cell = said(each, as_chat=chat)
            known = {**each.meta, "completion": cell, **({} if each.model is None else {"model": each.model})}
            cells.append(known if len(known) > 1 else cell)
        columns = {"prompt": judgement.prompt.as_column(), "completions": cells, "ranks": list(judgement.ranks)}
        yield row({**columns, **write_notes(judgement)}, judgement.prompt.meta)


def _of_comparisons(write: Callable[[Judgement], Rows]) -> Callable[[Record], Rows]:
    return lambda record: (made for judgement in training.comparisons(record) for made in write(judgement))


LAYOUTS: dict[str, Callable[[Record], Rows]] = {
    "trl-preference": training.trl_preference,
    "trl-conversational": training.trl_conversational,
    "trl-sft": training.trl_sft,
    "kto": training.kto,
    "ratings": training.ratings,
    "hh": training.hh,
    "alpaca": training.alpaca,
    "sharegpt": training.sharegpt,
    "openai-preference": training.openai_preference,
    "ranked": ranked,
    "argilla": _of_comparisons(argilla.write),
    "label-studio": _of_comparisons(labelstudio.write),
    "label-studio-tasks": _of_comparisons(labelstudio.write_task),
    "summarize-from-feedback": _of_comparisons(summaries.write),
    "fastchat": _of_comparisons(arena.write),
    "open-webui": _of_comparisons(openwebui.write),
    "oasst": _of_comparisons(trees.write),
    "crowd-kit": _of_comparisons(crowd.write),
    "crowd-kit-pairs": _of_comparisons(crowd.write_pairs),
    "prompts": training.prompts,
    "text": training.text,
}

NOTHING = "nothing in it for this layout (only ties, or only answers judged bad)"  # why a record has no rows

TIES = "ties"
ORDER = "the order in which the answers stood"
RAW = "that a prompt was raw text"
PARTING = "where the prompt ends, where answers begin alike"
MODELS = "models of the answers"
ABOUT = "what else is known of the answers"
FLAGS = "flags that say more than yes"
SHOWN = "the shown order of more than two answers"
NESTED = "columns that hold lists or objects"
TEXTS = "prompts and answers"
_KEPT_BY_PAIRS = ("margin", "strength", "weight", "probability", "rater", "item_id", "group_id")
_LOST_BY_PAIRS = tuple(name for name in NOTES if name not in _KEPT_BY_PAIRS)
_PAIRS = (TIES, ORDER, MODELS, ABOUT, *_LOST_BY_PAIRS)

# Of a comparison, what does not come back: names of its notes, and the words above.
LOSES: dict[str, tuple[str, ...]] = {
    "ranked": (),
    "label-studio": (FLAGS,),
    "argilla": (MODELS, ABOUT, FLAGS, NESTED, "rater_attributes", "ratings", "shown_order"),
    "oasst": (RAW, ABOUT),
    "fastchat": (RAW, PARTING, ABOUT, SHOWN),
    "summarize-from-feedback": (TIES, ORDER, SHOWN),
    "open-webui": (TIES, ORDER, RAW, ABOUT, SHOWN),
    "trl-preference": _PAIRS,
    "trl-conversational": (*_PAIRS, RAW),
    "openai-preference": (*_PAIRS, RAW),
    "sharegpt": (*_PAIRS, RAW),
    "hh": (*_PAIRS, RAW, PARTING),
    "alpaca": (ORDER, MODELS, ABOUT, RAW, *NOTES),
}


def losses(record: Record, layout: str) -> Iterator[str]:
    """What a layout that holds a record loses of it, as far as the record has it."""
    if isinstance(record, Rating) and layout not in ("ratings", "trl-conversational"):
        yield "scores"
    if isinstance(record, Judgement):
        notes = write_notes(record)
        for name in LOSES.get(layout, ()):
            if name in notes or (name in _APPLIES and _APPLIES[name](record)):
                yield _SPOKEN.get(name, name)


_SPOKEN = {"rater": "who judged", "margin": "margins"}
_APPLIES: dict[str, Callable[[Judgement], bool]] = {
    TIES: lambda record: len(set(record.ranks)) < len(record.ranks),
    ORDER: lambda record: list(record.ranks) != sorted(record.ranks),
    RAW: lambda record: not record.prompt.is_chat,
    MODELS: lambda record: any(answer.model is not None for answer in record.answers),
    ABOUT: lambda record: any(answer.meta for answer in record.answers),
    FLAGS: lambda record: any(flag is not True for flag in record.flags.values()),
    SHOWN: lambda record: record.shown_order is not None and len(record.answers) > 2,
    NESTED: lambda record: any(isinstance(cell, (list, dict)) for cell in record.prompt.meta.values()),
    TEXTS: lambda record: True,
}
