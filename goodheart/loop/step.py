"""One stage of a pipeline: what its output depends on, whether it is there, and what it came to."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from goodheart.loop.code import changed, code_of
from goodheart.loop.outputs import Stamps, stamps, whole
from goodheart.loop.registry import Stage
from goodheart.train.config import NOT_RESULTS, Path_, Settings
from goodheart.train.lineage import content, is_function, reordered

Identity = dict[str, Any]

_MOST_FILES = 3  # named in a reason; the others are counted


@dataclass
class Step:
    """A stage with its settings resolved."""

    name: str
    kind_name: str
    kind: Stage
    settings: Settings
    output: Path
    parents: list[str] = field(default_factory=list)  # names of earlier stages it reads

    def __post_init__(self) -> None:
        # Of users' functions at once: a module that is imported after this and edited then would run as it was.
        modules = [text.partition(":")[0] for _, text, _ in self.inputs if is_function(text)]
        self._functions = {file: digest for module in modules for file, digest in code_of(module).items()}

    @cached_property
    def place(self) -> Path:
        """Its output, from the root on."""
        return whole(self.output)

    @cached_property
    def inputs(self) -> list[tuple[Path_, str, bool]]:
        """What its settings name as input, see `Stage.inputs`."""
        return list(self.kind.inputs(self.settings.model_dump(mode="json")))

    @cached_property
    def code(self) -> dict[str, str]:
        """file -> hash, of what makes the output; goodheart's own as when first asked for, before a stage runs."""
        return code_of(self.kind.module) | self._functions

    @property
    def finished(self) -> bool:
        """Whether its output is there as a whole."""
        return self.output.is_file() if self.kind.suffix else (self.output / self.kind.last).exists()

    @property
    def results_file(self) -> Path | None:
        """Where an output folder keeps its results."""
        file = self.output / "results.json"
        return file if file.is_file() else None

    def identity(self) -> Identity:
        """What the output depends on: settings, the content of all they name, and the code that runs."""
        settings = self.settings.model_dump(mode="json", exclude={"quiet"})
        inputs: dict[str, str] = {}
        for _, text, _ in self.inputs:
            if not is_function(text) and (digest := _digest(text, _stamps(text))) is not None:
                inputs[text] = digest
        for name in self.kind.campaigns:
            from goodheart.loop.campaign_data import digest as labels_so_far  # a database: only where one is read

            inputs[settings[name]] = labels_so_far(settings[name])
        return {"stage": self.kind_name, "settings": settings, "inputs": inputs, "code": self.code}


@lru_cache(maxsize=4096)
def _digest(text: str, files: Stamps) -> str | None:
    """Content of an input; a model that many stages read is not read again as long as its stamps are the same."""
    return content(text)


def _stamps(text: str) -> Stamps:
    """Those of every file that is meant."""
    path = Path(text).expanduser()
    return stamps(
        path.rglob("*") if path.is_dir() else [path] if path.is_file() else map(Path, glob(text, recursive=True))
    )


def difference(before: Identity, now: Identity, *, with_code: bool = True, usual: Collection[str] = ()) -> str:
    """In words, why a finished output no longer stands; empty where it does.

    Args:
        before: what it was made from.
        now: what it would be made from.
        with_code: whether other code counts.
        usual: settings that do not count, see `newly_usual`.
    """
    old, new = flat(before["settings"]), flat(now["settings"])
    settings = [key for key in old | new if old.get(key) != new.get(key) and _counts(key, usual)]
    reasons = [f"{key}: {_shown(old, key)} -> {_shown(new, key)}" for key in settings]
    reasons += [f"order of {key}" for key in reordered(before["settings"], now["settings"])]
    inputs = before["inputs"]
    reasons += [f"{path} changed" for path, digest in now["inputs"].items() if inputs.get(path, digest) != digest]
    if before.get("stage", now["stage"]) != now["stage"]:
        reasons.insert(0, f"stage: {before['stage']} -> {now['stage']}")
    if with_code:
        files = changed(before["code"], now["code"]) if "code" in before else ["(not recorded)"]
        more = f" and {len(files) - _MOST_FILES} more" if len(files) > _MOST_FILES else ""
        reasons += [f"code changed: {', '.join(files[:_MOST_FILES])}{more}"] if files else []
    return "; ".join(reasons)


def newly_usual(before: Mapping[str, Any], settings: BaseModel, prefix: str = "") -> Iterator[str]:
    """Settings that there were not before and that have their default: code that knew nothing of them did the same."""
    for name, about in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name not in before:
            if not about.is_required() and value == about.get_default(call_default_factory=True):
                yield f"{prefix}{name}"
        elif isinstance(value, BaseModel) and isinstance(before[name], Mapping):
            yield from newly_usual(before[name], value, f"{prefix}{name}.")


def _counts(key: str, usual: Collection[str]) -> bool:
    return key.partition(".")[0] not in NOT_RESULTS and not any(
        key == name or key.startswith(f"{name}.") for name in usual
    )


def results_of(returned: Any) -> dict[str, Any]:
    """Results of a stage that writes one file, from what its function returns: its `results`, or the numbers in it."""
    found = getattr(returned, "results", None)
    if not isinstance(found, Mapping):
        found = vars(returned) if hasattr(returned, "__dataclass_fields__") else {}
    kept = {key: value for key, value in found.items() if isinstance(value, Mapping | str | int | float | None)}
    return json.loads(json.dumps({key: value for key, value in kept.items() if value != {}}, default=str))


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `block.key` -> value."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) and item else {f"{prefix}{key}": item}
    return found


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"
