"""Settings: YAML files and `--set a.b=c` into typed objects, with errors that name the line and the nearest key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from goodheart.errors import ConfigError
from goodheart.train.elsewhere import called_here

Path_ = tuple[str | int, ...]
S = TypeVar("S", bound="Settings")

# Settings that say how loudly, how fast or how safely a stage works; what it makes does not depend on them.
NOT_RESULTS = frozenset(
    {"quiet", "log_every", "tensorboard", "keep_checkpoints", "checkpoint_every", "max_tokens", "profile"}
)


class Settings(BaseModel):
    """Base of every block of settings: unknown keys are errors, values are checked on assignment, numbers finite."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        validate_assignment=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        defer_build=True,  # of most blocks only the class is needed, and validators take long to make
    )


class LoraSettings(Settings):
    """Low-rank adapters (arXiv:2106.09685); absent = every weight is trained."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)  # scale of the update is alpha / rank
    targets: list[str] | Literal["all-linear"] = "all-linear"


class RunSettings(Settings):
    """What every stage that writes a run folder has."""

    out: Path  # run folder; created, or continued when the same command was interrupted
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    quiet: bool = False


class TrainingSettings(RunSettings):
    """What every training stage has. Sizes are per optimizer step over all processes, never per device."""

    model: str  # run folder, Hugging Face folder or Hub id
    dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # auto: float32 on CPU, bfloat16 on GPU; master weights stay float32
    )
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=True)  # .inf = gradients are not clipped
    batch_size: int = Field(32, ge=1)  # rows per optimizer step
    max_tokens: int = Field(16384, ge=1)  # padded tokens per forward pass: the memory knob, results do not depend on it
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)  # stops earlier than `epochs` where set
    max_length: int | None = Field(None, ge=2)  # tokens per row; None = what the model can take
    activation_checkpointing: bool = False
    lora: LoraSettings | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"  # used under torchrun only
    checkpoint_every: int = Field(100, ge=1)  # steps
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(1, ge=1)  # steps
    profile: bool = False  # a few steps under torch's profiler: where time and memory go, into the run's profile/
    tensorboard: bool = False  # also write TensorBoard files into the run folder (needs goodheart[track])
    # A string prompt is continued as it is (raw), or wrapped as a user's turn; None = as `model` was trained, else raw.
    plain_prompts: Literal["raw", "user"] | None = None

    @model_validator(mode="after")
    def _whole_adapters(self) -> Self:
        if self.lora is not None and self.parallel == "fsdp":
            raise ValueError("lora with parallel fsdp is not supported; adapters are small: use parallel ddp")
        return self

    @field_validator("adam_betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in value):
            raise ValueError("each must lie in [0, 1)")
        return value


def build(
    kind: type[S],
    *,
    file: Path | None = None,
    sets: list[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> S:
    """Settings from a YAML file, then command-line options, then `--set` (the last wins).

    Args:
        kind: the settings class.
        file: YAML file with the fields of `kind`.
        sets: `key.sub=value` strings; values are read as YAML.
        overrides: values given by options of their own; None means not given.

    Raises:
        ConfigError: unknown key (with the nearest one), wrong type, missing field; names file and line.
    """
    values, lines = ({}, {}) if file is None else load_yaml(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected `key: value` lines, found {type(values).__name__}")
    for key, value in (overrides or {}).items():
        if value is not None:
            values[key] = value
            lines.pop((key,), None)
    apply_sets(values, sets or [])
    return validate(kind, values, lines, file)


def validate(
    kind: type[S], values: Mapping[str, Any], lines: Mapping[Path_, int], file: Path | str | None, root: Path_ = ()
) -> S:
    """Checks `values` against `kind` and turns every complaint into one ConfigError."""
    problems = [
        f"{place(file, lines, root + path)}unknown key `{'.'.join(map(str, path))}`"
        f"{called_here(str(path[-1]), known) or nearest(str(path[-1]), known)}"
        for path, known in _unknown_keys(kind, values)
    ]
    if not problems:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            for item in error.errors():
                path = tuple(
                    p
                    for p in item["loc"]
                    if not (isinstance(p, str) and p.startswith(("literal", "list[", "function")))
                )
                name = ".".join(map(str, path))
                if item["type"] == "missing":
                    problems.append(
                        f"{place(file, lines, root)}`{name}` is missing: give it in the file or on the command line"
                    )
                else:
                    shown = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
                    named = f"`{name}`: " if name else ""  # what is wrong with several together names them itself
                    problems.append(f"{place(file, lines, root + path)}{named}{_told(item)}{shown}")
    raise ConfigError("\n".join(dict.fromkeys(problems)))


def listed(sources: str | list[str] | None) -> list[str]:
    """What a setting names, one, several or none, as a list."""
    return [sources] if isinstance(sources, str) else list(sources or [])


def apply_sets(values: dict[str, Any], sets: list[str]) -> None:
    """Writes each `a.b=value` into the nested dictionary `values`."""
    for item in sets:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {item}: write it as --set key=value or --set block.key=value")
        target: Any = values
        *parents, last = key.strip().split(".")
        for part in parents:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise ConfigError(f"--set {item}: `{part}` is not a block of settings")
        try:
            target[last] = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item}: cannot read the value: {error}") from error


def load_yaml(path: Path) -> tuple[Any, dict[Path_, int]]:
    """A YAML file as plain values, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        folder = path.parent if path.parent.is_dir() else Path(".")
        names = [p.name for p in folder.iterdir() if p.suffix in {".yaml", ".yml"}]
        raise ConfigError(f"{path}: no such file{nearest(path.name, names)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        lines: dict[Path_, int] = {}
        for where, number, again in _walk(node, (), ()):
            if again:
                raise ConfigError(f"{path}:{number}: key `{where[-1]}` is given twice")
            lines[where] = number
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean X?` or the list of what is known, to be put behind an error."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    begun = [name for name in known if word and name.startswith(word)]
    if close or len(begun) == 1:
        return f"; did you mean `{(close or begun)[0]}`?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def place(file: Path | str | None, lines: Mapping[Path_, int], path: Path_) -> str:
    """`file:line: ` of a key, or of the nearest block around it, or nothing for the command line."""
    if file is None:
        return ""
    while path and path not in lines:
        path = path[:-1]
    return f"{file}:{lines[path]}: " if path else f"{file}: "


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C, ten times as fast
    """YAML 1.2's idea of numbers: 1e-4 is a number (PyYAML alone reads it as a string). Keys are names and stay text:
    `true: 2` is about an aspect called true.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)  # while `<<` still has its meaning
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = self.DEFAULT_SCALAR_TAG
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _walk(node: yaml.Node, path: Path_, around: tuple[yaml.Node, ...]) -> Iterator[tuple[Path_, int, bool]]:
    """Every key and item with its line, and whether its block has it already."""
    if any(node is outer for outer in around):
        raise yaml.MarkedYAMLError(problem="a block that contains itself", problem_mark=node.start_mark)
    inside = (*around, node)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be one word, not a list or a block", problem_mark=key.start_mark
                )
            where = (*path, key.value)
            yield where, key.start_mark.line + 1, key.value in seen
            seen.add(key.value)
            yield from _walk(value, where, inside)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*path, i), item.start_mark.line + 1, False
            yield from _walk(item, (*path, i), inside)


def _unknown_keys(
    kind: type[BaseModel], values: Mapping[str, Any], path: Path_ = ()
) -> Iterator[tuple[Path_, list[str]]]:
    fields = kind.model_fields
    for key, value in values.items():
        if key not in fields:
            yield (*path, key), list(fields)
            continue
        block = next((a for a in (fields[key].annotation, *get_args(fields[key].annotation)) if _is_settings(a)), None)
        if block is None or not isinstance(value, Mapping):
            continue
        here = {(*path, key): value}
        if get_origin(fields[key].annotation) is dict:  # name -> block
            here = {(*path, key, name): part for name, part in value.items()}
        for where, part in here.items():
            if isinstance(part, Mapping):
                yield from _unknown_keys(block, part, where)


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _told(item: ErrorDetails) -> str:
    """What pydantic says, less what only programmers know."""
    if item["type"] in ("model_type", "dict_type"):
        return "must be a block of `key: value`"
    message = item["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
