"""Files that are whole or absent: atomic writes, and hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from goodheart.errors import RunError


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Writes `chunks` one after another, flushed to disk; returns the sha256 of the file."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> str:
    """Writes JSON, flushed to disk; returns the sha256 of the file."""
    return write_chunks(path, [(json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()])


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    write_chunks(temporary, [text.encode()])
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes names created, renamed or removed in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(folder: Path, pattern: str = "*") -> str:
    """One sha256 over the names and contents of all files below a folder; where the folder lies does not matter."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob(pattern) if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def disk_error(error: OSError, path: Path, what: str, needed_bytes: int) -> RunError:
    """The message for something that could not be written into the folder or file `path`."""
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return RunError(f"{path}: {what} cannot be written: {error.strerror or error}")
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    return RunError(
        f"{path}: the disk is full: {what} needs {needed_bytes / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free. "
        "Checkpoints written before are whole. Make room and run the same command again."
    )
