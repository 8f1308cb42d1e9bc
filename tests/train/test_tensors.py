"""Tensors on disk are read by the safetensors library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from goodheart.train import tensors as module
from goodheart.train.files import sha256_of
from goodheart.train.tensors import LazyTensor, write_tensors


def test_modulereads_every_dtype_and_shape(tmp_path: Path) -> None:
    block = torch.arange(12.0).view(4, 3)
    tensors: dict[str, Tensor] = {str(dtype): torch.tensor([[1, 0], [1, 1]]).to(dtype) for dtype in module._DTYPE_NAMES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "slice": block[1:3], "column": block[:, 1]}
    path = tmp_path / "t.safetensors"
    digest = write_tensors(path, {name: LazyTensor.of(tensor) for name, tensor in tensors.items()})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_large_tensor_is_written_in_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 100)
    tensor = torch.randn(33, 3)
    write_tensors(tmp_path / "t", {"x": LazyTensor.of(tensor)})
    assert torch.equal(load_file(tmp_path / "t")["x"], tensor)
