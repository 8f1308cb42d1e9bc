"""Files that are whole or absent: atomic writes, hashes, and tensors on disk in the safetensors format."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodheart.errors import RunError

_CHUNK_BYTES = 2**22

# Names of the safetensors format, https://github.com/huggingface/safetensors#format
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor described before it is there, so that sharded ones can be gathered and written one at a time."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def num_bytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def write_tensors(path: Path, tensors: dict[str, LazyTensor]) -> str:
    """Writes a safetensors file, flushed to disk, without a second copy of the tensors in memory.

    `safetensors.save_file` is not used because it refuses tensors that are slices of one storage, as fused projections
    are, and needs all of them at once.

    Returns:
        The sha256 of the file.

    Raises:
        OSError: the disk is full or broken.
    """
    entries, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.num_bytes
        entries[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return write_chunks(path, _chunks(header, tensors.values()))


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


def _chunks(header: bytes, tensors: Iterable[LazyTensor]) -> Iterable[bytes | memoryview]:
    yield struct.pack("<Q", len(header)) + header
    for tensor in tensors:
        data = tensor.get().detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]
