"""How time and memory grow: with prompts, answer length, batch, vocabulary and model size.

    python -m bench growth                 # writes docs/images/growth.svg and prints its tables

Each point is measured in a process of its own (`growth_point.py`), so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.generation import SIZES

ROOT = Path(__file__).parents[1]
PLOT = ROOT / "docs" / "images" / "growth.svg"


@dataclass(frozen=True)
class Curve:
    """One thing that grows while the rest stays. what: the work, see `growth_point.py`."""

    title: str
    what: str
    grows: str
    values: tuple[Any, ...]
    fixed: dict[str, Any]


CURVES = (
    Curve("Prompts answered", "generate", "prompts", (64, 256, 1024, 4096), {"size": "1M", "new": 32, "slots": 64}),
    Curve(
        "Length of the answers", "generate", "new", (32, 64, 128, 256, 480), {"size": "1M", "prompts": 64, "slots": 64}
    ),
    Curve("Rows of a step", "train", "rows", (8, 32, 128, 512), {"size": "1M", "length": 128}),
    Curve("Length of the rows", "train", "length", (64, 128, 256, 512), {"size": "1M", "tokens": 8192}),
    Curve("Vocabulary", "logprobs", "vocabulary", (512, 4096, 32_000, 150_000), {"tokens": 4096, "width": 128}),
    Curve("Parameters", "train", "size", ("1M", "5M", "15M", "110M"), {"rows": 16, "length": 128}),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="titles of curves")
    parser.add_argument("--plot", type=Path, default=PLOT)
    a = parser.parse_args()
    print(machine.describe(a.threads))
    measured = []
    for curve in CURVES:
        if a.only and curve.title not in a.only:
            continue
        points = [point(curve, value, a.threads) for value in curve.values]
        measured.append((curve, points))
        print("\n".join(table(curve, points)), flush=True)
    draw(measured, a.plot)
    print(f"load {machine.load():.1f}; plot in {a.plot}")
    return 0


def point(curve: Curve, value: Any, threads: int) -> dict[str, Any]:
    """seconds per token (median), peak MiB, MiB before the work."""
    job = {"what": curve.what, "threads": threads, curve.grows: value, **curve.fixed}
    command = [sys.executable, "-m", "bench.growth_point", json.dumps(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{job} failed:\n{ended.stderr[-3000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def table(curve: Curve, points: list[dict[str, Any]]) -> Iterator[str]:
    yield f"\n**{curve.title}** ({', '.join(f'{k} {v}' for k, v in curve.fixed.items())})\n"
    yield f"| {curve.grows} | microseconds per token | peak, MiB | over what was there before, MiB |"
    yield "|---|---|---|---|"
    for value, found in zip(curve.values, points, strict=True):
        shown = f"{value:,}" if isinstance(value, int) else value
        yield (
            f"| {shown} | {1e6 * found['seconds']:.1f} | {found['peak']:.0f} | {found['peak'] - found['before']:.0f} |"
        )


def parameters(size: str) -> float:
    """Of the decoder with tied embeddings."""
    width, layers, heads, kv_heads, mlp, vocabulary = SIZES[size]
    attention = 2 * width * width * (1 + kv_heads / heads)
    return vocabulary * width + layers * (attention + 3 * width * mlp)


def draw(measured: list[tuple[Curve, list[dict[str, Any]]]], path: Path) -> None:
    """Time per token and memory of every curve, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(measured), figsize=(2.7 * len(measured), 4.6), layout="constrained", squeeze=False
    )
    for column, (curve, points) in enumerate(measured):
        x = [parameters(value) if curve.grows == "size" else value for value in curve.values]
        for row, (name, y) in enumerate(
            (
                ("µs per token", [1e6 * found["seconds"] for found in points]),
                ("MiB taken", [found["peak"] - found["before"] for found in points]),
            )
        ):
            panel = axes[row][column]
            panel.plot(x, y, "o-", color="#4477aa", ms=4)
            panel.set_xscale("log")
            if row == 0 and max(y) > 10 * min(y):  # what grows in proportion is a straight line then
                panel.set_yscale("log")
            else:
                panel.set_ylim(0, 1.15 * max(y))
            panel.grid(alpha=0.3)
            if row == 0:
                panel.set_title(curve.title, fontsize=10)
            if column == 0:
                panel.set_ylabel(name)
            panel.set_xticks(x, [str(value) for value in curve.values], fontsize=7)
            panel.minorticks_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
