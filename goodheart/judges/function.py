"""A plain Python function as a judge: `reward(prompts, completions, **columns) -> list[float | None]`, as in TRL."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

from goodheart.data.records import Answer, Prompt
from goodheart.errors import ConfigError, DataError

F = TypeVar("F", bound=Callable[..., Any])


class FunctionJudge:
    """Calls the user's function; `None` means it has no opinion on that answer.

    options: further arguments of every call; a column of the data with the name of one is not passed on.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[float | None]],
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", "reward")
        self.options = dict(options or {})
        self._reads_columns = getattr(function, "reads_columns", True)

    def score(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        on_refusal: Callable[[int, str], None] | None = None,
    ) -> list[float | None]:
        """Scores as the function gives them; it gives no reasons for a None, so `on_refusal` is never called.

        Raises:
            DataError: it returns another number of scores, or something that is not a finite number or None.
        """
        scores = self.call(prompts, answers)
        return [self._number(score, i) for i, score in enumerate(scores)]

    def call(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[Any]:
        """What the function returns, one value per answer, whatever it is; the prompts' other columns go with them.

        About no answers it is not asked: without prompts there are no columns, which it may need.

        Raises:
            DataError: the function fails, or returns another number of values.
        """
        if not answers:
            return []
        asked = [p.as_column() for p in prompts]
        said = [
            [m.as_dict() for m in a.turns()] if p.is_chat else a.text for p, a in zip(prompts, answers, strict=True)
        ]
        names = {name for p in prompts for name in p.meta if self._reads_columns}
        names -= {"prompts", "completions", *self.options}
        columns = {name: [p.meta.get(name) for p in prompts] for name in sorted(names)}
        try:
            found = list(self.function(prompts=asked, completions=said, **columns, **self.options))
        except Exception as error:
            raise DataError(f"reward function {self.name} failed: {type(error).__name__}: {error}") from error
        if len(found) != len(answers):
            raise DataError(f"reward function {self.name}: {len(found)} scores for {len(answers)} completions")
        return found

    def _number(self, score: Any, index: int) -> float | None:
        if score is None:
            return None
        try:
            value = float(score)
        except (TypeError, ValueError) as error:
            raise DataError(f"reward function {self.name}: score {index} is {score!r}, not a number or None") from error
        if not math.isfinite(value):
            raise DataError(f"reward function {self.name}: score {index} is {value}; return a finite number or None")
        return value


def without_columns(function: F) -> F:
    """Marks a function that judges answers by themselves: columns of the data are never passed as its options."""
    setattr(function, "reads_columns", False)  # noqa: B010 - a plain assignment is unknown to the type checker
    return function


def import_function(path: str) -> Callable[..., Any]:
    """The function named `package.module:function`; the current folder is searched too.

    Raises:
        ConfigError: the module or the function does not exist.
    """
    module, name = _module_of(path)
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        found = [n for n in own if not n.startswith("_")]
        raise ConfigError(
            f"reward {path}: `{module.__name__}` has no function `{name}`; it has {', '.join(found) or 'none'}"
        )
    return function


def import_method(path: str, method: str) -> Callable[..., Any] | None:
    """The method of an object named `package.module:object`; None where it has none of that name.

    Raises:
        ConfigError: the module does not exist.
    """
    module, name = _module_of(path)
    found = getattr(getattr(module, name, None), method, None)
    return found if callable(found) else None


def _module_of(path: str) -> tuple[ModuleType, str]:
    module_name, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # last: a file here must not shadow a package
    try:
        return importlib.import_module(module_name), name
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"reward {path}: cannot import module `{module_name}`: {error}") from error
