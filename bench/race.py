"""Contenders run the same job in turns, each in a process of its own; what they measured becomes tables of ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from bench.ratios import Ratio

_ROOT = Path(__file__).parents[1]

Run = dict[str, Any]  # what one process reported
Results = dict[str, list[Run]]  # contender -> its runs, one a round
Quantities = Mapping[str, Callable[[Run], float]]


@dataclass(frozen=True)
class Contender:
    """One way to run the job: a module, the interpreter that has what it needs, and settings of its own."""

    name: str
    module: str
    python: Path
    changes: dict[str, Any] = field(default_factory=dict)
    packages: Sequence[Path] = ()  # folders that packages are looked for in first


def race(contenders: Sequence[Contender], job: Mapping[str, Any], folder: Path, rounds: int) -> tuple[Results, str]:
    """Every contender once a round, in turns. -> what each reported, and how busy the machine was meanwhile.

    job: settings of the job, `threads` among them; a contender's own go over them. folder: for settings and results.
    """
    results: Results = {contender.name: [] for contender in contenders}
    loads: list[float] = []
    for turn in range(rounds):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            loads.append(machine.load())
            own = folder / f"{contender.name.replace(' ', '-')}-{turn}"
            results[contender.name].append(_run(contender, {**job, **contender.changes}, own))
            print(
                f"round {turn + 1}: {contender.name} {step_seconds(results[contender.name][-1]):.3f} s", file=sys.stderr
            )
    return results, f"{min(loads):.1f}-{max(loads):.1f}"


def _run(contender: Contender, settings: dict[str, Any], own: Path) -> Run:
    threads = str(settings["threads"])
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": os.pathsep.join([*map(str, contender.packages), os.environ.get("PYTHONPATH", "")]),
    }
    told, result = own.with_suffix(".settings.json"), own.with_suffix(".json")
    told.write_text(json.dumps(settings), encoding="utf-8")
    command = [str(contender.python), "-m", contender.module, str(told), str(result), repr(time.time())]
    ended = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{contender.name} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return json.loads(result.read_text(encoding="utf-8"))


def step_seconds(run: Run) -> float:
    """Median over the steps after the first."""
    return statistics.median(run["step_seconds"])


QUANTITIES: Quantities = {
    "step, s": step_seconds,
    "step, processor s": lambda run: statistics.median(run["step_cpu_seconds"]),
    "process start to end of first step, s": lambda run: run["first_step_seconds"],
    "the same, processor s": lambda run: run["first_step_cpu_seconds"],
    "peak memory, MiB": lambda run: run["peak_mib"],
}


def table(
    head: str, results: Results, us: str, peers: Sequence[str], quantities: Quantities = QUANTITIES
) -> Iterator[str]:
    """Medians over the rounds, and how many times less `us` needs than each peer (lowest and highest round)."""
    times = ["times less"] if len(peers) == 1 else [f"times less than {peer}" for peer in peers]
    heads = [head, *peers, us, *times]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for name, quantity in quantities.items():
        ours = [quantity(run) for run in results[us]]
        theirs = [[quantity(run) for run in results[peer]] for peer in peers]
        values = [f"{statistics.median(each):.4g}" for each in [*theirs, ours]]
        yield f"| {' | '.join([name, *values, *(str(Ratio.of(each, ours)) for each in theirs)])} |"


def split_table(results: Results) -> Iterator[str]:
    """Where a step's seconds go, for contenders that tell."""
    for name, runs in results.items():
        if not runs[0].get("split"):
            continue
        whole = statistics.median(step_seconds(run) for run in runs)
        spent = {part: statistics.median(run["split"][part] for run in runs) for part in runs[0]["split"]}
        parts = ", ".join(f"{part} {seconds:.2f} ({seconds / whole:.0%})" for part, seconds in spent.items())
        yield f"- {name}: {parts} of {whole:.2f} s"
