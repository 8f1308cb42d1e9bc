"""Tensors on disk are read by the safetensors library; atomic files are whole or old."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from goodheart.train import files
from goodheart.train.files import LazyTensor, replace_text, sha256_of, sha256_of_folder, write_tensors


def test_safetensors_reads_every_dtype_and_shape(tmp_path: Path) -> None:
    block = torch.arange(12.0).view(4, 3)
    tensors: dict[str, Tensor] = {str(dtype): torch.tensor([[1, 0], [1, 1]]).to(dtype) for dtype in files._DTYPE_NAMES}
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
    monkeypatch.setattr(files, "_CHUNK_BYTES", 100)
    tensor = torch.randn(33, 3)
    write_tensors(tmp_path / "t", {"x": LazyTensor.of(tensor)})
    assert torch.equal(load_file(tmp_path / "t")["x"], tensor)


def test_replaced_text_is_old_or_new_but_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    replace_text(file, "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_text(file, "new")
    assert file.read_text() == "old"
    monkeypatch.undo()
    replace_text(file, "new")
    assert file.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_folder_hash_is_of_names_and_contents_not_of_the_place(tmp_path: Path) -> None:
    def folder(name: str, **contents: str) -> str:
        for file, text in contents.items():
            (tmp_path / name / "sub").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "sub" / file).write_text(text)
        return sha256_of_folder(tmp_path / name)

    first = folder("one", a="1", b="2")
    assert folder("two", b="2", a="1") == first
    assert folder("three", a="2", b="1") != first
    assert folder("four", a="1", c="2") != first
