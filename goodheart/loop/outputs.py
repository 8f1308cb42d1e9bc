"""Outputs on disk: where one may lie, whose it is, and whether it is still what was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from goodheart.data.sources import file_kind
from goodheart.train.files import sha256_of
from goodheart.train.lineage import is_function

Stamps = tuple[tuple[str, int, int], ...]

# In a folder that one of our stages wrote into lies one of these.
_MARKERS = ("lineage.json", "DONE", "world.json")
# What a run folder is made for; its logs, plots and reports may change later.
_OF_A_RUN = ("results.json", "scored.jsonl", "model")


def output_digest(output: Path) -> str:
    """Hash of what a stage made: its file, a run's results and model, or all of another folder but hidden files."""
    return _hashed(output, stamps(_made(output)))


def stamps(files: Iterable[Path]) -> Stamps:
    """Name, time and size of every file."""
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found))


def is_ours(output: Path, known: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an output may be moved away: a record knows it, a marker of ours lies in it, or it is an empty folder.

    Args:
        output: what is there.
        known: identities of stages that were begun or done.
    """
    if any(Path(each["settings"].get("out", "")).resolve() == output.resolve() for each in known):
        return True
    return output.is_dir() and (not any(output.iterdir()) or any((output / marker).exists() for marker in _MARKERS))


def set_aside(output: Path, folder: Path) -> None:
    """Moves an output that is replaced out of the way: labels and checkpoints are never deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := folder / f"{output.stem}-{number}{output.suffix}").exists():
        number += 1
    output.rename(target)


def whole(text: str | Path) -> Path:
    """A path as told, from the root on and with links followed: what stands for a place, whatever it is called."""
    return Path(text).expanduser().resolve()


def reads_from(pattern: Path, place: Path, *, is_data: bool) -> bool:
    """Whether an input is an output or lies in it, or is a pattern that finds it, or a folder of data around it.

    Args:
        pattern: the input, whole.
        place: the output, whole.
        is_data: whether the input is data; else a model, a judge or a function.
    """
    wanted, made = pattern.parts, place.parts
    for want, have in zip(wanted, made, strict=False):
        if want == "**":  # any folders; what lies inside a folder that is yet to be made is not known
            return not file_kind(place) or fnmatchcase(str(place), str(pattern).replace("**/", "*"))
        if want != have and not fnmatchcase(have, want):
            return False
    return is_data or len(wanted) >= len(made)


def misplaced(output: Path, inputs: Iterable[tuple[str, bool]], others: Mapping[str, Path], out: Path) -> str:
    """What is wrong with the place of an output, in words; empty where nothing is.

    Args:
        output: the place.
        inputs: what the stage reads: text, and whether it is data.
        others: where the stages above write, whole, by name.
        out: the pipeline's folder.
    """
    place = whole(output)
    for what, folder in (("the pipeline's own folder", out.resolve()), ("the current folder", Path.cwd())):
        if _contains(place, folder):
            return f"{output} is or contains {what}"
    for name, other in others.items():
        if place == other:
            return f"stage `{name}` writes {output} already"
        if _contains(place, other) or _contains(other, place):
            return f"{output} and what stage `{name}` writes lie in each other"
    for text, is_data in inputs:
        if not is_function(text) and any(_contains(place, p) or _contains(p, place) for p in _there(text)):
            return f"the stage reads {text}, and {output} is it, contains it or lies in it"
        is_pattern = any(sign in text for sign in "*?[") and not ("**" in text and not file_kind(output))
        if is_pattern and reads_from(whole(text), place, is_data=is_data):
            return f"the stage reads {text}, which would find {output} too"
    return ""


def _contains(folder: Path, path: Path) -> bool:
    return folder == path or folder in path.parents


def _there(text: str) -> Iterator[Path]:
    """Everything that an input finds at present."""
    path = Path(text).expanduser()
    for found in [path] if path.exists() else map(Path, glob(str(path), recursive=True)):
        yield found.resolve()


def _made(output: Path) -> Iterator[Path]:
    if output.is_file():
        yield output
    elif (output / "results.json").is_file():
        for name in _OF_A_RUN:
            yield from [output / name, *(output / name).rglob("*")]
    else:
        yield from (p for p in output.rglob("*") if not any(part[0] == "." for part in p.relative_to(output).parts))


@lru_cache(maxsize=1024)
def _hashed(output: Path, files: Stamps) -> str:
    """One hash over names and contents, not computed again as long as the stamps are the same."""
    digest = hashlib.sha256()
    for name, _, _ in files:
        digest.update(f"{os.path.relpath(name, output)}\0{sha256_of(Path(name))}\n".encode())
    return digest.hexdigest()
