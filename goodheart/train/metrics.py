"""Reading metrics.jsonl, drawing it, and handing it to TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from goodheart.errors import ConfigError, RunError

# Fields that differ between two equal runs.
CLOCK_FIELDS = frozenset({"time", "timing"})
# Curves drawn together, in the order drawn; a plot without data is left out.
PLOTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("loss", "nats per token", ("loss", "eval/loss")),
    ("accuracy", "share of pairs", ("rewards/accuracies", "eval/accuracy")),
    ("margins", "reward", ("rewards/margins", "eval/margins")),
    ("scores", "score per answer", ("objective/scores", "objective/rlhf_reward", "audit/score")),
    ("kl", "nats per answer", ("objective/kl",)),
    ("entropy", "nats per token", ("policy/entropy_avg",)),
    ("lengths", "tokens", ("completions/mean_length",)),
    ("policy", "share or nats", ("policy/clipfrac_avg", "policy/approxkl_avg")),
    ("value", "", ("loss/value_avg", "critic/vf_explained_var")),
    ("gradient norm", "before clipping", ("grad_norm",)),
    ("learning rate", "", ("learning_rate",)),
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every logged step, in order. A last line torn by a kill is left out.

    Args:
        path: a run folder, or its metrics.jsonl.

    Raises:
        RunError: there is no such file, or a line other than the last is damaged.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}; is this a run folder?") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise RunError(f"{file}:{number}: not a line of JSON: {error}") from error
    return rows


def series(path: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; NaN where it was not finite. Empty when it was never logged.

    Args:
        path: a run folder, or its metrics.jsonl.
        name: metric, `time/...` ones too.
    """
    return _series(read_metrics(path), name)


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what the clock says: equal for two runs that computed the same."""
    return [{name: value for name, value in row.items() if name not in CLOCK_FIELDS} for row in rows]


def plot_run(run_path: Path) -> list[Path]:
    """Draws the key curves of a run into `plots/overview.svg` and `.png`.

    Returns:
        The files written; none when nothing was logged.
    """
    rows = read_metrics(run_path)
    drawn = [(title, unit, curves) for title, unit, names in PLOTS if (curves := _curves(rows, names))]
    if not drawn:
        return []
    # The object interface draws without a window and without touching the caller's matplotlib settings.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(drawn))
    figure = Figure(figsize=(4.5 * columns, 3 * math.ceil(len(drawn) / columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, unit, curves) in enumerate(drawn, start=1):
        axes = figure.add_subplot(math.ceil(len(drawn) / columns), columns, index)
        for name, (steps, values) in curves.items():
            axes.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 30 else None)
        axes.set(title=title, xlabel="step", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    folder = run_path / "plots"
    folder.mkdir(exist_ok=True)
    files = [folder / "overview.svg", folder / "overview.png"]
    for file in files:
        figure.savefig(file, dpi=120)
    return files


def tensorboard_tracker(folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    """A tracker for `run.trackers` that writes TensorBoard files into `folder`.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard is not installed; install goodheart[track]") from error
    writer = SummaryWriter(str(folder))

    def track(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track


def _curves(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, tuple[list[int], list[float]]]:
    found = {name: _series(rows, name) for name in names}
    return {name: curve for name, curve in found.items() if curve[0]}


def _series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    steps, values = [], []
    for row in rows:
        where = row if name in row else row.get("timing", {})
        if name in where:
            steps.append(int(row["step"]))
            values.append(math.nan if where[name] is None else float(where[name]))
    return steps, values
