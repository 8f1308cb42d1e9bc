"""Runs stages on one device and prints what they logged or wrote, and where they would have waited for a GPU, as JSON.

    python -m tests.accelerator.walk DEVICE FOLDER LIBRARY JOB ...

FOLDER holds the model `tiny` and the data; LIBRARY is the built device "pretend".
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from goodheart.loop.registry import STAGES
from goodheart.train.metrics import comparable, read_metrics
from tests.accelerator.pretend import Waits, begin
from tests.stages.crash import died_after

_VOWELS = "tests.stages.rewards:vowels"
_SAMPLING = {"max_new_tokens": 8}
_ONLINE = {"reward": _VOWELS, "prompts": "prompts.jsonl", "steps": 2, "batch_size": 8, "sampling": _SAMPLING}
_JUDGE = "judge"  # what the job `reward` made on the same device
_PAIRS = {"data": "pairs.jsonl", "batch_size": 4}
# Name of the stage, a dash, what is special; settings. Names of files are in FOLDER.
JOBS: dict[str, dict[str, Any]] = {
    "pretrain": {"data": "corpus.jsonl", "batch_size": 2},
    "sft": {"data": "demonstrations.jsonl", "batch_size": 4},
    "sft-checkpointing": {"data": "demonstrations.jsonl", "batch_size": 4, "activation_checkpointing": True},
    "sft-lora": {"data": "demonstrations.jsonl", "batch_size": 4, "lora": {"rank": 4}},
    "sft-bfloat16": {"data": "demonstrations.jsonl", "batch_size": 4, "dtype": "bfloat16"},
    "reward": _PAIRS,
    "dpo": _PAIRS,
    "kto": {"data": "thumbs.jsonl", "batch_size": 8},
    "ppo": _ONLINE | {"ppo_epochs": 2, "mini_batches": 2},
    "ppo-shared": _ONLINE | {"shared_trunk": True},
    "ppo-bfloat16": _ONLINE | {"dtype": "bfloat16"},
    "grpo": _ONLINE | {"num_generations": 4},
    "online": _ONLINE,
    "rejection": {
        "reward": _VOWELS,
        "prompts": "prompts.jsonl",
        "num_generations": 4,
        "batch_size": 4,
        "sampling": _SAMPLING,
    },
    "ppo-judged": _ONLINE | {"reward": _JUDGE},
    "grpo-resumed": _ONLINE | {"num_generations": 4, "checkpoint_every": 1},
    "sample": {"prompts": "prompts.jsonl", "answers": 2, "sampling": _SAMPLING},
    "sample-best": {"prompts": "prompts.jsonl", "best_of": 3, "reward": _JUDGE, "sampling": _SAMPLING | {"top_p": 0.9}},
    "score": {"data": "pairs.jsonl", "reward": _JUDGE},
}
_TRAINING = {"learning_rate": 1e-3}


def main() -> None:
    device, folder, library, *jobs = sys.argv[1:]
    torch.set_num_threads(1)
    if device == "pretend":
        begin(Path(library))
    said = {}
    for job in jobs:
        counting = Waits() if device == "pretend" else nullcontext()
        with counting as waits:
            rows = _ran(job, device, Path(folder))
        said[job] = {"rows": rows, "waits": dict(waits.places) if waits is not None else {}}
    print(json.dumps(said))


def _ran(job: str, device: str, folder: Path) -> list[dict[str, Any]]:
    name = job.split("-")[0]
    stage = STAGES[name]
    settings = JOBS[job] | {"device": device, "quiet": True}
    if name != "score":
        settings["model"] = "tiny"
    for setting in ("model", "data", "prompts"):
        if setting in settings:
            settings[setting] = str(folder / settings[setting])
    if settings.get("reward") == _JUDGE:
        settings["reward"] = str(folder / f"reward-{device}")
    if not stage.suffix:
        settings["learning_rate"] = 1e-3

    def run(out: Path) -> Path:
        stage.load()(stage.load_settings()(**settings, out=out))
        return out

    out = run(folder / f"{job}-{device}{stage.suffix}")
    if job.endswith("-resumed"):
        out = run(died_after(1, out, folder / f"{job}-{device}-cut"))
    if stage.suffix:
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return comparable(read_metrics(out))


if __name__ == "__main__":
    main()
