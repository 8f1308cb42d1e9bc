"""A PPO step of goodheart beside one of TRL: time, memory, start-up, on the same model, data and settings.

    python -m bench ppo --sizes 1M 5M --rounds 5

Each round runs every contender once, in a process of its own, in turns. TRL (the last version that has PPO) is
installed in a throw-away environment. What must be equal for a fair race is checked and printed; where it is not, the
exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import environments, machine, ppo_job
from bench.ratios import Ratio

TRL = {"torch": "2.13.0", "trl": "1.12.0", "transformers": "5.23.0"}
_ROOT = Path(__file__).parents[1]


class Contender(NamedTuple):
    """One way to run the job. name: also that of its module, bench/ppo_NAME.py."""

    name: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}"


Results = dict[Contender, list[dict[str, Any]]]


def main() -> int:
    """Prints the tables; 1 where the contenders did not do the same work."""
    a = _arguments()
    peer_python = environments.python_with(a.environments / "trl", TRL)
    dtypes = a.dtypes or (["float32", "bfloat16"] if machine.multiplies_bfloat16() else ["float32"])
    contenders = [Contender(name, dtype) for dtype in dtypes for name in ("trl", "goodheart")]
    pythons = {"trl": peer_python, "goodheart": Path(sys.executable)}
    print(f"trl {TRL['trl']} against goodheart; {machine.describe(a.threads)}")
    everything, same = [], True
    for size in a.sizes:
        loads: list[float] = []
        results = _race(a, size, contenders, pythons, loads)
        print(f"\n## {size}, {a.rounds} rounds of {a.steps} steps, load {min(loads):.1f}-{max(loads):.1f}\n")
        for dtype in dtypes:
            print("\n".join([*_table(results, dtype), ""]))
        print("\n".join([*_split_table(results), ""]))
        for fine, text in _same_work(results, a):
            same &= fine
            print(f"{'same' if fine else 'NOT THE SAME'}: {text}")
        everything.append({"size": size, "loads": loads, "runs": {str(c): runs for c, runs in results.items()}})
    if a.json:
        about = {"machine": machine.describe(a.threads), "arguments": vars(a), "sizes": everything}
        a.json.write_text(json.dumps(about, default=str, indent=1), encoding="utf-8")
    return 0 if same else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "5M"], choices=ppo_job.SIZES)
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], help="default: what this CPU is good at"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="PPO steps per process; the first is start-up, not speed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--mini-batches", type=int, default=1, help="optimizer steps per pass over the batch")
    parser.add_argument("--environments", type=Path, default=environments.default_folder(), help="where peers live")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    a = parser.parse_args()
    if a.steps < 2:
        parser.error("--steps must be at least 2")
    return a


def _race(
    a: argparse.Namespace, size: str, contenders: list[Contender], pythons: dict[str, Path], loads: list[float]
) -> Results:
    results: Results = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory(prefix="goodheart-bench-") as folder:
        work = Path(folder)
        job = ppo_job.Settings(folder, size, "float32", a.threads, a.steps, mini_batches=a.mini_batches)
        rows = ppo_job.build(
            work, size, batch_size=job.batch_size, prompt_tokens=job.prompt_tokens, new_tokens=job.new_tokens,
            seed=job.seed,
        )  # fmt: skip
        for turn in range(a.rounds):
            for contender in contenders if turn % 2 == 0 else reversed(contenders):
                loads.append(machine.load())
                settings = job.with_(dtype=contender.dtype, fixed_rows=rows).write(work / "settings.json")
                result = work / f"{contender.name}-{contender.dtype}-{turn}.json"
                results[contender].append(_run(contender, pythons[contender.name], settings, result, a.threads))
                print(f"round {turn + 1}: {contender} {_step(results[contender][-1]):.3f} s", file=sys.stderr)
    return results


def _run(contender: Contender, python: Path, settings: Path, result: Path, threads: int) -> dict[str, Any]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    command = [str(python), "-m", f"bench.ppo_{contender.name}", str(settings), str(result), repr(time.time())]
    ended = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{contender} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return json.loads(result.read_text(encoding="utf-8"))


def _step(run: dict[str, Any]) -> float:
    return statistics.median(run["step_seconds"])


def _table(results: Results, dtype: str) -> Iterator[str]:
    """Medians over the rounds, and how many times less goodheart needs (with the lowest and highest round)."""
    peer, us = results[Contender("trl", dtype)], results[Contender("goodheart", dtype)]
    wide = dtype != "float32" and Contender("trl", "float32") in results
    others = results[Contender("trl", "float32")] if wide else []
    heads = [dtype, "TRL", "goodheart", "times less", *["times less than TRL float32"] * wide]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for name, quantity in _QUANTITIES.items():
        theirs, ours = ([quantity(run) for run in side] for side in (peer, us))
        cells = [
            name,
            f"{statistics.median(theirs):.4g}",
            f"{statistics.median(ours):.4g}",
            str(Ratio.of(theirs, ours)),
        ]
        if wide:
            cells.append(str(Ratio.of([quantity(run) for run in others], ours)))
        yield f"| {' | '.join(cells)} |"


_QUANTITIES: dict[str, Callable[[dict[str, Any]], float]] = {
    "step, s": _step,
    "step, processor s": lambda run: statistics.median(run["step_cpu_seconds"]),
    "process start to end of first step, s": lambda run: run["first_step_seconds"],
    "the same, processor s": lambda run: run["first_step_cpu_seconds"],
    "peak memory, MiB": lambda run: run["peak_mib"],
}


def _split_table(results: Results) -> Iterator[str]:
    """Where a step's seconds go. TRL's `score` is scores and values, its `reference` the pass of the reference."""
    for contender, runs in results.items():
        names = runs[0]["split"]
        spent = {name: statistics.median(run["split"][name] for run in runs) for name in names}
        whole = statistics.median(_step(run) for run in runs)
        parts = ", ".join(f"{name} {seconds:.2f} ({seconds / whole:.0%})" for name, seconds in spent.items())
        yield f"- {contender}: {parts} of {whole:.2f} s"


def _same_work(results: Results, a: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    """What both sides report about the work they did."""
    job = ppo_job.Settings("", "", "", a.threads, a.steps, mini_batches=a.mini_batches)
    tokens = [job.batch_size * job.new_tokens] * job.steps
    updates = job.ppo_epochs * job.mini_batches * job.steps
    for (peer, theirs), (us, ours) in _pairs(results):
        loose = 1.0 if us.dtype == "float32" else 10.0  # rounding of the dtype
        runs = [*theirs, *ours]
        counts = {
            f"{job.prompt_tokens} tokens in every prompt": all(r["prompt_tokens"] == [job.prompt_tokens] for r in runs),
            f"{tokens[0]} tokens sampled in every step": all(r["new_tokens"] == tokens for r in runs),
            f"{updates} optimizer steps in {job.steps} PPO steps": all(r["updates"] == updates for r in runs),
        }
        yield from ((fine, f"{us.dtype}: {text}") for text, fine in counts.items())
        for name, limit in (("fixed_scores", 1e-4), ("fixed_logps", 1e-3)):
            apart = max(abs(x - y) for x, y in zip(theirs[0][name], ours[0][name], strict=True))
            yield apart < limit, f"{us.dtype}: {name.replace('_', ' ')} of 8 fixed rows, largest difference {apart:.1e}"
        change = [statistics.median(r["weight_change"] for r in side) for side in (ours, theirs)]
        moved = change[0] / change[1]
        yield 0.8 < moved < 1.25, f"{us.dtype}: the policy's weights moved {moved:.2f} times as far as TRL's"
        for name, limit in _FIRST_STEP.items():
            x, y = (statistics.mean(r["first"][name] for r in side) for side in (theirs, ours))
            fine = abs(x - y) <= limit * loose and math.isfinite(y)
            yield fine, f"{us.dtype}: first step, {name}: {peer.name} {x:.4f}, {us.name} {y:.4f}"


# Largest difference of a metric of the first step. The samplers draw different tokens, so scores and losses differ by
# the error of a mean over 32 answers (scores have a standard deviation near 0.7).
_FIRST_STEP = {
    "objective/kl": 0.01,
    "objective/scores": 0.5,
    "objective/entropy": 6.0,
    "loss/policy_avg": 0.005,
    "loss/value_avg": 0.05,
    "policy/clipfrac_avg": 0.005,
    "val/ratio": 0.005,
}


def _pairs(results: Results) -> Iterator[tuple[tuple[Contender, list[Any]], tuple[Contender, list[Any]]]]:
    for contender, runs in results.items():
        if contender.name != "trl":
            peer = Contender("trl", contender.dtype)
            yield (peer, results[peer]), (contender, runs)


if __name__ == "__main__":
    sys.exit(main())
