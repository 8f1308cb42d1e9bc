"""Where the time and the memory of training go: a few steps under torch's profiler, as a trace and as tables.

    <run>/profile/trace.json.gz   for a trace viewer (Perfetto, chrome://tracing)
    <run>/profile/profile.txt     parts of a step, slowest operations, what the memory holds

The first steps are left out: they pay for caches, kernels chosen and memory first touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function

from goodheart.train import memory
from goodheart.train.checkpoint import TrainState
from goodheart.train.files import replace_text
from goodheart.train.held import peak
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import local

WARMUP, STEPS = 2, 3
_OPERATIONS = 15  # slowest ones listed
_MIB = 2**20
_PREFIX = "goodheart/"


def part(name: str) -> record_function:
    """A context that names a part of a step: costs a microsecond where nothing is profiled."""
    return record_function(_PREFIX + name)


class StepProfiler:
    """Profiles steps `WARMUP` to `WARMUP + STEPS` of this process, fewer where there are fewer."""

    def __init__(self, folder: Path, state: TrainState, device: torch.device) -> None:
        self.folder, self.state, self.device = folder, state, device
        self.report: str | None = None  # the tables, once there are any
        self._seen = 0  # steps begun
        self._begun = 0.0
        self._profiler: Any = None
        self._timing: dict[str, float] = {}
        self._steps = 0
        self._peak = 0.0

    def close(self) -> None:
        """Ends a profile that an error or the user cut short; nothing is written of it."""
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            self._profiler = None

    def before(self, left: int) -> None:
        """Called before each step. left: steps still to be done, this one included."""
        if self._profiler is None and self.report is None and self._seen >= min(WARMUP, self._seen + left - 1):
            self._start()
        self._seen += 1

    def timed(self, timing: Mapping[str, float]) -> None:
        """Seconds of the current step's parts that the stage itself measured."""
        if self._profiler is not None:
            for name, seconds in timing.items():
                self._timing[name] = self._timing.get(name, 0.0) + seconds

    def after(self, left: int) -> None:
        """Called after each step. left: steps still to be done."""
        if self._profiler is None:
            return
        self._steps += 1
        if self._steps == STEPS or left == 0:
            self._finish()

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it writes lines of its own to the console otherwise
        self._peak = peak(self.device)  # being profiled takes memory itself
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        self._profiler = profile(activities=activities, profile_memory=True)
        self._profiler.__enter__()
        self._begun = time.perf_counter()

    def _finish(self) -> None:
        seconds = (time.perf_counter() - self._begun) / self._steps
        self._profiler.__exit__(None, None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        events = self._profiler.key_averages()
        sections = [
            f"{seconds:.4g} s per step (mean of {self._steps}, slowed by being profiled)",
            _table(("part of a step", "s", "share"), self._parts(events, seconds)),
            _table(("operation (its own time)", "s", "share", "times", "MiB allocated"), self._operations(events)),
            _table(("memory of this process", "MiB"), held(self.state, self.device, self._peak)),
        ]
        self.report = "\n\n".join(sections) + "\n"
        replace_text(self.folder / "profile.txt", self.report)
        self._profiler = None

    def _parts(self, events: Any, seconds: float) -> list[tuple[str, ...]]:
        rows = [(name, total / self._steps) for name, total in self._timing.items()]
        rows += [
            (e.key.removeprefix(_PREFIX), e.cpu_time_total / 1e6 / self._steps)
            for e in events
            if e.key.startswith(_PREFIX) and not _on_device(e)
        ]
        rows.sort(key=lambda row: -row[1])
        return [(name, f"{s:.4f}", f"{100 * s / seconds:.0f} %") for name, s in rows]

    def _operations(self, events: Any) -> list[tuple[str, ...]]:
        """Slowest by the time they take themselves; on a device by that of the kernels they started."""
        cuda = self.device.type == "cuda"
        rows = [
            (
                e.key,
                (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 / self._steps,
                e.count / self._steps,
                (e.self_device_memory_usage if cuda else e.self_cpu_memory_usage) / _MIB / self._steps,
            )
            for e in events
            if not e.key.startswith(_PREFIX) and not _on_device(e)  # a kernel's time is told with its operation
        ]
        whole = sum(row[1] for row in rows) or 1.0
        rows.sort(key=lambda row: -row[1])
        return [
            (name, f"{s:.4f}", f"{100 * s / whole:.0f} %", f"{count:g}", f"{mib:.1f}" if mib > 0 else "")
            for name, s, count, mib in rows[:_OPERATIONS]
        ]


def held(state: TrainState, device: torch.device, peak: float) -> list[tuple[str, str]]:
    """What lies in memory, by what it is for: MiB of each network and optimizer, and the peak (bytes)."""
    rows: list[tuple[str, float]] = []
    for name, thing in state.things().items():
        if isinstance(thing, nn.Module):
            weights = [local(p).untyped_storage() for p in thing.parameters()]
            rows.append((f"weights of {name}", sum({w.data_ptr(): w.nbytes() for w in weights}.values())))
        elif isinstance(thing, AdamW):
            rows.append((f"state of {name}", sum(local(t).nbytes for t in thing.state_tensors().values())))
            rows.append((f"gradients of {name}, while a step lasts", memory.gradient_bytes(thing)))
    what = "peak on the device" if device.type == "cuda" else "peak, libraries included"
    return [(name, f"{size / _MIB:.1f}") for name, size in [*rows, (what, peak)]]


def _on_device(event: Any) -> bool:
    return bool(event.device_type.name != "CPU")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
