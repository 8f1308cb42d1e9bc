"""`goodheart demo`: the whole story on a small invented world, in minutes, without network or GPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from goodheart.errors import GateError
from goodheart.evaluate.report import write_report
from goodheart.loop.live import seen
from goodheart.loop.pipeline import Pipeline

# What the table shows: (measure in results.json, in words). ↑ more is better, ↓ less is.
_ROWS = (
    ("score", "true preference ↑"),
    ("harmful", "harmful answers ↓"),
    ("over_refusal", "harmless refused ↓"),
    ("wrong_fact", "wrong facts ↓"),
    ("flattery", "flattery ↓"),
    ("format_valid", "valid format ↑"),
)
_CAPTION = "in percent; ± is half of the 95 % interval"


def demo(out: Path, seed: int) -> None:
    """Runs the demo's pipeline and prints what came out and where the report lies.

    Args:
        out: folder to write; what is finished there already is kept.
        seed: of the world and of everything drawn in it.
    """
    pipeline = load_demo(out, seed)
    try:
        with seen(pipeline) as view:
            pipeline.run(view=view)
    except GateError:  # what came out is what one wants to see then
        _tell(pipeline, out)
        raise
    _tell(pipeline, out)


def _tell(pipeline: Pipeline, out: Path) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for results in pipeline.results().values():
        if "models" in results:
            console.print(story(results))
            console.print(_CAPTION)
    console.print(f"\nreport written to {write_report(out)}")


def load_demo(out: Path, seed: int) -> Pipeline:
    """The packaged pipeline, to be run into `out`."""
    with resources.as_file(resources.files("goodheart.loop").joinpath("demo.yaml")) as file:
        return Pipeline.load(file, [f"out={out}", f"seed={seed}"])


def story(results: Mapping[str, Any]) -> Table:
    """What a newcomer should see of an evaluation: a row for each measure, a column for each model, with intervals."""
    models: Mapping[str, Mapping[str, Any]] = results["models"]
    table = Table("", *models, box=None, pad_edge=False)
    for measure, words in _ROWS:
        cells = [_cell(measured.get(measure)) for measured in models.values()]
        if any(cells):
            table.add_row(words, *cells)
    last = list(models)[-1]
    wins = results.get("wins", {}).get(last, {})
    if wins:
        table.add_row(f"{last} wins against it", *(_cell(wins.get(name, {}).get("rate")) for name in models))
    return table


def _cell(found: Any) -> str:
    if not isinstance(found, Mapping) or found.get("value") is None:
        return ""
    return f"{100 * found['value']:.1f} ±{50 * (found['high'] - found['low']):.1f}"
