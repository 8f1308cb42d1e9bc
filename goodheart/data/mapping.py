"""Files with columns of their own, explained by a few lines of YAML: which column is what, and what its labels mean.

    prompt: [instruction, input]          # columns, joined by blank lines
    answers: [response1, response2]       # columns, or one that holds a list
    label: [annotator1, annotator2]       # several columns are several raters; or one column, with `rater`
    means: {0: [0, 0], 1: [0, 1], 2: [1, 0]}   # label -> rank of each answer, 0 best, equal numbers tie

A name is a column, or a way into one (input.text). Mappings of public data sets come with the package: `KNOWN`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from goodheart.data.cells import Data, answer, prompt
from goodheart.data.crowd import Vote
from goodheart.data.messages import RowError, as_list, as_object
from goodheart.data.notes import NOTES, read_notes
from goodheart.data.rankings import ranking_of
from goodheart.data.records import Answer, Judgement
from goodheart.errors import ConfigError

_MAPS = files("goodheart.data") / "maps"
KNOWN = tuple(sorted(each.name.removesuffix(".yaml") for each in _MAPS.iterdir() if each.name.endswith(".yaml")))
Columns = str | list[str]


class Verdict(BaseModel):
    """What a label says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ranks: list[int]  # of each answer, 0 best, equal numbers tie
    strength: int | None = Field(None, ge=1, le=4)  # negligibly, slightly, better, significantly
    flags: list[str] = []  # what is true besides: both_bad, harmful ...

    @property
    def tiers(self) -> tuple[int, ...]:
        """The ranks without gaps."""
        order = sorted(set(self.ranks))
        return tuple(map(order.index, self.ranks))


class ColumnMap(BaseModel):
    """Which column is what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Columns | None = None  # joined by blank lines; none = labels of single items, not comparisons
    answers: Columns | None = None  # one for each answer, or one column that holds a list
    models: list[str] = []  # one column for each answer
    each: str | None = None  # column with a list of annotations; names below are looked up in them first
    label: Columns  # what was said; several columns are several raters, who are called as their columns
    rater: str | None = None
    item: Columns | None = None  # what was judged; all who judged the same share it
    gold: str | None = None  # the true label, where it is known
    means: dict[str, Verdict] | None = None  # None = the label column holds the ranks
    pairwise: bool = False  # the label is a list: of answers 1 and 2, 1 and 3, ... 2 and 3 ...
    notes: dict[str, str] = {}  # note -> column: comment, seconds, created_at, batch ... (docs/formats.md)
    ratings: dict[str, list[str]] = {}  # rubric -> one column for each answer

    @field_validator("means", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`1: [0, 1]` for `1: {ranks: [0, 1]}`; labels are compared as text."""
        if not isinstance(value, dict):
            return value
        return {str(key): {"ranks": each} if isinstance(each, list) else each for key, each in value.items()}

    @model_validator(mode="after")
    def _together(self) -> ColumnMap:
        if (self.prompt is None) != (self.answers is None):
            raise ValueError("`prompt` and `answers` belong together; leave out both for labels of single items")
        if isinstance(self.label, list) and self.rater is not None:
            raise ValueError("several `label` columns are several raters: leave `rater` out")
        unknown = [name for name in self.notes if name not in NOTES]
        if unknown:
            raise ValueError(f"`notes`: {', '.join(unknown)} is no note; known are {', '.join(NOTES)}")
        if self.pairwise and self.means is None:
            raise ValueError("`pairwise` needs `means`: what each of the verdicts says of its two answers")
        if self.answers is None and self.item is None:
            raise ValueError("labels of single items need `item`, the column that says which item")
        return self

    def read(self, data: Data) -> list[Judgement]:
        """A row's judgements, one for each rater.

        Raises:
            RowError: an answer is empty, or a label has no meaning.
        """
        if self.prompt is None:
            raise RowError("the mapping tells of labels of single items, which compare nothing")
        answers = self._answers(data)
        asked = prompt(self._joined(data, self.prompt), {})
        found = []
        for cells, rater, label in self._labels(data):
            notes = {note: _cell(cells, column) for note, column in self.notes.items()}
            rated = {name: [_cell(cells, c) for c in columns] for name, columns in self.ratings.items()}
            told = {"item_id": self._item(data), **notes, "rater": rater, "ratings": rated}
            found += self._judgements(asked, answers, label, told)
        return found

    def _judgements(self, asked: Any, answers: tuple[Answer, ...], label: Any, told: dict[str, Any]) -> list[Judgement]:
        if self.pairwise:
            verdicts = as_list(label) or []
            pairs = list(itertools.combinations(answers, 2))
            if len(verdicts) != len(pairs):
                raise RowError(f"{len(answers)} answers make {len(pairs)} pairs, found {len(verdicts)} verdicts")
            judged = []
            for both, said in zip(pairs, verdicts, strict=True):
                judged.append(self._judgement(asked, both, said, {**told, "group_id": told["item_id"] or asked.key}))
            whole = ranking_of(judged)
            return judged if whole is None else [whole]
        return [self._judgement(asked, answers, label, told)]

    def _judgement(self, asked: Any, answers: tuple[Answer, ...], label: Any, told: dict[str, Any]) -> Judgement:
        verdict = self._verdict(label)
        if len(verdict.ranks) != len(answers):
            raise RowError(f"the label {label!r} ranks {len(verdict.ranks)} answers, there are {len(answers)}")
        said = {"strength": verdict.strength, "flags": dict.fromkeys(verdict.flags, True)}
        notes = read_notes({**said, **{name: cell for name, cell in told.items() if cell is not None}}, len(answers))
        return Judgement(asked, answers, verdict.tiers, **notes)

    def _verdict(self, label: Any) -> Verdict:
        if self.means is None:
            ranks = as_list(label)
            if not ranks or not all(isinstance(rank, int) for rank in ranks):
                raise RowError(f"the label must be a list of ranks, found {label!r}; or say what labels mean (`means`)")
            return Verdict(ranks=ranks)
        verdict = self.means.get(_text(label))
        if verdict is None:
            raise RowError(f"label {label!r} has no meaning; known are {', '.join(self.means)}")
        return verdict

    def votes(self, data: Data) -> tuple[list[Vote], dict[str, str]]:
        """A row's votes, with labels as they stand, and the true label of its item where that is known.

        Raises:
            RowError: the item is not named, or nobody said anything.
        """
        item = self._item(data)
        if item is None:
            raise RowError(f"{self.item or 'the item'} is empty")
        cast = []
        for _, rater, label in self._labels(data):
            if not self.pairwise:
                cast.append(Vote(item, rater, _text(label)))
                continue
            for place, said in enumerate(as_list(label) or []):
                cast.append(Vote(f"{item}:{place}", rater, _text(said)))
        if not cast:
            raise RowError("nobody said anything")
        gold = _cell(data, self.gold) if self.gold else None
        return cast, {item: _text(gold)} if gold not in (None, "") else {}

    def _labels(self, data: Data) -> list[tuple[Data, str, Any]]:
        """(cells to look in, rater, label) of everybody who said something."""
        if isinstance(self.label, list):
            given = [(data, column, _cell(data, column)) for column in self.label]
        elif self.each is not None:
            annotations = as_list(_cell(data, self.each))
            if annotations is None or not all(isinstance(each, Mapping) for each in annotations):
                raise RowError(f"{self.each} must be a list of objects")
            rows = [{**data, **each} for each in annotations]
            given = [(row, _text(_cell(row, self.rater)) if self.rater else "", _cell(row, self.label)) for row in rows]
        else:
            rater = _text(_cell(data, self.rater)) if self.rater else ""
            given = [(data, rater, _cell(data, self.label))]
        return [each for each in given if each[2] not in (None, "")]

    def _answers(self, data: Data) -> tuple[Answer, ...]:
        if isinstance(self.answers, str):
            cells = as_list(_cell(data, self.answers)) or []
        else:
            cells = [_cell(data, column) for column in self.answers or []]
        if len(cells) < 2:
            raise RowError(f"a comparison needs two or more answers, found {len(cells)}")
        models = [_cell(data, column) for column in self.models] or [None] * len(cells)
        if len(models) != len(cells):
            raise RowError(f"{len(cells)} answers of {len(models)} models")
        names = self.answers if isinstance(self.answers, list) else [f"answer {n}" for n in range(1, len(cells) + 1)]
        return tuple(
            answer(cell, name, model=model if isinstance(model, str) else None)
            for cell, name, model in zip(cells, names, models, strict=True)
        )

    def _joined(self, data: Data, columns: Columns) -> Any:
        if isinstance(columns, str):
            return _cell(data, columns)
        cells = [_cell(data, column) for column in columns]
        return "\n\n".join(_text(cell) for cell in cells if cell not in (None, ""))

    def _item(self, data: Data) -> str | None:
        names = [self.item] if isinstance(self.item, str) else self.item or []
        cells = [_cell(data, name) for name in names]
        return " ".join(map(_text, cells)) if cells and all(cell not in (None, "") for cell in cells) else None


def load_mapping(name: str | Path) -> ColumnMap:
    """A mapping from a YAML file, or one of those that come with the package (`KNOWN`).

    Raises:
        ConfigError: no such file or mapping, or one that does not fit; names what is wrong.
    """
    path = Path(name)
    source = _MAPS / f"{name}.yaml" if str(name) in KNOWN else path
    try:
        given = yaml.safe_load(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: no such mapping; give a YAML file, or one of {', '.join(KNOWN)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{name}: cannot be read as YAML: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(
            f"{name}: a mapping is `key: value` lines; known keys are {', '.join(ColumnMap.model_fields)}"
        )
    try:
        return ColumnMap.model_validate(given)
    except ValidationError as error:
        wrong = [f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()]
        known = f"; known keys are {', '.join(ColumnMap.model_fields)}"
        raise ConfigError(f"{name}: {'; '.join(wrong).replace('Value error, ', '')}{known}") from error


def _cell(data: Data, name: str | None) -> Any:
    """A column, or what a dotted name finds inside one."""
    if name is None or name in data:
        return data.get(name) if name else None
    column, _, rest = name.partition(".")
    inner = as_object(data.get(column))
    return _cell(inner, rest) if rest and inner is not None else None


def _text(value: Any) -> str:
    """A cell as text; 2.0 and 2 are the same label."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
