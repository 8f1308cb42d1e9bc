"""The pipeline file: stages in order, finished ones skipped, changed ones run again with all that depends on them.

    out: runs/hh-small
    vars:
      data: ../shared/data
    stages:
      sft:
        model: HuggingFaceTB/SmolLM2-135M
        data: ${data}/demonstrations.jsonl
      reward:
        model: ${sft}                 # the run folder of the stage `sft`
        data: ${data}/pairs.jsonl
      reward-large:
        stage: reward                 # where the name is not the kind of stage
        ...

`${name}` is a variable or the output of an earlier stage. Paths are relative to the current folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goodheart import __version__
from goodheart.errors import ConfigError
from goodheart.loop.registry import Stage, stage
from goodheart.train.config import Path_, Settings, apply_sets, load_yaml, nearest, place, validate
from goodheart.train.files import replace_text
from goodheart.train.lineage import content

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
# Settings that name what a stage reads.
_INPUTS = ("model", "reference", "reward", "value_model", "data", "eval_data", "prompts")
_KEYS = ("name", "out", "seed", "vars", "stages")


@dataclass
class Step:
    """One stage of a pipeline, its settings resolved."""

    name: str
    kind: Stage
    settings: Settings
    output: Path
    parents: list[str] = field(default_factory=list)  # names of earlier stages it reads


@dataclass
class Plan:
    """What `goodheart run` would do with a step, and why."""

    step: Step
    runs: bool
    reason: str


@dataclass
class Pipeline:
    """A pipeline file, checked as a whole before anything runs."""

    file: Path
    out: Path
    steps: list[Step]

    @classmethod
    def load(cls, file: Path, sets: list[str] | None = None) -> Pipeline:
        """Reads and checks the file.

        Raises:
            ConfigError: with file and line: unknown key, stage or reference, wrong type, missing field.
        """
        values, lines = load_yaml(file)
        if not isinstance(values, dict) or not isinstance(values.get("stages"), dict) or not values["stages"]:
            raise ConfigError(f"{file}: a pipeline needs a block `stages:` with at least one stage")
        apply_sets(values, sets or [])
        for key in values:
            if key not in _KEYS:
                raise ConfigError(f"{place(file, lines, (key,))}unknown key `{key}`{nearest(key, _KEYS)}")
        out = Path(_fill(str(values.get("out", f"runs/{file.stem}")), {}, f"{place(file, lines, ('out',))}`out`", []))
        known: dict[str, str] = {name: str(value) for name, value in (values.get("vars") or {}).items()}
        steps: list[Step] = []
        for name, block in values["stages"].items():
            steps.append(_step(file, lines, values, name, block, known, out, [s.name for s in steps]))
            known[name] = str(steps[-1].output)
        return cls(file, out, steps)

    def plan(self) -> list[Plan]:
        """Which steps would run, in order, each with its reason."""
        done = self._record()
        plans: list[Plan] = []
        running: set[str] = set()
        for step in self.steps:
            changed = [name for name in step.parents if name in running]
            before = done.get(step.name)
            if changed:
                plan = Plan(step, True, f"{', '.join(changed)} runs before it")
            elif not _finished(step):
                plan = Plan(step, True, "not finished" if step.output.exists() else "not run yet")
            elif before is None:
                plan = Plan(step, True, "no record of how its output was made")
            else:
                why = _difference(before, _identity(step))
                plan = Plan(step, bool(why), why or "unchanged")
            if plan.runs:
                running.add(step.name)
            plans.append(plan)
        return plans

    def run(self, only: str | None = None) -> list[Plan]:
        """Runs what the plan says, in order; returns the plan with what was done.

        Raises:
            ConfigError: `only` names no stage.
        """
        if only is not None and only not in [s.name for s in self.steps]:
            raise ConfigError(f"{self.file}: no stage `{only}`{nearest(only, [s.name for s in self.steps])}")
        plans = self.plan()
        for plan in plans:
            if plan.runs and only in (None, plan.step.name):
                self._run(plan.step)
        return plans

    def _run(self, step: Step) -> None:
        identity = _identity(step)
        begun = self._record("begun").get(step.name)
        if step.output.exists() and begun != identity:
            _set_aside(step.output, self.out / "replaced")
        self._note("begun", step.name, identity)
        _, function = step.kind.load()
        function(step.settings)
        self._note("done", step.name, identity)

    def _record(self, part: str = "done") -> dict[str, Any]:
        path = self.out / "pipeline.json"
        return json.loads(path.read_text(encoding="utf-8")).get(part, {}) if path.exists() else {}

    def _note(self, part: str, name: str, identity: dict[str, Any]) -> None:
        record = {p: self._record(p) for p in ("begun", "done")}
        record[part][name] = identity
        if part == "begun":
            record["done"].pop(name, None)
        self.out.mkdir(parents=True, exist_ok=True)
        replace_text(self.out / "pipeline.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _step(
    file: Path,
    lines: Mapping[Path_, int],
    pipeline: Mapping[str, Any],
    name: str,
    block: Any,
    known: Mapping[str, str],
    out: Path,
    earlier: list[str],
) -> Step:
    root: Path_ = ("stages", name)
    if not isinstance(block, dict):
        raise ConfigError(f"{place(file, lines, root)}stage `{name}` needs settings below it")
    later = [n for n in pipeline["stages"] if n not in earlier]
    parents: list[str] = []

    def fill(value: Any, path: Path_) -> Any:
        if isinstance(value, str):
            where = f"{place(file, lines, root + path)}`{'.'.join(map(str, path))}`"
            for reference in _REFERENCE.findall(value):
                if reference in later and reference not in known:
                    raise ConfigError(f"{where}: stage `{reference}` does not come before `{name}`: move it up")
            parents.extend(r for r in _REFERENCE.findall(value) if r in earlier)
            return _fill(value, known, where, list(known))
        if isinstance(value, dict):
            return {k: fill(v, (*path, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [fill(v, (*path, i)) for i, v in enumerate(value)]
        return value

    filled = fill(block, ())
    kind = stage(str(filled.pop("stage", name)), place(file, lines, (*root, "stage")))
    output = out / f"{name}{kind.suffix}"
    filled.setdefault("out", str(output))
    settings_class, _ = kind.load()
    if "seed" in pipeline and "seed" in settings_class.model_fields:
        filled.setdefault("seed", pipeline["seed"])
    settings = validate(settings_class, filled, lines, file, root)
    return Step(name, kind, settings, Path(filled["out"]), list(dict.fromkeys(parents)))


def _fill(text: str, known: Mapping[str, str], where: str, names: list[str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise ConfigError(
                f"{where}: `${{{match[1]}}}` is neither a variable nor an earlier stage{nearest(match[1], names)}"
            )
        return known[match[1]]

    return _REFERENCE.sub(value, text)


def _finished(step: Step) -> bool:
    return step.output.is_file() if step.kind.suffix else (step.output / step.kind.last).exists()


def _identity(step: Step) -> dict[str, Any]:
    """What the output depends on: settings, the content of everything they name, and the version of goodheart."""
    settings = step.settings.model_dump(mode="json", exclude={"quiet"})
    named = [settings.get(name) for name in _INPUTS]
    texts = [text for value in named for text in (value if isinstance(value, list) else [value]) if text]
    inputs = {text: digest for text in texts if (digest := content(text)) is not None}
    return {"settings": settings, "inputs": inputs, "goodheart": __version__}


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, why a finished step no longer stands; empty where it does."""
    old, new = before["settings"], now["settings"]
    reasons = [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    reasons += [
        f"{path} changed" for path, digest in now["inputs"].items() if before["inputs"].get(path, digest) != digest
    ]
    if before["goodheart"] != now["goodheart"]:
        reasons.append(f"goodheart {before['goodheart']} -> {now['goodheart']}")
    return "; ".join(reasons)


def _set_aside(output: Path, folder: Path) -> None:
    """Moves an output that is replaced out of the way: labels and checkpoints are never deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := folder / f"{output.stem}-{number}{output.suffix}").exists():
        number += 1
    output.rename(target)
