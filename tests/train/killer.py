"""Runs the toy training again and again, kills it at random instants with SIGKILL, until it reaches its end.

One process imports torch and forks, so that dozens of kills take seconds. Prints how many kills it took as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import torch

from tests.train.toy import parser, train


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(1)
    chance = random.Random(int(os.environ["KILL_SEED"]))
    kills: list[int] = []
    longest = 0.1  # seconds before a kill; grows while a slow machine gets nowhere
    while not (options.out / "DONE").is_file():
        child = os.fork()
        if child == 0:
            try:
                train(options.out, options.steps, options)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        # After many kills it may finish in peace, so that the test ends.
        if len(kills) < 40:
            time.sleep(chance.uniform(0.0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise SystemExit("the training failed, rather than being killed")
        if os.WIFSIGNALED(status):
            kept = [int(p.name[5:]) for p in options.out.glob("checkpoints/step-*")]
            longest *= 1.3 if kills and max(kept, default=0) == kills[-1] else 1.0
            kills.append(max(kept, default=0))
    print(json.dumps(kills))


if __name__ == "__main__":
    main()
