"""Atomic files are whole or old; hashes are of content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from goodheart.train.files import replace_text, sha256_of_folder


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
