"""What made a model: the tree of its parents and data, with settings and code, and what has changed since.

A run folder tells it in lineage.json; what other stages wrote is found in the pipeline.json of their pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from goodheart.errors import RunError
from goodheart.loop.outputs import output_digest
from goodheart.loop.record import NAME as RECORD
from goodheart.loop.record import Record
from goodheart.loop.registry import STAGES
from goodheart.loop.step import flat
from goodheart.train.lineage import content, is_function

# Settings that are told apart, or that say how and where and not what.
_NOT_TOLD = {"out", "quiet", "device", "dtype", "tensorboard", "checkpoint_every", "keep_checkpoints", "log_every"}
_SHORT_HASH = 12


@dataclass
class Origin:
    """One output or input, and what it was made from."""

    path: str
    role: str = ""  # model, reward, data ... of what it was read by
    stage: str = ""  # kind of stage that made it; "" = nobody knows
    output: str = ""  # what that stage wrote: the path itself, or a folder around it
    sha256: str | None = None  # of what was read, at that time
    settings: dict[str, Any] = field(default_factory=dict)  # those that differ from the defaults
    made: dict[str, str] = field(default_factory=dict)  # when, by which code
    inputs: list[Origin] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Origin]:
        """This one and all below it."""
        yield self
        for origin in self.inputs:
            yield from origin.walk()


def trace(path: Path) -> Origin:
    """The origin of an output.

    Args:
        path: a run folder, its model/, or a file or folder that a stage of a pipeline wrote.

    Raises:
        RunError: there is nothing, or no record says how it was made.
    """
    if not path.exists():
        raise RunError(f"{path}: no such file or folder")
    origin = _made(Origin(str(path)), path, ())
    if not origin.stage:
        raise RunError(
            f"{path}: no record of how it was made: neither a lineage.json nor a {RECORD} that names it; give a run "
            f"folder, or the output of a stage, from where the pipeline ran (paths are relative to {Path.cwd()})"
        )
    return origin


def show_lineage(path: Path) -> None:
    """Prints the tree, and the warnings below it."""
    origin = trace(path)
    console = Console(highlight=False)
    console.print(_tree(origin, set()))
    for warning in dict.fromkeys(w for each in origin.walk() for w in each.warnings):
        console.print(Text(f"warning: {warning}", style="yellow"))


def _made(origin: Origin, path: Path, above: tuple[Path, ...]) -> Origin:
    """Fills in how `path` was made, where a record tells."""
    output = next((p for p in (path, *path.parents) if _is_output(p)), None)
    if output is None or output.resolve() in above:
        return origin
    origin.output = str(output)
    recorded = _recorded(output)
    if recorded is not None and recorded.get("output") not in (None, output_digest(output)):
        origin.warnings.append(f"{output} was changed after it was made")
    if (output / "lineage.json").is_file():
        _from_run(origin, output, above)
    else:
        _from_pipeline(origin, output, above)
    return origin


def _is_output(path: Path) -> bool:
    return (path / "lineage.json").is_file() or _recorded(path) is not None


def _from_run(origin: Origin, run: Path, above: tuple[Path, ...]) -> None:
    known = _mapping(run / "lineage.json", _lineage)
    settings = _mapping(run / "config.yaml", yaml.safe_load)
    start = known["starts"][-1] if known["starts"] else {}
    origin.stage = known.get("stage", "run")
    origin.settings = _telling(origin.stage, settings)
    origin.made = _when(start)
    if not (run / "DONE").is_file():
        origin.warnings.append(f"{run} is not finished")
    hashes = {code for each in known["starts"] if (code := each.get("code_sha256"))}
    if len(hashes) > 1:
        origin.warnings.append(f"{run}: the code changed while it ran")
    for role, parent in known["parents"].items():
        _input(origin, role, parent["path"], parent.get("sha256"), (*above, run.resolve()))
    for item in known["data"]:
        _input(origin, "data", item["path"], item.get("sha256"), (*above, run.resolve()))


def _from_pipeline(origin: Origin, output: Path, above: tuple[Path, ...]) -> None:
    known = _recorded(output)
    assert known is not None
    origin.stage = known.get("stage", "stage")
    origin.settings = _telling(origin.stage, known["settings"])
    origin.made = _when(known.get("made", {}))
    roles = _roles(origin.stage, known["settings"])
    kept = {known["settings"].get(name) for name in STAGES[origin.stage].campaigns} if origin.stage in STAGES else set()
    for path, digest in known["inputs"].items():
        if path in kept:  # people go on labelling: that there are more labels now is no fault of what was made
            origin.inputs.append(Origin(path, "campaign"))
            continue
        _input(origin, roles.get(path, "data"), path, digest, (*above, output.resolve()))
    for text, role in roles.items():
        if is_function(text):
            _input(origin, role, text, None, above)


def _input(origin: Origin, role: str, path: str, digest: str | None, above: tuple[Path, ...]) -> None:
    read = Origin(path, role, sha256=digest)
    now = content(path)
    if is_function(path) or (digest is None and not Path(path).exists()):
        pass  # code, or a name on the Hub: there is nothing to compare
    elif now is None:
        read.warnings.append(f"{path} is not here any more")
    elif digest is not None and now != digest:
        read.warnings.append(f"{path} has changed since {origin.path} was made from it")
    if Path(path).exists():
        _made(read, Path(path), above)
    origin.inputs.append(read)


def _recorded(output: Path) -> dict[str, Any] | None:
    """What the pipeline.json beside an output says of it."""
    done = Record(output.parent).read()["done"]
    place = output.resolve()
    return next((each for each in done.values() if Path(each["settings"].get("out", "")).resolve() == place), None)


def _mapping(file: Path, read: Callable[[str], Any]) -> dict[str, Any]:
    """What a run's file holds.

    Raises:
        RunError: it is damaged.
    """
    try:
        found = read(file.read_text(encoding="utf-8"))
        if found is not None and not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
        return found or {}
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"{file} cannot be read ({error}), so nothing says how this run was made") from error


def _lineage(text: str) -> dict[str, Any]:
    """A run's lineage.json, if it has the shape of one.

    Raises:
        ValueError: it has not.
    """
    known = {"starts": [], "parents": {}, "data": []} | json.loads(text)
    starts, parents, data = known["starts"], known["parents"], known["data"]
    if not (isinstance(starts, list) and isinstance(parents, dict) and isinstance(data, list)):
        raise ValueError("it is no record of a run")
    read = [*parents.values(), *data]
    if not all(isinstance(each, dict) for each in [*starts, *read]) or not all("path" in each for each in read):
        raise ValueError("it is no record of a run")
    return known


def _telling(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from the stage's defaults, less what its inputs tell."""
    if stage not in STAGES:
        return {key: value for key, value in settings.items() if key not in _NOT_TOLD}
    kind = STAGES[stage]
    fields = kind.load_settings().model_fields
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    usual = flat(json.loads(json.dumps(defaults, default=_plain)))
    inputs = {name.partition(".")[0] for name in (*kind.models, *kind.data)}
    told = {key: value for key, value in settings.items() if key not in _NOT_TOLD | inputs}
    return {key: value for key, value in flat(told).items() if usual.get(key) != value}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def _when(start: Mapping[str, Any]) -> dict[str, str]:
    """Time and code of a start, as short as it is still of use."""
    commit, _, dirty = str(start.get("git_commit") or "").partition("-")
    code = f"commit {commit[:_SHORT_HASH]}{' with changes' if dirty else ''}" if commit else ""
    minute = str(start.get("time", ""))[:16].replace("T", " ")
    return {"made": minute, "by": code or f"goodheart {start.get('goodheart')}"} if start else {}


def _roles(stage: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Input -> the setting that names it."""
    if stage not in STAGES:
        return {}
    return {text: ".".join(map(str, path)) for path, text, _ in STAGES[stage].inputs(settings)}


def _tree(origin: Origin, told: set[str]) -> Tree:
    """What was told higher up is only named."""
    line = _line(origin)
    if origin.output and origin.output in told:
        line.append("  (see above)", style="dim")
        return Tree(line)
    told.add(origin.output)
    for part in (origin.settings, origin.made):
        if part:
            line.append("\n" + "  ".join(f"{key} {_value(value)}" for key, value in part.items()), style="dim")
    tree = Tree(line)
    for read in origin.inputs:
        tree.add(_tree(read, told))
    return tree


def _line(origin: Origin) -> Text:
    text = Text()
    if origin.role:
        text.append(f"{origin.role}: ", style="dim")
    text.append(origin.path, style="bold")
    if origin.stage:
        text.append(f"  {origin.stage}", style="cyan")
    if origin.sha256:
        text.append(f"  {origin.sha256[:_SHORT_HASH]}", style="dim")
    if origin.warnings:
        text.append("  !", style="yellow")
    return text


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
