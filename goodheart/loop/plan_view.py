"""What a person sees of a plan: plain text, because rich takes longer to import than the plan to make."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

from goodheart.loop.pipeline import Pipeline

_GAP = 2  # between columns
_LEAST = 24  # characters for the reason, on the narrowest terminal


def show_plan(pipeline: Pipeline, only: str | None = None) -> None:
    """Each stage, or `only` that one: whether it runs, and why; and which gates wait where."""
    print("\n".join(plan_lines(pipeline, only, shutil.get_terminal_size().columns)))


def plan_lines(pipeline: Pipeline, only: str | None, width: int) -> Iterator[str]:
    """The same as lines of at most so many characters, where the words are not longer than that."""
    rows = [("stage", "", "why"), *_rows(pipeline, only)]
    of_name, of_what = (_GAP + max(len(row[column]) for row in rows) for column in (0, 1))
    indent = " " * (of_name + of_what)
    for name, what, why in rows:
        yield textwrap.fill(
            why,
            max(width, len(indent) + _LEAST),
            initial_indent=f"{name:{of_name}}{what:{of_what}}",
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _rows(pipeline: Pipeline, only: str | None) -> Iterator[tuple[str, str, str]]:
    names = [step.name for step in pipeline.steps]
    for plan in pipeline.plan(only):
        yield plan.step.name, "run" if plan.runs else "skip", plan.reason
        for gate in pipeline.gates:
            if max(gate.stages, key=names.index) == plan.step.name:
                yield "", "gate", gate.text
