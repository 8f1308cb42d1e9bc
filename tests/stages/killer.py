"""Gives a goodheart command again and again, kills it at random instants with SIGKILL, until its output is there.

One process imports torch and forks, so that dozens of kills take seconds. Prints the newest checkpoint's step after
each kill as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from goodheart import cli
from goodheart.loop.registry import stage


def main() -> None:
    done, arguments = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    stage(arguments[0]).load()
    import transformers.tokenization_utils_tokenizers  # noqa: F401 (slow to import: once, not in every child)

    chance = random.Random(int(os.environ["KILL_SEED"]))
    kills: list[int] = []
    longest = 0.3  # seconds before a kill; grows while a slow machine gets nowhere
    while not done.exists():
        child = os.fork()
        if child == 0:
            sys.argv = ["goodheart", *arguments]
            try:
                cli.main()
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
        # After many kills it may finish in peace, so that the test ends.
        if len(kills) < 40:
            time.sleep(chance.uniform(0.0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise SystemExit("the command failed, rather than being killed")
        if os.WIFSIGNALED(status):
            kept = [int(p.name[5:]) for p in done.parent.glob("checkpoints/step-*")]
            longest *= 1.3 if kills and max(kept, default=0) == kills[-1] else 1.0
            kills.append(max(kept, default=0))
    print(json.dumps(kills))


if __name__ == "__main__":
    main()
