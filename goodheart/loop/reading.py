"""The pipeline file as checked steps and gates; whatever is wrong with it is an error with its line.

    out: runs/hh-small
    vars:
      data: ../shared/data
    stages:
      sft:
        model: HuggingFaceTB/SmolLM2-135M
        data: ${data}/demonstrations.jsonl
      reward:
        model: ${sft}                 # the output of the stage `sft`
        data: ${data}/pairs.jsonl
      reward-large:
        stage: reward                 # where the name is not the kind of stage
        ...
    gates:
      - reward.accuracy > 0.6         # see goodheart/loop/gates.py

`${name}` is a variable, which may be made of those above it, or the output of an earlier stage. Paths are relative to
the current folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goodheart.errors import ConfigError
from goodheart.loop.gates import Gate
from goodheart.loop.inputs import missing
from goodheart.loop.outputs import misplaced, reads_from, whole
from goodheart.loop.registry import stage
from goodheart.loop.step import Step
from goodheart.train.config import Path_, apply_sets, load_yaml, nearest, place, validate
from goodheart.train.lineage import is_function

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_OURS = ("replaced", "pipeline.json", "report.html")  # what a pipeline itself keeps in its folder
_KEYS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "text"),
    "out": ((str,), "a folder"),
    "seed": ((int,), "a whole number"),
    "vars": ((dict,), "a block of `name: value`"),
    "stages": ((dict,), "a block of stages"),
    "gates": ((list,), "a list of expressions, each after a `-`"),
}


@dataclass
class PipelineFile:
    """What a file says, and where in it."""

    file: Path
    values: dict[str, Any]
    lines: Mapping[Path_, int]
    known: dict[str, str] = field(default_factory=dict)  # variables and outputs of earlier stages, by name
    steps: list[Step] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path, sets: list[str] | None = None) -> PipelineFile:
        """Reads and checks a file.

        Args:
            file: YAML.
            sets: `a.b=value`, as of the command line, that override what it says.

        Raises:
            ConfigError: with file and line: unknown key, stage or reference, cycle, wrong type, missing field or input,
                a gate that cannot be read.
        """
        values, lines = load_yaml(file)
        if not isinstance(values, dict) or not values.get("stages"):
            raise ConfigError(f"{file}: a pipeline needs a block `stages:` with at least one stage")
        apply_sets(values, sets or [])
        made = cls(file, values, lines)
        made._check_top()
        for name, value in (values.get("vars") or {}).items():
            made.known[str(name)] = made._variable(name, value)
        for name, block in values["stages"].items():
            step = made._step(str(name), block)
            made.steps.append(step)
            made.known[str(name)] = str(step.output)
        names = [step.name for step in made.steps]
        for i, text in enumerate(values.get("gates") or []):
            made.gates.append(Gate.parse(text, made._place("gates", i), names))
        return made

    @property
    def out(self) -> Path:
        """The folder that all outputs lie in."""
        named = self.values.get("out") or f"runs/{self.file.stem}"
        return Path(self._fill(str(named), ("out",))).expanduser()

    def _place(self, *path: str | int) -> str:
        return place(self.file, self.lines, path)

    def _check_top(self) -> None:
        for key, value in self.values.items():
            if key not in _KEYS:
                raise ConfigError(f"{self._place(key)}unknown key `{key}`{nearest(str(key), list(_KEYS))}")
            kinds, wanted = _KEYS[key]
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise ConfigError(f"{self._place(key)}`{key}` must be {wanted} (got {value!r:.60})")

    def _variable(self, name: Any, value: Any) -> str:
        if isinstance(value, dict | list | None):
            where = self._place("vars", name)
            raise ConfigError(f"{where}`vars.{name}` must be one text or number (got {value!r:.60})")
        if name in self.values["stages"]:
            raise ConfigError(f"{self._place('vars', name)}`{name}` is a variable and a stage; rename one of them")
        return self._fill(str(value), ("vars", name))

    def _step(self, name: str, block: Any) -> Step:
        root: Path_ = ("stages", name)
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{self._place(*root)}stage `{name}`: a name has letters, digits, `-`, `_` and `.` only")
        if name in _OURS:
            raise ConfigError(f"{self._place(*root)}stage `{name}`: the pipeline keeps files of that name; rename it")
        if not isinstance(block, dict):
            raise ConfigError(f"{self._place(*root)}stage `{name}` needs settings below it")
        filled = {key: self._filled(value, (*root, key)) for key, value in block.items()}
        kind_name = str(filled.pop("stage", name))
        kind = stage(kind_name, self._place(*root, "stage"))
        filled["out"] = self._output(filled.get("out"), self.out / f"{name}{kind.suffix}", root)
        settings_class = kind.load_settings()
        if self.values.get("seed") is not None and "seed" in settings_class.model_fields:
            filled.setdefault("seed", self.values["seed"])
        settings = validate(settings_class, filled, self.lines, self.file, root)
        step = Step(name, kind_name, kind, settings, filled["out"], self._parents(name, block))
        self._check_output(step)
        self._check_inputs(step)
        return step

    def _filled(self, value: Any, path: Path_) -> Any:
        """The value with every `${name}` in it replaced."""
        if isinstance(value, str):
            return self._fill(value, path)
        if isinstance(value, dict):
            return {key: self._filled(part, (*path, key)) for key, part in value.items()}
        if isinstance(value, list):
            return [self._filled(part, (*path, i)) for i, part in enumerate(value)]
        return value

    def _fill(self, text: str, path: Path_) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name in self.known:
                return self.known[name]
            where = f"{self._place(*path)}`{'.'.join(map(str, path[2:] or path))}`: "
            if name in self.values["stages"] and path[0] == "stages":
                raise ConfigError(where + self._why_not_yet(str(path[1]), name))
            known = list(self.known)
            raise ConfigError(f"{where}`${{{name}}}` is neither a variable nor an earlier stage{nearest(name, known)}")

        return _REFERENCE.sub(value, text)

    def _why_not_yet(self, name: str, later: str) -> str:
        """What is wrong with a stage that reads one which is not above it."""
        if name == later:
            return f"stage `{name}` reads its own output"
        way = self._way(later, name)
        if way:
            circle = " -> ".join(f"`{stop}`" for stop in (name, *way))
            return f"stages wait for each other: {circle}; one of them must read something else"
        return f"stage `{later}` does not come before `{name}`: move it up"

    def _way(self, start: str, end: str) -> list[str]:
        """Stages from `start` to `end`, each reading the next; empty where there is no way."""
        ways = [[start]]
        seen = {start}
        while ways:
            way = ways.pop(0)
            if way[-1] == end:
                return way
            for read in _references(self.values["stages"][way[-1]]):
                if read in self.values["stages"] and read not in seen:
                    seen.add(read)
                    ways.append([*way, read])
        return []

    def _parents(self, name: str, block: Any) -> list[str]:
        earlier = {step.name for step in self.steps}
        return [read for read in dict.fromkeys(_references(block)) if read in earlier]

    def _output(self, given: Any, usual: Path, root: Path_) -> Path:
        """Where a stage writes; left empty, its usual place."""
        if not isinstance(given, str | None):
            raise ConfigError(f"{self._place(*root, 'out')}`out` must be a file or folder (got {given!r:.60})")
        return Path(given).expanduser() if given else usual

    def _check_output(self, step: Step) -> None:
        """Refuses a place where an output would meet something that must stay."""
        where = self._place("stages", step.name, "out")
        read = [(text, is_data) for _, text, is_data in step.inputs]
        wrong = misplaced(step.output, read, {other.name: other.place for other in self.steps}, self.out)
        if wrong:
            raise ConfigError(f"{where}`out`: {wrong}; choose another place")

    def _check_inputs(self, step: Step) -> None:
        """Refuses inputs that neither exist nor are made by a stage above; notes the stages that make them."""
        for path, text, is_data in step.inputs:
            named = whole(text)
            makers = [other.name for other in self.steps if reads_from(named, other.place, is_data=is_data)]
            step.parents += [name for name in makers if name not in step.parents]
            reason = "" if makers else missing(text, is_data=is_data)
            if reason:
                name = ".".join(map(str, path))
                raise ConfigError(f"{self._place('stages', step.name, *path)}`{name}`: {reason}{self._elsewhere(text)}")

    def _elsewhere(self, text: str) -> str:
        """A word on what a path counts from, for a file that lies in another folder than the current one."""
        here = Path.cwd()
        if is_function(text) or Path(text).expanduser().is_absolute() or self.file.resolve().parent == here:
            return ""
        return f"; paths are relative to the current folder ({here})"


def _references(value: Any) -> Iterator[str]:
    """Every name that stands as `${name}` in a value."""
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _references(part)
