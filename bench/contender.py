"""What every contender's process measures of itself, in the same way. Standard library only: peers lack the rest."""

from __future__ import annotations

import argparse
import functools
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def arguments() -> tuple[dict[str, Any], Path, float]:
    """Settings of the job, where the result goes, and when the driver started this process (seconds since 1970)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("started", type=float)
    given = parser.parse_args()
    return json.loads(given.settings.read_text(encoding="utf-8")), given.result, given.started


class Watch:
    """Times of one process. `step_done` is called at the end of each step, at the same point by every contender.

    started: the process, seconds since 1970. device: that is worked on; a GPU is waited for, and its memory measured.
    """

    def __init__(self, started: float, device: str = "cpu") -> None:
        self.started, self.device = started, device
        self.ends: list[tuple[float, float]] = []  # wall clock, processor seconds
        self.first_step = 0.0  # seconds from process start to the end of the first step
        self.peak_mib = 0.0

    def step_done(self) -> None:
        wait_for(self.device)
        if not self.ends:
            self.first_step = time.time() - self.started
        self.ends.append((time.perf_counter(), time.process_time()))
        self.peak_mib = peak_mib(self.device)

    def result(self) -> dict[str, Any]:
        """Seconds of each step after the first, on the wall and on the processor, and the peak up to the last."""
        pairs = list(zip(self.ends, self.ends[1:], strict=False))
        return {
            "first_step_seconds": self.first_step,
            "first_step_cpu_seconds": self.ends[0][1],
            "step_seconds": [after[0] - before[0] for before, after in pairs],
            "step_cpu_seconds": [after[1] - before[1] for before, after in pairs],
            "peak_mib": self.peak_mib,
        }


def wait_for(device: str) -> None:
    """Until a GPU has done what it was asked to."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def peak_mib(device: str = "cpu") -> float:
    """Most memory this process has held at once; on a GPU: of tensors there.

    On the CPU the kernel's own high-water mark where it tells: `ru_maxrss` starts from that of the process that forked
    us.
    """
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def count_positions(trunk: type[Any], method: str = "forward") -> Callable[[], int]:
    """Counts the positions (rows times width, padding too where it is computed) that pass through models of this class
    from now on. method: what every pass calls once, with the tokens.
    """
    passed = 0
    forward = getattr(trunk, method)

    @functools.wraps(forward)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        passed += (args[0] if args else kwargs["input_ids"]).numel()
        return forward(self, *args, **kwargs)

    setattr(trunk, method, counted)
    return lambda: passed
