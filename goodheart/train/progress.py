"""How far a loop is: a bar on a terminal, a plain line now and then anywhere else, or what a watcher makes of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0
_watcher: Callable[[Progress], None] | None = None


@contextmanager
def watched(watcher: Callable[[Progress], None]) -> Iterator[None]:
    """Inside, loops draw nothing themselves: `watcher` is told each time one of them has come further."""
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


class Progress:
    """Counts towards a total and shows rate, time left and chosen metrics. Use as a context manager."""

    def __init__(
        self, total: int | None, label: str, *, unit: str = "steps", shown: bool = True, patient: bool = False
    ) -> None:
        """
        Args:
            total: units of the whole loop; None = not known.
            label: what is being done.
            unit: what is counted.
            shown: False counts in silence.
            patient: off a terminal, says nothing of what is done within seconds.
        """
        self.total, self.label, self.unit, self.shown, self.patient = total, label, unit, shown, patient
        self.done = 0
        self._metrics: dict[str, Any] = {}
        self._watcher = _watcher if shown else None
        self._bar: Any = None
        self._task: Any = None
        self._counted = 0  # units since the clock started
        self._told = 0  # of those, at the last line printed
        self._last_line = 0.0

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        self._last_line = self._start if self.patient else -_SECONDS_BETWEEN_LINES
        if self._watcher is not None:
            self._watcher(self)
        elif self.shown and sys.stderr.isatty():
            self._bar = _rich_bar()
            self._task = self._bar.add_task(self.label, total=self.total, rate="", metrics="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._prints and self._counted > self._told and (self._told or not self.patient):
            print(self.line(), file=sys.stderr, flush=True)

    def skip(self, n: int) -> None:
        """Counts units that an earlier process did; they stay out of the rate."""
        self.done += n
        self._update_bar()

    def advance(self, n: int = 1, **metrics: Any) -> None:
        """Counts `n` units as done and shows `metrics` from now on."""
        self.done += n
        self._counted += n
        self._metrics |= metrics
        self._update_bar()
        if self._prints and n and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line, self._told = time.monotonic(), self._counted
            print(self.line(), file=sys.stderr, flush=True)

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def line(self) -> str:
        """`label 120/1000 steps  3.2 steps/s  4:35 left  loss 2.13`."""
        return "  ".join(part for part in (f"{self.label} {self.count}", self.pace, self.left, self.metrics) if part)

    @property
    def count(self) -> str:
        """`120/1000 steps`."""
        return f"{self.done} {self.unit}" if self.total is None else f"{self.done}/{self.total} {self.unit}"

    @property
    def left(self) -> str:
        """`4:35 left`; empty as long as that is not known."""
        rate = self.rate
        return f"{clock((self.total - self.done) / rate)} left" if rate and self.total is not None else ""

    @property
    def rate(self) -> float:
        """Units per second in this process; 0.0 before the first."""
        seconds = time.monotonic() - self._start
        return self._counted / seconds if seconds > 0 else 0.0

    @property
    def _prints(self) -> bool:
        """Whether lines are printed, for want of anything better."""
        return self.shown and self._bar is None and self._watcher is None

    def _update_bar(self) -> None:
        if self._watcher is not None:
            self._watcher(self)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self.pace, metrics=self.metrics)

    @property
    def pace(self) -> str:
        """`3.2 steps/s`, or `2 s/step`."""
        rate = self.rate
        if not rate:
            return ""
        return f"{rate:.3g} {self.unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{self.unit.removesuffix('s')}"

    @property
    def metrics(self) -> str:
        """`loss 2.13  kl 0.4`."""
        shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in self._metrics.items()}
        return "  ".join(f"{name} {value}" for name, value in shown.items())


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
        console=Console(stderr=True),
    )


def clock(seconds: float) -> str:
    """`4:35`, `1:04:35`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
