"""What a person sees of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from goodheart.loop.pipeline import Pipeline

if TYPE_CHECKING:
    from goodheart.train.run import Run

_console = Console(soft_wrap=True, highlight=False, markup=False)

# The results that say most, each shown where a stage has it.
_HEADLINES = (
    "accuracy",
    "always_longest",
    "agreement",
    "eval/accuracy",
    "eval/loss",
    "loss",
    "objective/scores",
    "objective/kl",
)
_MOST_HEADLINES = 3


def show(result: Any, written: str) -> None:
    """Whatever a stage's function returns: results and where they lie."""
    from goodheart.train.run import Run  # heavy, and here already: a stage has run

    if isinstance(result, Run):
        if result.main:  # one of several processes speaks
            show_run(result)
    elif hasattr(result, "summary"):
        _console.print(result.summary())
    else:
        if (Path(result) / "results.json").is_file():
            _console.print(results_table(_read(Path(result) / "results.json")))
        _console.print(f"{written} written to {result}")


def show_run(run: Run) -> None:
    """Results of a finished run and where its model lies."""
    _console.print(results_table(run.results))
    if run.model_dir.is_dir():
        _console.print(f"model written to {run.model_dir}")


def show_results(pipeline: Pipeline) -> None:
    """A line for every stage with its main results and where it lies; evaluations in whole."""
    results = pipeline.results()
    table = Table("stage", "", "in", box=None, pad_edge=False)
    for step in pipeline.steps:
        table.add_row(step.name, headlines(results.get(step.name, {})), str(step.output))
    _console.print(table)
    for name, found in results.items():
        if "models" in found:
            _console.print(f"\n{name}")
            _console.print(models_table(found["models"]))


def headlines(results: Mapping[str, Any]) -> str:
    """`accuracy 0.71  always_longest 0.55`: the few results that say most; of an evaluation, each model's score."""
    models = results.get("models")
    if isinstance(models, Mapping):
        return "  ".join(f"{name} {_measured(measured.get('score'))}" for name, measured in models.items())
    told = [(name, results[name]) for name in _HEADLINES if isinstance(results.get(name), int | float)]
    return "  ".join(f"{name.rsplit('/', 1)[-1]} {value:.4g}" for name, value in told[:_MOST_HEADLINES])


def results_table(results: Mapping[str, Any]) -> Table:
    """Every single value; details are for results.json and the report."""
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    models = results.get("models")
    if isinstance(models, Mapping):
        return models_table(models)
    for name, value in results.items():
        if not isinstance(value, dict | list):
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def models_table(models: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each measure, a column for each model; intervals are in results.json and the report."""
    measures = dict.fromkeys(name for measured in models.values() for name in measured)
    table = Table("", *models, box=None, pad_edge=False)
    for measure in measures:
        table.add_row(measure, *(_measured(measured.get(measure)) for measured in models.values()))
    return table


def _measured(found: Any) -> str:
    value = found.get("value") if isinstance(found, Mapping) else found
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
