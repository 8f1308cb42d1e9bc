"""Tensors on disk in the safetensors format, written one after another."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from goodheart.train.files import write_chunks

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


def _chunks(header: bytes, tensors: Iterable[LazyTensor]) -> Iterable[bytes | memoryview]:
    yield struct.pack("<Q", len(header)) + header
    for tensor in tensors:
        data = tensor.get().detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]
