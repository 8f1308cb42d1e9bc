"""What a run cost: time, tokens, and an estimate of energy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from goodheart.evaluate.runs import RunRecord

# Assumed power of the whole machine while it works, in watts. Measured values differ by half in either direction.
WATTS_CPU, WATTS_GPU = 100.0, 700.0  # a server's share of a CPU; one data-centre GPU with its share of the machine


@dataclass(frozen=True, slots=True)
class Cost:
    """One stage. Tokens are None where nobody counted."""

    name: str
    stage: str
    seconds: float | None
    trained_tokens: float | None
    sampled_tokens: float | None
    watts: float

    @property
    def watt_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.watts / 3600


def cost_of(run: RunRecord) -> Cost:
    """The cost of one stage, from its logs."""
    start = (run.lineage.get("starts") or [{}])[-1]
    # a process works on one GPU, however many the machine has
    gpus = min(len(start.get("hardware", {}).get("gpus", [])), int(start.get("processes", 1)))
    used = gpus if str(run.settings.get("device", "auto")) != "cpu" else 0
    watts = WATTS_GPU * used if used else WATTS_CPU
    return Cost(run.name, run.stage, run.seconds, _trained(run), _sampled(run), watts)


def _trained(run: RunRecord) -> float | None:
    """Tokens that losses were taken on."""
    counted = [row["tokens"] for row in run.metrics if isinstance(row.get("tokens"), int | float)]
    if not counted:
        return None
    return sum(counted) * _every(run, len(counted))


def _every(run: RunRecord, logged: int) -> float:
    """Steps per logged one: those that are not logged count like the others."""
    return float(run.metrics[-1].get("step", logged)) / logged


def _sampled(run: RunRecord) -> float | None:
    """Tokens that the model wrote: of the answer file, or of all rollouts."""
    if run.path.is_file() and run.stage == "sample":
        return _in_file(run.path)
    batch = run.settings.get("batch_size")
    lengths = [row["completions/mean_length"] for row in run.metrics if row.get("completions/mean_length") is not None]
    return sum(lengths) * _every(run, len(lengths)) * batch if lengths and isinstance(batch, int) else None


def _in_file(path: Path) -> float | None:
    if path.suffix != ".jsonl":
        return None
    total, seen = 0.0, False
    with path.open(encoding="utf-8") as file:
        for line in file:
            tokens = json.loads(line).get("tokens")
            if isinstance(tokens, list):
                total, seen = total + sum(t for t in tokens if isinstance(t, int | float)), True
    return total if seen else None
