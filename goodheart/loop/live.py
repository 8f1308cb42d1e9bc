"""A pipeline as it runs: a table that changes in place on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from goodheart.loop.gates import Gate, Verdict
from goodheart.loop.pipeline import Pipeline
from goodheart.loop.plan import Ending, Plan, View
from goodheart.loop.view import headlines
from goodheart.train.progress import Progress, clock, watched

State = Literal["waiting", "running"] | Ending

_MARKS: dict[State, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "done": ("✓", "green"),
    "kept": ("=", "dim"),
    "failed": ("✗", "bold red"),
    "stopped": ("■", "yellow"),
}
_FRAMES_PER_SECOND = 4
_BAR_WIDTH = 20
_LINES_BESIDES = 2  # the time in all, and the cursor's
_ANY_HEIGHT = 10_000


@contextmanager
def seen(pipeline: Pipeline) -> Iterator[View]:
    """Somebody who looks: give it to `pipeline.run`. Loops inside draw no bars of their own on a terminal."""
    if not sys.stderr.isatty():
        yield PlainView(pipeline)
        return
    console = Console(stderr=True)
    table = TableView(pipeline, console.size.height)
    live = Live(console=console, get_renderable=table.render, refresh_per_second=_FRAMES_PER_SECOND)
    with live, watched(table.progress):
        yield table


class PlainView:
    """A line when a stage begins, ends or is kept; loops print their own lines between."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._names = [step.name for step in pipeline.steps]

    def begins(self, plan: Plan) -> None:
        self._say(f"{self._place(plan)} runs: {plan.reason}")

    def ends(self, plan: Plan, state: Ending, seconds: float) -> None:
        if state == "kept":
            self._say(f"{self._place(plan)} kept: {plan.reason}")
            return
        told = headlines(self._pipeline.results().get(plan.step.name, {})) if state == "done" else ""
        self._say("  ".join(part for part in (f"{self._place(plan)} {state} in {clock(seconds)}", told) if part))

    def gate(self, gate: Gate, verdict: Verdict) -> None:
        self._say(f"gate {'holds' if verdict.holds else 'fails'}: {gate.text}")

    def _place(self, plan: Plan) -> str:
        return f"[{self._names.index(plan.step.name) + 1}/{len(self._names)}] {plan.step.name}"

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class TableView:
    """One row for each stage: state, how far, how fast, how long still, and what it came to."""

    def __init__(self, pipeline: Pipeline, height: int = _ANY_HEIGHT) -> None:
        """height: lines of the terminal."""
        self._pipeline, self._height = pipeline, height
        self._states: dict[str, State] = {step.name: "waiting" for step in pipeline.steps}
        self._told = dict.fromkeys(self._states, "")  # reason or results
        self._seconds: dict[str, float] = {}
        self._gates: dict[str, bool] = {}
        self._now: Progress | None = None
        self._begun = self._stage_begun = time.monotonic()

    def begins(self, plan: Plan) -> None:
        self._states[plan.step.name] = "running"
        self._told[plan.step.name] = plan.reason
        self._now, self._stage_begun = None, time.monotonic()

    def ends(self, plan: Plan, state: Ending, seconds: float) -> None:
        name = plan.step.name
        self._states[name], self._now = state, None
        self._seconds[name] = seconds
        self._told[name] = headlines(self._pipeline.results().get(name, {})) if state == "done" else plan.reason

    def gate(self, gate: Gate, verdict: Verdict) -> None:
        self._gates[gate.text] = verdict.holds

    def progress(self, progress: Progress) -> None:
        """Told by the loop that runs; drawn with the next frame."""
        self._now = progress

    def render(self) -> RenderableType:
        """The table as it is now."""
        table = Table.grid(padding=(0, 2))
        for name in self._visible():
            state = self._states[name]
            sign, style = _MARKS[state]
            cells = self._running() if state == "running" else (Text(self._told[name], style="dim"), Text())
            table.add_row(Text(sign, style), Text(name, style), Text(self._time(name), "dim"), *cells)
        for text, holds in self._gates.items():
            table.add_row(*_gate_row(text, holds))
        return Group(table, Text(f"{clock(time.monotonic() - self._begun)} in all", style="dim"))

    def _visible(self) -> list[str]:
        """The stages that a low terminal has room for: those around the one that runs."""
        names = list(self._states)
        room = max(1, self._height - len(self._gates) - _LINES_BESIDES)
        now = next((i for i, name in enumerate(names) if self._states[name] in ("running", "waiting")), len(names) - 1)
        start = max(0, min(now - room // 2, len(names) - room))
        return names[start : start + room]

    def _running(self) -> tuple[RenderableType, RenderableType]:
        now = self._now
        if now is None:
            return Text("starting", style="dim"), Text()
        bar = ProgressBar(total=now.total, completed=now.done, width=_BAR_WIDTH, pulse=now.total is None)
        told = "  ".join(part for part in (now.label, now.count, now.pace, now.left) if part)
        line = Table.grid(padding=(0, 1))
        line.add_row(bar, Text(told))
        return line, Text(now.metrics, style="cyan")

    def _time(self, name: str) -> str:
        if self._states[name] == "running":
            return clock(time.monotonic() - self._stage_begun)
        return clock(self._seconds[name]) if self._seconds.get(name) else ""


def _gate_row(text: str, holds: bool) -> tuple[RenderableType, ...]:
    sign, style = _MARKS["done" if holds else "failed"]
    return Text(sign, style), Text("gate", style), Text(), Text(text), Text()
