"""What lies in a run folder or in the output of a pipeline, read for the report. Nothing in it needs to be there."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from goodheart.errors import RunError
from goodheart.train.metrics import read_metrics

# What an evaluation by another version of goodheart may lack.
_ABSENT: dict[str, Any] = {
    "judge": "",
    "left_out": {},
    "lower_is_better": [],
    "yes_no": ["harmful", "over_refusal", "wrong_fact", "format_valid", "flattery"],  # what the playground asks
    "unit_interval": [],
    "differences": {},
    "leaderboard": [],
    "tics_changed": [],
    "by_kind": {},
    "by_language": {},
    "examples": [],
}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One stage: a run folder, or a single file with what the pipeline noted of it."""

    name: str
    path: Path
    stage: str
    done: bool
    settings: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    audit: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """Its results where it is an evaluation."""
        return _ABSENT | self.results if self.stage == "evaluate" and self.results.get("models") else None


@dataclass(frozen=True, slots=True)
class Story:
    """A run, or all stages of a pipeline in order, with the gates it had to pass."""

    name: str
    path: Path
    runs: list[RunRecord]
    gates: dict[str, dict[str, Any]]

    @property
    def evaluated(self) -> RunRecord | None:
        """The run of the last evaluation among them."""
        return next((run for run in reversed(self.runs) if run.evaluation is not None), None)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The results of the last evaluation among them."""
        return None if self.evaluated is None else self.evaluated.evaluation


def read_story(target: Path) -> Story:
    """Reads a run folder or a pipeline's folder.

    Raises:
        RunError: it is neither, or a file in it is damaged.
    """
    target = target.expanduser()
    if not target.is_dir():
        raise RunError(f"{target}: no such folder; give a run folder or the `out` folder of a pipeline")
    if (target / "lineage.json").is_file():
        return Story(target.resolve().name, target, [_run(target, target.resolve().name, {})], {})
    noted = _json(target / "pipeline.json")
    stages: dict[str, Any] = {**noted.get("begun", {}), **noted.get("done", {})}
    runs = [_staged(target, name, note, name in noted.get("done", {})) for name, note in stages.items()]
    named = {run.path.name for run in runs}
    others = [p for p in target.iterdir() if (p / "lineage.json").is_file() and p.name not in named]
    runs += sorted((_run(folder, folder.name, {}) for folder in others), key=_started)  # made by hand
    if not runs:
        raise RunError(f"{target}: neither a run folder nor the `out` folder of a pipeline (it holds no runs)")
    order = list(noted.get("begun", {})) if noted else []
    runs.sort(key=lambda run: order.index(run.name) if run.name in order else len(order))
    return Story(target.resolve().name, target, runs, noted.get("gates", {}))


def _staged(folder: Path, name: str, note: dict[str, Any], done: bool) -> RunRecord:
    """A stage of a pipeline by what was noted of it; its output may have moved with the folder."""
    out = Path(str(note.get("settings", {}).get("out", folder / name)))
    path = next((p for p in (folder / out.name, out) if p.exists()), folder / out.name)
    if (path / "lineage.json").is_file():
        return _run(path, name, note)
    seconds = note.get("made", {}).get("seconds")
    settings, results = note.get("settings", {}), note.get("results", {})
    return RunRecord(name, path, str(note.get("stage", name)), done, settings, {}, results, seconds=seconds)


def _run(path: Path, name: str, note: dict[str, Any]) -> RunRecord:
    lineage, results = _json(path / "lineage.json"), _json(path / "results.json")
    metrics = read_metrics(path) if (path / "metrics.jsonl").is_file() else []
    seconds = note.get("made", {}).get("seconds") or results.get("seconds")
    return RunRecord(
        name,
        path,
        str(lineage.get("stage", note.get("stage", name))),
        (path / "DONE").is_file(),
        _settings(path),
        lineage,
        results,
        metrics,
        _lines(path / "audit.jsonl"),
        float(seconds) if isinstance(seconds, int | float) else None,
    )


def _started(run: RunRecord) -> str:
    starts = run.lineage.get("starts") or [{}]
    return str(starts[0].get("time", ""))


def _settings(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, yaml.YAMLError):
        found = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}; remove it, or run its stage again") from error
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line torn by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
