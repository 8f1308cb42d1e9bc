"""Scores per aspect from a user's function: `aspects(prompts, completions, **columns) -> list[dict[str, number]]`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from goodheart.data.records import Answer, Prompt
from goodheart.errors import ConfigError, DataError
from goodheart.judges.function import FunctionJudge, import_function
from goodheart.train.config import nearest

_RESERVED = ("prompt", "completions", "model", "score")  # columns of scored.jsonl; `score` is the deciding judge's


def aspects_of(path: str, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> dict[str, list[float | None]]:
    """aspect -> one value per answer, None where it does not apply; in the order the function gives them.

    Args:
        path: `package.module:function`.

    Raises:
        ConfigError: no such function.
        DataError: it fails, or gives something else than one dict of numbers and None per answer.
    """
    rows = FunctionJudge(import_function(path), name=path).call(prompts, answers)
    names: dict[str, None] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"aspects {path}: value {i} is {row!r}, not a dict of aspect -> number or None")
        names |= dict.fromkeys(str(name) for name in row if name not in _RESERVED)
    return {name: [_number(row.get(name), path, name, i) for i, row in enumerate(rows)] for name in names}


def check_names(lower_is_better: Sequence[str], aspects: Collection[str], *, unasked: Collection[str]) -> None:
    """Whether every aspect of which less is better is there.

    Args:
        lower_is_better: the setting.
        aspects: names that were given.
        unasked: names of the default, which nobody needs to have.

    Raises:
        ConfigError: one is not, and would count as better the more of it there is.
    """
    for name in lower_is_better:
        if name in aspects or name in unasked:
            continue
        raise ConfigError(f"lower_is_better: no aspect is named `{name}`{nearest(name, list(aspects))}")


def _number(value: Any, path: str, name: str, index: int) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise DataError(f"aspects {path}: `{name}` of answer {index} is {value!r}, not a finite number or None")
    return float(value)
