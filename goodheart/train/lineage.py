"""Where a run comes from: settings, code, packages, machine, parents and data, with content hashes."""

from __future__ import annotations

import datetime
import glob
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import goodheart
from goodheart.train.config import NOT_RESULTS
from goodheart.train.files import sha256_of, sha256_of_folder

_NOT_COMPARED = {"out"} | NOT_RESULTS
_ABSENT = object()
_PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "datasets",
    "pydantic",
)

_FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def inputs(parents: dict[str, str], data: list[str]) -> dict[str, Any]:
    """What a run is computed from, by content: parents' models and data files.

    Args:
        parents: role -> run folder, model folder, or a name on the Hub (which has no hash here).
        data: files, folders, or names on the Hub.
    """
    return {
        "parents": {role: {"path": path, "sha256": content(path)} for role, path in parents.items()},
        "data": [{"path": path, "sha256": content(path), "bytes": _size(path)} for path in data],
    }


def environment(seed: int) -> dict[str, Any]:
    """The code, packages, machine and command of this process."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "goodheart": goodheart.__version__,
        "code_sha256": code_hash(),
        "git_commit": _git_commit(Path(goodheart.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "packages": packages(),
        "hardware": hardware(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "seed": seed,
    }


def packages() -> dict[str, str]:
    """name -> version of the packages that results may depend on, without importing them."""
    return {name: version for name in _PACKAGES if (version := _version(name)) is not None}


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which inputs have other content than when the run was started."""
    names = []
    for role, parent in now["parents"].items():
        was = before.get("parents", {}).get(role, {})
        if was.get("sha256") != parent["sha256"]:
            names.append(f"{role} {parent['path']}")
    was_data = {item["path"]: item["sha256"] for item in before.get("data", [])}
    return names + [item["path"] for item in now["data"] if was_data.get(item["path"]) != item["sha256"]]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """`key: old there, new now` for every setting that differs, and `order of key` for blocks in another order."""
    old, new = _flat(there), _flat(here)
    return [
        f"{key}: {old.get(key, '(not set)')} there, {new.get(key, '(not set)')} now"
        for key in sorted(old.keys() | new.keys())
        if key not in _NOT_COMPARED and old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ] + [f"order of {key}" for key in reordered(there, here)]


def reordered(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Blocks with the same keys in another order: models are compared in the order in which they are named, say."""
    for key, block in new.items():
        was = old.get(key)
        if isinstance(block, Mapping) and isinstance(was, Mapping):
            if [name for name in was if name in block] != [name for name in block if name in was]:
                yield f"{prefix}{key}"
            yield from reordered(was, block, f"{prefix}{key}.")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def plain(value: Any) -> Any:
    """Settings as what YAML and JSON give back: tuples become lists, paths become strings."""
    return json.loads(json.dumps(value, default=plain_value))


def plain_value(value: Any) -> Any:
    """What JSON writes for a value that it does not know."""
    return value.item() if hasattr(value, "item") else str(value)  # numbers of numpy and torch; paths and the like


def is_function(spec: str) -> bool:
    """Whether `spec` names a Python function (`package.module:function`) rather than a folder or Hub id."""
    return bool(_FUNCTION.match(spec)) and not Path(spec).exists()


def same_place(one: str, other: str) -> bool:
    """Whether two settings name the same thing, however written; a run folder and its `model/` are one."""
    return one == other or _place(one) == _place(other)


def _place(text: str) -> Path:
    place = Path(text).expanduser().resolve()
    return place.parent if place.name == "model" else place


def content(text: str) -> str | None:
    """Hash of what a setting names: a run or model folder, a data file, folder or pattern, or a function's source file.

    None for what lies elsewhere, such as a name on the Hub.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        is_run = (path / "lineage.json").is_file() or (path / "DONE").is_file()
        return sha256_of_folder(path / "model" if is_run and (path / "model").is_dir() else path)
    if path.is_file():
        return sha256_of(path)
    if is_function(text):
        file = Path(*text.partition(":")[0].split(".")).with_suffix(".py")
        return sha256_of(file) if file.is_file() else None
    files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    return " ".join(f"{file.name}:{sha256_of(file)}" for file in files) or None


def _size(text: str) -> int | None:
    path = Path(text).expanduser()
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit(root: Path) -> str | None:
    """The commit of the checkout this package lies in, `-dirty` when its files differ from it."""
    # An installed package may lie inside somebody else's checkout, whose commit would say nothing.
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + "-dirty" * bool(_git(root, "status", "--porcelain", "--", "goodheart"))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def code_hash() -> str:
    """One hash over all of goodheart's own source files."""
    parts = (sha256_of_folder(Path(goodheart.__file__).parent, files) for files in ("*.py", "*.[ch]"))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def hardware() -> dict[str, Any]:
    """The machine, as far as results may depend on it."""
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # which instructions torch computes with
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return _mac_cpu_name() or platform.processor()
    told = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    names = [value for name, value in told if name == "model name"]
    if names:
        return names[0]
    # ARM has numbers in place of a name, and may have cores of several kinds
    numbers = dict.fromkeys(f"{name} {value}" for name, value in told if name.startswith("CPU "))
    return ", ".join(numbers) or platform.processor()


def _mac_cpu_name() -> str:
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
