"""Log-probabilities of a reference as a file: in the run folder, and in the user's cache folder for other runs.

A sweep over rates, betas or losses asks one reference about the same answers again and again. The first run leaves
what it found in the cache; the others need no pass, and no second model in memory. The cache and not the run folders
next door, because sweeps write where they like, and because a run must be able to go when its numbers are still wanted.
Nothing depends on it: a run keeps a copy of its own, and works without a cache that is full, locked or gone.

A file holds 4 bytes per answer and is found by a hash of all that its numbers depend on. It holds a hash of that name
and of the numbers, so that a damaged or renamed one is seen; it is then told of and computed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from goodheart.errors import ModelError
from goodheart.models.cache import cache_folder
from goodheart.models.weights import read_tensors
from goodheart.train.files import sync_folder
from goodheart.train.tensors import LazyTensor, write_tensors

# What the cache may take, 256 million answers; those not asked for longest go first.
_MOST_BYTES = 2**30
# A file is written in seconds: what is half written for a day is nobody's.
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Kept:
    """logps_N: float32, on the CPU.  shared: whether they came from the cache, computed by another run."""

    logps_N: Tensor
    shared: bool


def recall(key: str, count: int, note: Callable[[str], None]) -> Kept | None:
    """What an earlier run has left in the cache under this key.

    Args:
        key: hash of all that the numbers depend on.
        count: how many there must be.
        note: told of a file that cannot be trusted, and of a cache that cannot be used.
    """
    try:
        file = cache_folder("references") / _name(key)
        kept = read(file, key, count, note)
        if kept is None:
            return None
        with contextlib.suppress(FileNotFoundError):  # another run has just made room
            os.utime(file)  # asked for now
    except OSError as error:
        note(f"the cache of reference log-probabilities is not used: {error}")
        return None
    return Kept(kept.logps_N, shared=True)


def leave(key: str, logps_N: Tensor, note: Callable[[str], None]) -> None:
    """Puts them into the cache for other runs; where that fails, or they are no numbers, only says so."""
    if not logps_N.isfinite().all():
        note("reference log-probabilities are not put into the cache: some are not finite")
        return
    try:
        folder = cache_folder("references")
        write(folder / _name(key), key, Kept(logps_N, shared=False))
        _prune(folder, _MOST_BYTES)
    except OSError as error:
        note(f"reference log-probabilities are not put into the cache: {error}")


def read(file: Path, key: str, count: int, note: Callable[[str], None]) -> Kept | None:
    """What `write` left in a file; None where there is none, or one that is damaged or of something else."""
    if not file.is_file():
        return None
    try:
        found = dict(read_tensors(file.parent, file.name))
        if found.keys() != {"logps", "shared", "sha256"}:
            raise ValueError("it is of another version, or of something else")
        logps_N, shared = found["logps"], found["shared"]
        if logps_N.shape != (count,) or logps_N.dtype != torch.float32:
            raise ValueError(f"it is not of these {count} answers")
        if not torch.equal(found["sha256"], _digest(key, logps_N, shared)):
            raise ValueError("its numbers are not those that were written under this name")
    except (ModelError, ValueError) as error:
        note(f"{file} is not used: {error}")
        return None
    return Kept(logps_N, bool(shared))


def write(file: Path, key: str, kept: Kept) -> None:
    """Whole or not at all; of two processes that write the same, the last one's stays."""
    shared = torch.tensor([int(kept.shared)], dtype=torch.uint8)
    tensors = {"logps": kept.logps_N, "shared": shared, "sha256": _digest(key, kept.logps_N, shared)}
    handle, partial = tempfile.mkstemp(prefix=f".{file.stem}-", suffix=".partial", dir=file.parent)
    os.close(handle)
    try:
        write_tensors(Path(partial), {name: LazyTensor.of(tensor) for name, tensor in tensors.items()})
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)
    sync_folder(file.parent)


def _name(key: str) -> str:
    return f"{key[:32]}.safetensors"


def _digest(key: str, logps_N: Tensor, shared: Tensor) -> Tensor:
    """32 bytes."""
    content = logps_N.contiguous().numpy().tobytes() + shared.numpy().tobytes()
    return torch.tensor(list(hashlib.sha256(key.encode() + content).digest()), dtype=torch.uint8)


def _prune(folder: Path, most_bytes: int) -> None:
    """Removes the files that were not asked for longest, until the rest is within `most_bytes`, and what processes that
    were killed have left half written.
    """
    for path, stat in _there(folder, "*.partial"):
        if time.time() - stat.st_mtime > _ABANDONED_SECONDS:
            path.unlink(missing_ok=True)
    total = 0
    for path, stat in sorted(_there(folder, "*.safetensors"), key=lambda each: each[1].st_mtime_ns, reverse=True):
        total += stat.st_size
        if total > most_bytes:
            path.unlink(missing_ok=True)


def _there(folder: Path, pattern: str) -> list[tuple[Path, os.stat_result]]:
    """Files and what is known of them; other processes may rename or remove some meanwhile."""
    found = []
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return found
