"""A run that is killed at any instant and started again equals one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from goodheart.train.metrics import comparable, read_metrics

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_at_random_instants_equals_never_killed(tmp_path: Path, dtype: str) -> None:
    options = ["--steps", "40", "--dtype", dtype, "--dropout", "0.1", "--checkpoint-every", "2", "--sleep", "0.03"]
    python("tests.train.toy", tmp_path / "whole", *options)
    kills = json.loads(python("tests.train.killer", tmp_path / "killed", *options, KILL_SEED="3"))

    # The test is worth something only when kills came at many places: 3 steps make an epoch, so these cross many.
    assert len(kills) >= 5
    assert len({step for step in kills if step > 0}) >= 3
    weights = [json.loads((tmp_path / run / "weights.json").read_text()) for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    logs = [comparable(read_metrics(tmp_path / run)) for run in ("whole", "killed")]
    assert [row["step"] for row in logs[0]] == list(range(1, 41))
    assert logs[0] == logs[1]
    samples = [(tmp_path / run / "samples.jsonl").read_text() for run in ("whole", "killed")]
    assert samples[0] == samples[1]
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
