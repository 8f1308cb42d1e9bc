"""What a user names as data: a file, a pattern, a folder, or a data set on the Hugging Face Hub."""

from __future__ import annotations

import difflib
import glob
import re
from dataclasses import dataclass
from pathlib import Path

from goodheart.data.streams import PACKED, visible
from goodheart.errors import DataError

KINDS_OF_FILE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_READABLE = ", ".join(KINDS_OF_FILE) + ", also as .gz or .zst"
_ABOUT = ("dataset_infos.json", "dataset_info.json", "manifest.tsv", "license.txt", "readme.txt")
_HUB_ID = re.compile(r"(?P<sure>hub:)?(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<split>[\w.-]+))?")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval)(?:[^a-z]|$)")
_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}


@dataclass(frozen=True, slots=True)
class Found:
    """Where the rows of one source lie: local `files`, a data set folder on disk, or a `hub` id with its split."""

    files: tuple[Path, ...] = ()
    disk: Path | None = None
    hub: str | None = None
    split: str | None = None


def file_kind(path: Path) -> str | None:
    """The suffix that says how to read a file (`.jsonl` of `a.jsonl.gz`), or None where we cannot read it."""
    suffix = Path(path.stem).suffix if path.suffix.lower() in PACKED else path.suffix
    return suffix.lower() if suffix.lower() in KINDS_OF_FILE else None


def find(source: str | Path, split: str | None = None) -> Found:
    """Resolve one source.

    Args:
        source: file, folder, glob pattern, or Hub id (`owner/name` or `owner/name:split`; with `hub:` before it where
            a folder called owner is here).
        split: name of a split. None takes "train" where there are several, else all there is.

    Raises:
        DataError: nothing there; the message lists near names.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if file_kind(path) is None:
            raise DataError(f"{path}: unknown kind of file; readable are {_READABLE}")
        return Found(files=(path,))
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return Found(disk=path, split=split)
        return Found(files=_folder(path, split))
    text = str(source)
    if any(sign in text for sign in "*?["):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = tuple(match for match in matches if match.is_file() and file_kind(match))
        if not files:
            raise DataError(f"{visible(text)}: no readable data file matches this pattern")
        return Found(files=files)
    hub = _HUB_ID.fullmatch(text)
    # Where the folder is here a mistyped name is likelier, and asking an unreachable Hub takes half a minute.
    if hub and (hub["sure"] or not (path.parent.is_dir() or file_kind(path))):
        return Found(hub=hub["id"], split=hub["split"] or split)
    raise DataError(f"{visible(text)}: no such file or folder{_hint(path, hub is not None)}")


def _folder(folder: Path, split: str | None) -> tuple[Path, ...]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_data(path.relative_to(folder))]
    if not files:
        raise DataError(f"{folder}: no data file in this folder; readable are {_READABLE}")
    named = {path: _split_of(path.relative_to(folder)) for path in files}
    names = sorted({name for name in named.values() if name})
    if split is None and len(names) < 2:
        return tuple(files)
    wanted = _SPLIT_NAMES.get(split or "train", split or "train")
    # Test rows must not slip into training because somebody named the folder instead of a file.
    chosen = tuple(path for path in files if named[path] == wanted)
    if not chosen:
        raise DataError(f"{folder}: no file for the split {wanted!r}; the folder has {', '.join(names) or 'no splits'}")
    return chosen


def _is_data(inside: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in inside.parts)
    return file_kind(inside) is not None and not hidden and inside.name.lower() not in _ABOUT


def _split_of(inside: Path) -> str | None:
    found = _SPLIT.search(inside.name.lower()) or _SPLIT.search(str(inside.parent).lower())
    return _SPLIT_NAMES.get(found[1], found[1]) if found else None


def _near(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    names = {entry.name.lower(): entry.name for entry in path.parent.iterdir()}
    return [names[name] for name in difflib.get_close_matches(path.name.lower(), names, n=3, cutoff=0.7)]


def _hint(path: Path, maybe_hub: bool) -> str:
    near = _near(path)
    if near:
        return f"; did you mean {' or '.join(visible(str(path.parent / name)) for name in near)}?"
    if not path.parent.is_dir():
        return f" (the folder {visible(str(path.parent))} does not exist)"
    return f"; if a data set on the Hub is meant, write hub:{path}" if maybe_hub else ""
