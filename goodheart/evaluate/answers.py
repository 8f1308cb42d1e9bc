"""Answers of several models to the same prompts, as `goodheart sample` writes them, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodheart.data.cells import answer, prompt, spare
from goodheart.data.files import Row, read_rows
from goodheart.data.messages import RowError, as_list
from goodheart.data.records import Answer, Prompt
from goodheart.errors import DataError

# Columns that belong to the answers of a file, not to the prompt.
_OF_THE_ANSWERS = ("prompt", "completions", "models", "finish", "tokens", "settings", "scores", "ranks", "system")


@dataclass(frozen=True, slots=True)
class Answers:
    """The prompts that every file answers, in the order of the first file, and each model's answers to them."""

    prompts: list[Prompt]
    models: dict[str, list[list[Answer]]]  # name -> for each prompt its samples; `Answer.meta` has finish and tokens
    left_out: dict[str, int]  # name -> prompts of its file that another file does not answer

    @property
    def names(self) -> list[str]:
        return list(self.models)


def read_answers(files: Mapping[str, Path]) -> Answers:
    """Reads the files and keeps what can be compared.

    Args:
        files: name of a model -> rows {"prompt", "completions": [...], ...}, or {"prompt", "completion"}. Rows with the
            same prompt are taken together.

    Raises:
        DataError: a row has no prompt or no answers (names file and line), or no prompt is answered in every file.
    """
    read = {name: _read(file) for name, file in files.items()}
    shared = set.intersection(*(set(rows) for rows in read.values()))
    if not shared:
        listed = ", ".join(f"{name} ({files[name]}): {len(rows)} prompts" for name, rows in read.items())
        raise DataError(f"no prompt is answered in every file: {listed}; sample the models on the same prompts")
    first = next(iter(read.values()))
    keys = [key for key in first if key in shared]
    return Answers(
        [first[key][0] for key in keys],
        {name: [rows[key][1] for key in keys] for name, rows in read.items()},
        {name: len(rows) - len(keys) for name, rows in read.items()},
    )


def _read(file: Path) -> dict[str, tuple[Prompt, list[Answer]]]:
    found: dict[str, tuple[Prompt, list[Answer]]] = {}
    for row in read_rows(file):
        try:
            if row.error is not None:
                raise RowError(row.error)
            asked, said = _parse(row.data)
        except RowError as error:
            raise DataError(f"{_place(row)}: {error}; answers are written by `goodheart sample`") from error
        found.setdefault(asked.key, (asked, []))[1].extend(said)
    if not found:
        raise DataError(f"{file}: no rows")
    return found


def _place(row: Row) -> str:
    return f"{row.source}:{row.number}"


def _parse(data: Mapping[str, Any]) -> tuple[Prompt, list[Answer]]:
    listed = as_list(data.get("completions")) or ([data["completion"]] if data.get("completion") is not None else [])
    if not listed:
        raise RowError("the row has no `completions`")
    asked = prompt(data.get("prompt"), spare(data, "completion", *_OF_THE_ANSWERS), system=data.get("system"))
    notes: list[dict[str, Any]] = [{} for _ in listed]
    for name in ("finish", "tokens"):
        values = as_list(data.get(name)) or []
        for note, value in zip(notes, values, strict=False):
            note[name] = value
    said = []
    for number, (item, note) in enumerate(zip(listed, notes, strict=True), start=1):
        # models say nothing at times, which is an answer too
        one = Answer("") if item == "" else answer(item, f"answer {number}", to=data.get("prompt"))
        said.append(Answer(one.text, one.messages, one.model, {**one.meta, **note}))
    return asked, said
