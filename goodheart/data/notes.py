"""What a comparison carries beside its answers (who judged, how strongly, when ...) as columns of a row, and back.

A column is taken for a note only where its type is right; a foreign column of the same name stays with the prompt. Null
means "not said" everywhere, inside objects too (a Parquet file fills the keys that other rows have with nulls).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from goodheart.data.cells import Data, number, spare
from goodheart.data.messages import RowError, as_list, as_object
from goodheart.data.records import STRENGTHS, Judgement

SOURCES = ("person", "ai", "simulated", "import")
KINDS = ("label", "adjudication")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _name(value: Any) -> str | None:
    """A name or id; some tools number their people."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _object(value: Any) -> Mapping[str, Any] | None:
    found = as_object(value)
    return without_nulls(found) if found else None


def _yes(value: Any) -> bool | None:
    return {"true": True, "false": False}.get(value) if isinstance(value, str) else _bool(value)


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _strength(value: Any) -> int | None:
    try:
        found = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(found) if found in STRENGTHS else None


# One row per note: how its column is read; None = the column says something else.
_READ: dict[str, Callable[[Any], Any]] = {
    "rater": _name,
    "rater_attributes": _object,
    "guideline": _text,
    "flags": _object,
    "gold": _yes,
    "batch": _text,
    "strength": _strength,
    "ratings": _object,
    "comment": _text,
    "source": lambda value: value if value in SOURCES else None,
    "kind": lambda value: value if value in KINDS else None,
    "created_at": _text,
    "item_id": _name,
    "group_id": _name,
}
_NUMBERS = ("margin", "weight", "seconds", "probability")  # a cell that is no number is a fault, not another column
NOTES = (*_NUMBERS, *_READ, "shown_order")
DEFAULTS = {name: Judgement.__dataclass_fields__[name].default for name in (*_NUMBERS, *_READ)}


_values = attrgetter(*DEFAULTS)


def read_notes(data: Data, answers: int = 2) -> dict[str, Any]:
    """The notes among the columns of a row, as fields of a Judgement of so many answers.

    Raises:
        RowError: a number that is none, or a probability outside 0 to 1 or of more than two answers.
    """
    notes: dict[str, Any] = {}
    for name, value in data.items():
        if name in _NUMBERS and value not in (None, ""):
            notes[name] = number(value, name)
        elif value is not None and name in _READ and (found := _read(_READ[name], value)) is not None:
            notes[name] = found
    chance = notes.get("probability")
    if chance is not None and not (answers == 2 and 0 <= chance <= 1):
        raise RowError(f"probability must be that of a pair's order, 0 to 1; found {chance:g} for {answers} answers")
    order = as_list(data.get("shown_order"))
    if order and all(isinstance(place, int) for place in order) and sorted(order) == list(range(answers)):
        notes["shown_order"] = tuple(order)
    return notes


def _read(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except TypeError:  # a list, say, that cannot be looked up among names
        return None


def taken(data: Data, used: Sequence[str], answers: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """The notes of a row, and the columns that neither they nor the answers (`used`) have a use for."""
    notes = read_notes(data, answers)
    return notes, spare(data, *used, *notes, *(name for name in NOTES if data.get(name) == ""))  # an empty CSV cell


def write_notes(judgement: Judgement, *but: str) -> dict[str, Any]:
    """Every note that says something, as columns. A margin of 0 or no seconds do, False and an empty object do not."""
    said = {
        name: value
        for name, usual, value in zip(DEFAULTS, DEFAULTS.values(), _values(judgement), strict=True)
        if value is not usual and value != usual and (value or not _is_empty(value)) and name not in but
    }
    if judgement.shown_order is not None and "shown_order" not in but:
        said["shown_order"] = list(judgement.shown_order)
    return said


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, Mapping) and not value)


def group_of(judgement: Judgement) -> str:
    """The id that pairs cut from one ranking share: its own, or one made of what was judged, by whom and how."""
    if judgement.group_id is not None:
        return judgement.group_id
    said = [judgement.prompt.key, str(judgement.rater), str(judgement.item_id), str(judgement.created_at)]
    said += [f"{rank}:{answer.words}" for rank, answer in zip(judgement.ranks, judgement.answers, strict=True)]
    return hashlib.sha256("\x1e".join(said).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def without_nulls(value: Any) -> Any:
    """The same without keys that hold null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
