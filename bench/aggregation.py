"""Who can be trusted, from 20,000 comparisons by 50 people: goodheart's noisy Bradley-Terry beside crowd-kit's.

    python -m bench aggregation

A fifth of the people guess. Both fit the same comparisons, without ties; accuracy is that of the order of all pairs of
answers against the true scores. crowd-kit is installed apart, without the packages that its learning part asks for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import environments, machine
from bench.aggregation_job import problem
from bench.ratios import Ratio

_ROOT = Path(__file__).parents[1]
PEER = {"crowd-kit": "1.4.2"}
NEEDED = {
    "pandas": "3.1.1",
    "scikit-learn": "1.9.1",
    "attrs": "25.4.0",
    "nltk": "3.9.2",
    "pyarrow": "26.0.1",
    "tqdm": "4.67.1",
}
ENVIRONMENT = "crowd-kit"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=environments.default_folder(), help="where peers live")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=20_000)
    a = parser.parse_args()
    python = crowd_kit(a.environments / ENVIRONMENT)
    runs: dict[str, list[dict[str, Any]]] = {"goodheart": [], "crowd-kit": []}
    for turn in range(a.rounds):
        given = problem(a.pairs, seed=turn)
        for name, interpreter in (("goodheart", Path(sys.executable)), ("crowd-kit", python)):
            runs[name].append(_run(interpreter, name, given))
            print(f"round {turn + 1}: {name} {runs[name][-1]}", file=sys.stderr)
    print(f"{machine.describe(1)}; load {machine.load():.1f}\n")
    print("| | crowd-kit | goodheart | |\n|---|---|---|---|")
    seconds = {name: [run["cpu_seconds"] for run in each] for name, each in runs.items()}
    ratio = Ratio.of(seconds["crowd-kit"], seconds["goodheart"])
    shown = [f"{statistics.median(seconds[name]):.2f}" for name in ("crowd-kit", "goodheart")]
    print(f"| processor seconds | {' | '.join(shown)} | {ratio} |")
    right = {name: [run["accuracy"] for run in each] for name, each in runs.items()}
    means = [f"{statistics.mean(right[name]):.4f}" for name in ("crowd-kit", "goodheart")]
    print(f"| accuracy against the truth | {' | '.join(means)} | |")
    return 0


def crowd_kit(folder: Path) -> Path:
    """Its interpreter. It asks for torch and transformers, which aggregation does not need: left out."""
    python = environments.python_with(folder, NEEDED)
    wanted = [f"{name}=={version}" for name, version in PEER.items()]
    if subprocess.run([str(python), "-c", "import crowdkit"], capture_output=True, check=False).returncode:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *wanted]
        subprocess.run(command, check=True)
    return python


def _run(python: Path, name: str, given: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="goodheart-bench-") as folder:
        told, result = Path(folder) / "problem.json", Path(folder) / "result.json"
        told.write_text(json.dumps(given), encoding="utf-8")
        command = [str(python), "-m", "bench.aggregation_job", name, str(told), str(result)]
        ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(f"{name} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
        return dict(json.loads(result.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
