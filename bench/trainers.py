"""Steps of goodheart's stages beside TRL's trainers: time, memory, start-up, on the same model, data and settings.

    python -m bench trainers --tasks sft reward dpo kto grpo rloo --sizes 1M --rounds 5

Each round runs every contender once, in a process of its own, in turns. TRL is installed in a throw-away environment.
What must be equal for a fair race is checked first; where it is not, no ratio is printed and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bench import environments, machine, roofline, tiny
from bench.race import QUANTITIES, Contender, Results, race, split_table, table
from bench.ratios import Ratio
from bench.trainers_checks import same_work
from bench.trainers_job import LEARNS_FROM, Settings, build
from bench.trainers_work import Step, step_of

TRL = {"torch": "2.13.0", "trl": "1.16.0", "transformers": "5.23.0"}
ENVIRONMENT = "trl-latest"
_CACHED = ("dpo", "kto")  # a reference whose log-probabilities can be computed beforehand


def main() -> int:
    """Prints the tables; 1 where the contenders did not do the same work."""
    a = _arguments()
    peer_python = environments.python_with(a.environments / ENVIRONMENT, TRL)
    print(f"trl {TRL['trl']} against goodheart; {machine.describe(a.threads)}")
    peaks = machine.peaks(a.threads, [torch.float32])
    everything, same = [], True
    for size in a.sizes:
        for task in a.tasks:
            results, load, job, work = _race(a, task, size, peer_python)
            print(f"\n## {task}, {size}, {a.rounds} rounds of {a.steps} steps, load {load}\n")
            checks = list(same_work(results, job))
            same &= (fine := all(each.fine for each in checks))
            if fine:
                peers = [name for name in results if name != "goodheart"]
                print("\n".join([*table("float32", results, "goodheart", peers), ""]))
                print("\n".join([*split_table(results), *_reference(results), *_reached(results, work, peaks), ""]))
            for check in checks:
                print(check)
            everything.append({"task": task, "size": size, "load": load, "runs": results})
    if a.json:
        about = {"machine": machine.describe(a.threads), "arguments": vars(a), "tasks": everything}
        a.json.write_text(json.dumps(about, default=str, indent=1), encoding="utf-8")
    return 0 if same else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(LEARNS_FROM), choices=LEARNS_FROM)
    parser.add_argument("--sizes", nargs="+", default=["1M"], choices=tiny.SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps per process; the first is start-up, not speed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--environments", type=Path, default=environments.default_folder(), help="where peers live")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    a = parser.parse_args()
    if a.steps < 2:
        parser.error("--steps must be at least 2")
    return a


def _race(a: argparse.Namespace, task: str, size: str, peer_python: Path) -> tuple[Results, str, Settings, Step]:
    contenders = [Contender("TRL", "bench.trainers_trl", peer_python)]
    if task in _CACHED:
        contenders.append(Contender("TRL precomputed", "bench.trainers_trl", peer_python, {"precomputed": True}))
    contenders.append(Contender("goodheart", "bench.trainers_goodheart", Path(sys.executable)))
    with tempfile.TemporaryDirectory(prefix="goodheart-bench-") as folder:
        job = Settings(task, folder, a.threads, a.steps)
        rows = build(job, size)
        return *race(contenders, asdict(job) | {"fixed_rows": rows}, Path(folder), a.rounds), job, step_of(job)


def _reached(results: Results, step: Step, peaks: roofline.Peaks) -> Iterator[str]:
    """How fast each contender was, and beside what the machine could do."""
    for name, runs in results.items():
        took, processor = (statistics.median(map(quantity, runs)) for quantity in list(QUANTITIES.values())[:2])
        yield roofline.reached(name, took, step.tokens, step.job, peaks, torch.float32, processor)


def _reference(results: Results) -> Iterator[str]:
    """What goodheart's only pass of the reference costs a step in a run of one epoch: there is one batch, so all of it.

    TRL's default pays for it in every step; TRL precomputed as we do.
    """
    for place, unit in enumerate(("s", "processor s")):
        passes = [run.get("reference_seconds", (0.0, 0.0))[place] for run in results["goodheart"]]
        if not any(passes):
            return
        quantity = list(QUANTITIES.values())[place]
        whole = [quantity(run) + once for run, once in zip(results["goodheart"], passes, strict=True)]
        ratio = Ratio.of([quantity(run) for run in results["TRL"]], whole)
        once = statistics.median(passes)
        yield f"- goodheart's reference passes once: {once:.3f} {unit}; a step with it: {ratio} less than TRL's"


if __name__ == "__main__":
    sys.exit(main())
