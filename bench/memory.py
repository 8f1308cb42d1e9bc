"""What training stages were planned to take in memory, beside what they took: peak of a process of its own.

    python -m bench memory --sizes 1M 5M

Every run is one command of goodheart of two steps on a random model; what is printed is its memory.json. Prompts are a
quarter of a row. Answers of rows "full" all have the most tokens, of rows "ragged" between a quarter and all of them.
"recomputed" is full rows with activation_checkpointing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import machine, tiny

ROOT = Path(__file__).parents[1]
_PROMPT = 4  # rows are this many times as long as their prompts
_STEPS = 2
_LENGTHS = ("full", "ragged", "recomputed")
_MIB = 2**20

Row = dict[str, Any]
# Prompt and a maker of answers -> a row.
_ROWS: dict[str, Callable[[str, Callable[[], str]], Row]] = {
    "sft": lambda prompt, answer: {"prompt": prompt, "completion": answer()},
    "reward": lambda prompt, answer: {"prompt": prompt, "chosen": answer(), "rejected": answer()},
    "dpo": lambda prompt, answer: {"prompt": prompt, "chosen": answer(), "rejected": answer()},
    "kto": lambda prompt, answer: {"prompt": prompt, "completion": answer(), "label": len(prompt) % 2 == 0},
    "grpo": lambda prompt, answer: {"prompt": prompt},
    "ppo": lambda prompt, answer: {"prompt": prompt},
}
_PAIRS = ("reward", "dpo")
_ANSWERS_ITSELF = ("grpo", "ppo")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(_ROWS), choices=_ROWS)
    parser.add_argument("--sizes", nargs="+", default=["1M", "5M"], choices=tiny.SIZES)
    parser.add_argument("--rows", type=int, default=64, help="of a step; pairs have two each")
    parser.add_argument("--length", type=int, default=256, help="tokens of the longest row")
    parser.add_argument("--lengths", nargs="+", default=list(_LENGTHS), choices=_LENGTHS)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="setting of every stage, key=value")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    print(f"{machine.describe(a.threads)}\n")
    print("| run | rows x tokens | planned, MiB | peak, MiB | |\n|---|---|---|---|---|", flush=True)
    for size in a.sizes:
        for stage in a.stages:
            for lengths in [each for each in a.lengths if each != "ragged" or stage not in _ANSWERS_ITSELF]:
                sets = [*a.sets, *["activation_checkpointing=true"] * (lengths == "recomputed")]
                found = measured(stage, size, a.rows, a.length, lengths == "ragged", sets, a.threads)
                print(line(f"`{stage}`, {size}, {lengths}", f"{a.rows} x {a.length}", found), flush=True)
    return 0


def line(run: str, rows: str, found: dict[str, float]) -> str:
    """A row of the table: the plan, the peak, and how far the first is from the second."""
    planned, peak = found["planned"], found["peak"]
    return f"| {run} | {rows} | {planned / _MIB:.0f} | {peak / _MIB:.0f} | {planned / peak - 1:+.0%} |"


def measured(
    stage: str, size: str, rows: int, length: int, ragged: bool, sets: list[str], threads: int
) -> dict[str, float]:
    """memory.json of a run of that stage, bytes."""
    with tempfile.TemporaryDirectory(prefix="goodheart-bench-") as name:
        folder = Path(name)
        model = tiny.llama(size, 0)
        if stage in _ANSWERS_ITSELF:
            tiny.shut_specials(model)  # answers run to their limit
        tiny.save(model, size, folder / "policy")
        made = "".join(json.dumps(row) + "\n" for row in _rows(stage, size, rows, length, ragged))
        (folder / "rows.jsonl").write_text(made, encoding="utf-8")
        given = [f"{key}={value}" for key, value in _settings(stage, folder, rows, length).items()]
        command = [sys.executable, "-m", "goodheart", stage]
        for each in [*given, *sets]:
            command += ["--set", each]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{ended.stderr[-3000:]}")
        return json.loads((folder / "run" / "memory.json").read_text(encoding="utf-8"))


def _rows(stage: str, size: str, rows: int, length: int, ragged: bool) -> Iterator[Row]:
    drawn = random.Random(0)
    most = length - length // _PROMPT - 1  # with the end token

    def answer() -> str:
        return " " + tiny.words(drawn, size, drawn.randint(most // 4, most) if ragged else most)

    for _ in range(rows // 2 if stage in _PAIRS else rows):
        # The text starts with <s>.
        yield _ROWS[stage](tiny.words(drawn, size, length // _PROMPT - 1), answer)


def _settings(stage: str, folder: Path, rows: int, length: int) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": folder / "policy",
        "out": folder / "run",
        "batch_size": rows // 2 if stage in _PAIRS else rows,
        "device": "cpu",
        "quiet": "true",
    }
    if stage not in _ANSWERS_ITSELF:
        return given | {"data": folder / "rows.jsonl", "held_out": 0, "epochs": _STEPS}
    given |= {
        "prompts": folder / "rows.jsonl",
        "reward": "bench.trainers_reward:low_words",
        "steps": _STEPS,
        "sampling.max_new_tokens": length - length // _PROMPT,
    }
    return given | ({"num_generations": 8} if stage == "grpo" else {"mini_batches": 1, "ppo_epochs": 1})


if __name__ == "__main__":
    sys.exit(main())
