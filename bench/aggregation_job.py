"""The job of the aggregation benchmark, and one contender's run of it: scores of answers from comparisons."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWERS, PEOPLE, CARELESS = 1000, 50, 0.2


def problem(pairs: int, seed: int) -> dict[str, Any]:
    """Comparisons (left, right, who, whether left won) and true scores. Who is careless says left in 7 of 10."""
    draw = random.Random(seed)
    scores = [1.5 * draw.gauss(0, 1) for _ in range(ANSWERS)]
    careless = set(draw.sample(range(PEOPLE), round(CARELESS * PEOPLE)))
    rows = []
    for _ in range(pairs):
        a, b = draw.sample(range(ANSWERS), 2)
        who = draw.randrange(PEOPLE)
        chance = 0.7 if who in careless else 1 / (1 + math.exp(scores[b] - scores[a]))
        rows.append([a, b, who, int(draw.random() < chance)])
    return {"rows": rows, "scores": scores}


def accuracy(found: dict[int, float], scores: list[float]) -> float:
    """Share of all pairs of answers in the right order."""
    names = sorted(found)
    right = total = 0
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            right += (found[a] > found[b]) == (scores[a] > scores[b])
            total += 1
    return right / total


def goodheart(rows: list[list[int]]) -> Callable[[], dict[int, float]]:
    from goodheart.feedback.noisy_pairs import noisy_bradley_terry
    from goodheart.feedback.votes import Comparisons

    given = Comparisons.of((i, who, a, b, float(won)) for i, (a, b, who, won) in enumerate(rows))
    return lambda: dict(zip(given.names, noisy_bradley_terry(given).scores_E.tolist(), strict=True))


def crowd_kit(rows: list[list[int]]) -> Callable[[], dict[int, float]]:
    import pandas as pd
    from crowdkit.aggregation import NoisyBradleyTerry

    table = pd.DataFrame([(who, a, b, a if won else b) for a, b, who, won in rows])
    table.columns = ["worker", "left", "right", "label"]
    return lambda: dict(NoisyBradleyTerry(n_iter=10).fit_predict(table))


def main() -> None:
    name, told, result = sys.argv[1:]
    given = json.loads(Path(told).read_text(encoding="utf-8"))
    run = {"goodheart": goodheart, "crowd-kit": crowd_kit}[name](given["rows"])
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    took["accuracy"] = accuracy({int(k): float(v) for k, v in found.items()}, given["scores"])
    Path(result).write_text(json.dumps(took), encoding="utf-8")


if __name__ == "__main__":
    main()
