"""Commands as a user gives them, each in a process of its own: alone, killed at random, or several at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goodheart.train.metrics import comparable, read_metrics

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def options(**settings: Any) -> list[str]:
    """Settings as `--set key=value`; lists and blocks as YAML."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value, default=str)}")]


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "goodheart.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD | environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def in_processes(count: int, *arguments: str | Path) -> None:
    """What `torchrun --nproc-per-node` does, without its slow start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    started = [start(*arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    try:
        outputs = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), outputs


def killed_until_done(done: Path, arguments: Sequence[str | Path], seed: int) -> list[int]:
    """Gives the command again and again, killed by SIGKILL at random instants; returns the newest checkpoint's step
    after each kill.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "tests.stages.killer", str(done), *map(str, arguments)],
        cwd=ROOT,
        env=ONE_THREAD | {"KILL_SEED": str(seed)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def log(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    return comparable(read_metrics(run))


def results(run: Path) -> dict[str, Any]:
    """results.json without the clock, and without what another run may have left in the cache."""
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name not in {"seconds", "reference_from_cache"}}


def assert_same_to_the_bit(a: Path, b: Path) -> None:
    assert (a / "model" / "model.safetensors").read_bytes() == (b / "model" / "model.safetensors").read_bytes()
    assert log(a) == log(b)
    assert results(a) == results(b)


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """A JSONL file; rows given as text are written as they are."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
