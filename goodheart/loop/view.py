"""What a person sees of plans and results on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from goodheart.loop.pipeline import Pipeline, Plan
from goodheart.train.run import Run

_console = Console(soft_wrap=True, highlight=False, markup=False)


def show_plan(plans: list[Plan]) -> None:
    """Each stage, whether it runs, and why."""
    table = Table("stage", "", "why", box=None, pad_edge=False)
    for plan in plans:
        table.add_row(plan.step.name, "run" if plan.runs else "skip", plan.reason)
    _console.print(table)


def show_run(run: Run) -> None:
    """Results of a finished run and where its model lies."""
    _console.print(_results(run.results))
    if run.model_dir.is_dir():
        _console.print(f"model written to {run.model_dir}")


def show_results(pipeline: Pipeline) -> None:
    """The main results of every stage that has some."""
    for step in pipeline.steps:
        file = Path(step.output) / "results.json"
        if file.is_file():
            _console.print(f"\n{step.name}  ({step.output})")
            _console.print(_results(json.loads(file.read_text(encoding="utf-8"))))


def _results(results: dict[str, Any]) -> Table:
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for name, value in results.items():
        if isinstance(value, dict | list):
            continue  # details are for results.json and the report
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
