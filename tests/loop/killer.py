"""Runs a pipeline in one folder undisturbed, and in another again and again, killed by SIGKILL, until it is done.

One process imports torch and forks, so that a dozen starts take seconds. Kills come when so many lines have been logged
and so many stages begun and ended, spread over the whole length of the pipeline, plus a moment; counted and not timed,
because a delay is too short on a slow machine and too long on a fast one. Prints how far each killed start had come.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from goodheart import cli
from goodheart.loop import step
from goodheart.loop.registry import STAGES

_KILLS = 10
_LONGEST_MOMENT = 0.05  # seconds


def main() -> None:
    file, undisturbed, killed = (Path(argument).resolve() for argument in sys.argv[1:4])
    torch.set_num_threads(1)
    # the code that runs is this process's, whatever is edited meanwhile
    step.code_of = functools.cache(step.code_of)
    for kind in STAGES.values():
        kind.load()
        step.code_of(kind.module)
    step.code_of("goodheart.playground.truth")
    import transformers.tokenization_utils_tokenizers  # noqa: F401 (slow to import: once, not in every child)

    assert ended(start(file, undisturbed)) == 0
    total = progress(undisturbed)
    chance = random.Random(int(os.environ["KILL_SEED"]))
    reached = []
    for n in range(_KILLS):
        wanted = (n + chance.random()) / _KILLS * total
        child = start(file, killed)
        while progress(killed) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, _LONGEST_MOMENT))
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            raise SystemExit(f"start {n + 1} ended by itself before it came to {wanted:.0f} of {total}") from None
        reached.append(progress(killed) / total)
    assert ended(start(file, killed)) == 0
    print(json.dumps(reached))


def start(file: Path, folder: Path) -> int:
    """A process that runs the pipeline in `folder`."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    sys.argv = ["goodheart", "run", str(file)]
    with Path("log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        cli.main()
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    os._exit(1)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def progress(folder: Path) -> int:
    """Lines logged and stages begun or done."""
    try:
        logs = [*folder.glob("out/*/metrics.jsonl"), *folder.glob("out/*.partial/*.jsonl")]
    except FileNotFoundError:  # a folder was taken away while it was looked through
        return progress(folder)
    lines = sum(read(log).count(b"\n") for log in logs)
    record = json.loads(read(folder / "out/pipeline.json") or b"{}")
    return lines + len(record.get("begun", {})) + len(record.get("done", {}))


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # not yet there, or just taken away
        return b""


if __name__ == "__main__":
    main()
