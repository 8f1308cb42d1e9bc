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
from typing import Any

from goodheart.errors import ConfigError, GateError, Interrupted, RunError
from goodheart.loop.gates import Gate
from goodheart.loop.outputs import is_ours, output_digest, set_aside
from goodheart.loop.plan import Plan, Unseen, View
from goodheart.loop.reading import PipelineFile
from goodheart.loop.record import Record
from goodheart.loop.step import Identity, Step, difference, newly_usual, results_of
from goodheart.train.config import nearest
from goodheart.train.lineage import environment
from goodheart.train.lock import FolderLock

SAME_AGAIN = "what it reads came out the same"


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

    def plan(self, only: str | None = None) -> list[Plan]:
        """Which steps would run, in order, each with its reason.

        Args:
            only: this stage alone.

        Raises:
            ConfigError: `only` names no stage; or something lies where a stage would write that is not ours.
        """
        plans: list[Plan] = []
        running: set[str] = set()
        self._refuse_foreign()
        for step in self.steps:
            before = [name for name in step.parents if name in running]
            why = f"{', '.join(before)} runs before it" if before else self._why(step)
            plans.append(Plan(step, bool(why), why or "unchanged"))
            if why:
                running.add(step.name)
        return plans if only is None else [self._alone(only, plans)]

    def run(self, only: str | None = None, view: View | None = None) -> list[Plan]:
        """Runs what the plan says, in order, and checks the gates; returns the plan with what was done.

        Args:
            only: run this stage alone, if the gates over those that it builds on hold.
            view: told what happens.

        Raises:
            ConfigError: `only` names no stage, or one whose inputs are not there yet; a gate names no result; something
                lies where a stage would write that is not ours.
            GateError: a gate does not hold.
            RunError: another process runs this pipeline.
        """
        view = view or Unseen()
        if only is not None:
            self._step(only)  # before a folder is made
        _ = [step.code for step in self.steps]  # what is loaded; a file that is edited from now on counts next time
        with _held(FolderLock(self.out)):
            Record(self.out).keep_gates(self.gates)
            plans = self.plan(only)
            for gate in self._ahead(only):
                self._pass(gate, view)
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
        return _joined(self._differs(before, step), "its output was changed" if _altered(before, step) else "")

    def _differs(self, before: Identity, step: Step) -> str:
        usual = tuple(newly_usual(before["settings"], step.settings)) if self.trust_code else ()
        return difference(before, step.identity(), with_code=not self.trust_code, usual=usual)

    def _refuse_foreign(self) -> None:
        """Raises where something lies at the place of an output that neither this pipeline nor goodheart wrote."""
        known = Record(self.out).known()
        for step in self.steps:
            if step.output.exists() and not is_ours(step.output, known):
                raise ConfigError(
                    f"{self.file}: stage `{step.name}`: {step.output} is there and no stage of this pipeline made it; "
                    "move it or choose another `out`"
                )

    def _step(self, name: str) -> Step:
        found = {step.name: step for step in self.steps}
        if name not in found:
            raise ConfigError(f"{self.file}: no stage `{name}`{nearest(name, list(found))}")
        return found[name]

    def _alone(self, name: str, plans: list[Plan]) -> Plan:
        """The plan of a stage that is run by itself, and what is to be said of those it reads."""
        step = self._step(name)
        reads = [plan for plan in plans if plan.step.name in step.parents and plan.runs]
        told = [
            f"parent `{p.step.name}` {'would run again' if p.step.finished else 'must run first'} ({p.reason})"
            for p in reads
        ]
        why = self._why(step)
        return Plan(step, bool(why), _joined(why or "unchanged", *told), _joined(*told))

    def _ahead(self, only: str | None) -> Iterator[Gate]:
        """The gates that have to hold before a stage may be run alone: those over stages that it builds on."""
        if only is None:
            return
        above, open_ = set[str](), [only]
        while open_:
            new = set(self._step(open_.pop()).parents) - above
            above |= new
            open_ += new
        for parent in self._step(only).parents:
            if not self._step(parent).finished:
                raise ConfigError(f"{self.file}: `{only}` reads `{parent}`, which is not finished: run that first")
        finished = {step.name for step in self.steps if step.finished}
        yield from (gate for gate in self.gates if (above & finished).issuperset(gate.stages))

    def _follow(self, plan: Plan, view: View) -> None:
        # asked again: what came before may have made what this one reads
        why = self._why(plan.step)
        if why:
            plan.runs, plan.reason = True, _joined(why, plan.beside)
        elif plan.runs:
            plan.runs, plan.reason = False, SAME_AGAIN
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
        if step.output.exists():
            if begun_as is None or self._differs(begun_as, step) or _altered(record.done(step.name), step):
                set_aside(step.output, self.out / "replaced")
            elif "code" in begun_as:
                identity["code"] = begun_as["code"]  # part of it was made by that, also where other code is trusted
        record.begin(step.name, identity, self.gates)
        begun = time.monotonic()
        returned = step.kind.load()(step.settings)
        made = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - begun, 2),
            **_software(),
        }
        results = {} if step.results_file else results_of(returned)
        record.finish(step.name, identity, output_digest(step.output), made, results)

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
    try:
        lock.take()
    except RunError as error:
        raise RunError(str(error).replace("choose another --out", "choose another folder with --set out=")) from error
    try:
        yield
    finally:
        lock.release()


def _altered(done: Identity | None, step: Step) -> bool:
    """Whether a finished output is no longer what it was when it was done; one of an older record counts as it is."""
    return done is not None and step.finished and done.get("output") not in (None, output_digest(step.output))


def _joined(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)
