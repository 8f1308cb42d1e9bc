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
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bench import environments, machine, ppo_job, roofline, tiny
from bench.race import QUANTITIES, Contender, Results, race, split_table, table

TRL = {"torch": "2.13.0", "trl": "1.12.0", "transformers": "5.23.0"}


def main() -> int:
    """Prints the tables; 1 where the contenders did not do the same work."""
    a = _arguments()
    peer_python = environments.python_with(a.environments / "trl", TRL)
    dtypes = a.dtypes or (["float32", "bfloat16"] if machine.multiplies_bfloat16() else ["float32"])
    pythons = {"trl": peer_python, "goodheart": Path(sys.executable)}
    contenders = [
        Contender(f"{name} {dtype}", f"bench.ppo_{name}", pythons[name], {"dtype": dtype})
        for dtype in dtypes
        for name in ("trl", "goodheart")
    ]
    print(f"trl {TRL['trl']} against goodheart; {machine.describe(a.threads)}")
    peaks = machine.peaks(a.threads, [getattr(torch, dtype) for dtype in dtypes])
    everything, same = [], True
    for size in a.sizes:
        results, load, jobs = _race(a, size, contenders)
        print(f"\n## {size}, {a.rounds} rounds of {a.steps} steps, load {load}\n")
        for dtype in dtypes:
            peers = list(dict.fromkeys([f"trl {dtype}", f"trl {dtypes[0]}"]))
            print("\n".join([*table(dtype, results, f"goodheart {dtype}", peers), ""]))
        print("\n".join([*split_table(results), *_reached(results, jobs, peaks), ""]))
        for fine, text in _same_work(results, a):
            same &= fine
            print(f"{'same' if fine else 'NOT THE SAME'}: {text}")
        everything.append({"size": size, "load": load, "runs": results})
    if a.json:
        about = {"machine": machine.describe(a.threads), "arguments": vars(a), "sizes": everything}
        a.json.write_text(json.dumps(about, default=str, indent=1), encoding="utf-8")
    return 0 if same else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "5M"], choices=tiny.SIZES)
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
    a: argparse.Namespace, size: str, contenders: list[Contender]
) -> tuple[Results, str, dict[str, roofline.Job]]:
    with tempfile.TemporaryDirectory(prefix="goodheart-bench-") as folder:
        job = ppo_job.Settings(folder, size, "float32", a.threads, a.steps, mini_batches=a.mini_batches)
        rows = ppo_job.build(
            Path(folder), size, batch_size=job.batch_size, prompt_tokens=job.prompt_tokens, new_tokens=job.new_tokens,
            seed=job.seed,
        )  # fmt: skip
        dtypes = dict.fromkeys(contender.changes["dtype"] for contender in contenders)
        jobs = {dtype: ppo_job.work(job, getattr(torch, dtype)) for dtype in dtypes}
        return *race(contenders, asdict(job) | {"fixed_rows": rows}, Path(folder), a.rounds), jobs


def _reached(results: Results, jobs: dict[str, roofline.Job], peaks: roofline.Peaks) -> Iterator[str]:
    """How fast each contender was, and beside what the machine could do. Tokens: of the answers."""
    job = ppo_job.Settings("", "", "", 0, 0)
    for name, runs in results.items():
        took, processor = (statistics.median(map(quantity, runs)) for quantity in list(QUANTITIES.values())[:2])
        dtype = name.split()[1]
        tokens = job.batch_size * job.new_tokens
        yield roofline.reached(name, took, tokens, jobs[dtype], peaks, getattr(torch, dtype), processor)


def _same_work(results: Results, a: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    """What both sides report about the work they did."""
    job = ppo_job.Settings("", "", "", a.threads, a.steps, mini_batches=a.mini_batches)
    tokens = [job.batch_size * job.new_tokens] * job.steps
    updates = job.ppo_epochs * job.mini_batches * job.steps
    for dtype in dict.fromkeys(name.split()[1] for name in results):
        theirs, ours = results[f"trl {dtype}"], results[f"goodheart {dtype}"]
        loose = 1.0 if dtype == "float32" else 10.0  # rounding of the dtype
        runs = [*theirs, *ours]
        counts = {
            f"{job.prompt_tokens} tokens in every prompt": all(r["prompt_tokens"] == [job.prompt_tokens] for r in runs),
            f"{tokens[0]} tokens sampled in every step": all(r["new_tokens"] == tokens for r in runs),
            f"{updates} optimizer steps in {job.steps} PPO steps": all(r["updates"] == updates for r in runs),
        }
        yield from ((fine, f"{dtype}: {text}") for text, fine in counts.items())
        for name, limit in (("fixed_scores", 1e-4), ("fixed_logps", 1e-3)):
            apart = max(abs(x - y) for x, y in zip(theirs[0][name], ours[0][name], strict=True))
            yield apart < limit, f"{dtype}: {name.replace('_', ' ')} of 8 fixed rows, largest difference {apart:.1e}"
        change = [statistics.median(r["weight_change"] for r in side) for side in (ours, theirs)]
        moved = change[0] / change[1]
        yield 0.8 < moved < 1.25, f"{dtype}: the policy's weights moved {moved:.2f} times as far as TRL's"
        for name, limit in _FIRST_STEP.items():
            x, y = (statistics.mean(r["first"][name] for r in side) for side in (theirs, ours))
            fine = abs(x - y) <= limit * loose and math.isfinite(y)
            yield fine, f"{dtype}: first step, {name}: trl {x:.4f}, goodheart {y:.4f}"


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


if __name__ == "__main__":
    sys.exit(main())
