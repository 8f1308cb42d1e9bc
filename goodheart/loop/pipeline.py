"""Walks a pipeline: finished stages are skipped, changed ones run again, gates stop it.

A finished stage stands as long as its settings, the content of all it reads and the code that makes it are what they
were; otherwise it runs again, and then those that read its output do, unless it came out the same. A stage that was
interrupted goes on where it stood.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from goodheart.errors import ConfigError, GateError, Interrupted
from goodheart.loop.gates import Gate, Verdict
from goodheart.loop.reading import PipelineFile
from goodheart.loop.record import Record
from goodheart.loop.step import Identity, Step, difference, results_of
from goodheart.train.config import nearest
from goodheart.train.lineage import environment
from goodheart.train.lock import FolderLock

Ending = Literal["done", "kept", "failed", "stopped"]
SAME_AGAIN = "what it reads came out the same"


@dataclass
class Plan:
    """What `goodheart run` would do with a step, and why."""

    step: Step
    runs: bool
    reason: str


class View(Protocol):
    """Whoever wants to see a pipeline run."""

    def begins(self, plan: Plan) -> None: ...

    def ends(self, plan: Plan, state: Ending, seconds: float) -> None: ...

    def gate(self, gate: Gate, verdict: Verdict) -> None: ...


class Unseen:
    """Nobody looks."""

    def begins(self, plan: Plan) -> None:
        """Says nothing."""

    def ends(self, plan: Plan, state: Ending, seconds: float) -> None:
        """Says nothing."""

    def gate(self, gate: Gate, verdict: Verdict) -> None:
        """Says nothing."""


@dataclass
class Pipeline:
    """A pipeline file, checked as a whole before anything runs."""

    file: Path
    out: Path
    steps: list[Step]
    gates: list[Gate] = field(default_factory=list)
    trust_code: bool = False  # outputs of other code count as good as new ones

    @classmethod
    def load(cls, file: Path, sets: list[str] | None = None, *, trust_code: bool = False) -> Pipeline:
        """Reads and checks the file, see `PipelineFile.read`.

        Raises:
            ConfigError: what is wrong with it, with file and line.
        """
        read = PipelineFile.read(file, sets)
        return cls(file, read.out, read.steps, read.gates, trust_code)

    def plan(self) -> list[Plan]:
        """Which steps would run, in order, each with its reason."""
        plans: list[Plan] = []
        running: set[str] = set()
        for step in self.steps:
            before = [name for name in step.parents if name in running]
            why = f"{', '.join(before)} runs before it" if before else self._why(step)
            plans.append(Plan(step, bool(why), why or "unchanged"))
            if why:
                running.add(step.name)
        return plans

    def run(self, only: str | None = None, view: View | None = None) -> list[Plan]:
        """Runs what the plan says, in order, and checks the gates; returns the plan with what was done.

        Args:
            only: run this stage alone.
            view: told what happens.

        Raises:
            ConfigError: `only` names no stage, or one whose inputs are not there yet; a gate names no result.
            GateError: a gate does not hold.
            RunError: another process runs this pipeline.
        """
        view = view or Unseen()
        chosen = [step.name for step in ([self._alone(only)] if only is not None else self.steps)]
        with _held(FolderLock(self.out)):
            Record(self.out).keep_gates(self.gates)
            plans = [plan for plan in self.plan() if plan.step.name in chosen]
            for plan in plans:
                self._follow(plan, view)
                for gate in self.due(plan.step):
                    self._pass(gate, view)
        return plans

    def results(self) -> dict[str, dict[str, Any]]:
        """The results of every finished stage, by name."""
        done = Record(self.out).read()["done"]
        found: dict[str, dict[str, Any]] = {}
        for step in self.steps:
            file = step.results_file
            if step.finished and file is not None:
                found[step.name] = json.loads(file.read_text(encoding="utf-8"))
            elif step.finished:
                found[step.name] = done.get(step.name, {}).get("results", {})
        return found

    def due(self, step: Step) -> Iterator[Gate]:
        """The gates to check when `step` is done: those that name it last, if all else they name is done too."""
        names = [s.name for s in self.steps]
        finished = {s.name for s in self.steps if s.finished}
        for gate in self.gates:
            last = max(gate.stages, key=names.index)
            if last == step.name and finished.issuperset(gate.stages):
                yield gate

    def _why(self, step: Step) -> str:
        """Why a step must run, apart from what runs before it; empty where its output stands."""
        if not step.finished:
            return "not finished" if step.output.exists() else "not run yet"
        before = Record(self.out).done(step.name)
        if before is None:
            return "no record of how its output was made"
        return self._differs(before, step.identity())

    def _differs(self, before: Identity, now: Identity) -> str:
        return difference(before, now, with_code=not self.trust_code)

    def _alone(self, name: str) -> Step:
        names = [step.name for step in self.steps]
        if name not in names:
            raise ConfigError(f"{self.file}: no stage `{name}`{nearest(name, names)}")
        step = self.steps[names.index(name)]
        for parent in step.parents:
            if not self.steps[names.index(parent)].finished:
                raise ConfigError(f"{self.file}: `{name}` reads `{parent}`, which is not finished: run that first")
        return step

    def _follow(self, plan: Plan, view: View) -> None:
        if plan.runs and not (why := self._why(plan.step)):
            plan.runs, plan.reason = False, SAME_AGAIN
        elif plan.runs:
            plan.reason = why
        if not plan.runs:
            view.ends(plan, "kept", 0.0)
            return
        begun = time.monotonic()
        view.begins(plan)
        try:
            self._run(plan.step)
        except BaseException as error:
            asked = isinstance(error, Interrupted | KeyboardInterrupt)
            view.ends(plan, "stopped" if asked else "failed", time.monotonic() - begun)
            raise
        view.ends(plan, "done", time.monotonic() - begun)

    def _run(self, step: Step) -> None:
        record = Record(self.out)
        identity = step.identity()
        begun_as = record.begun(step.name)
        if step.output.exists() and (begun_as is None or self._differs(begun_as, identity)):
            _set_aside(step.output, self.out / "replaced")
        record.begin(step.name, identity)
        begun = time.monotonic()
        _, function = step.kind.load()
        returned = function(step.settings)
        made = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - begun, 2),
            **_software(),
        }
        record.finish(step.name, identity, made, {} if step.results_file else results_of(returned))

    def _pass(self, gate: Gate, view: View) -> None:
        """Checks a gate.

        Raises:
            GateError: it does not hold, with the evidence.
        """
        verdict = gate.check(self.results())
        Record(self.out).gate(gate, verdict)
        view.gate(gate, verdict)
        if verdict.holds:
            return
        last = [step.name for step in self.steps if step.name in gate.stages][-1]
        files = [step.results_file or Record(self.out).file for step in self.steps if step.name in gate.stages]
        raise GateError(
            "\n  ".join(
                [
                    f"{gate.place}the gate `{gate.text}` does not hold; the pipeline stops after `{last}`",
                    *verdict.lines(),
                    f"see {', '.join(map(str, files))}",
                ]
            )
        )


@cache
def _software() -> dict[str, Any]:
    """What runs, for the lineage of outputs that keep no record of their own."""
    known = environment(seed=0)
    return {name: known[name] for name in ("goodheart", "git_commit", "python", "packages")}


@contextmanager
def _held(lock: FolderLock) -> Iterator[None]:
    lock.take()
    try:
        yield
    finally:
        lock.release()


def _set_aside(output: Path, folder: Path) -> None:
    """Moves an output that is replaced out of the way: labels and checkpoints are never deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := folder / f"{output.stem}-{number}{output.suffix}").exists():
        number += 1
    output.rename(target)
