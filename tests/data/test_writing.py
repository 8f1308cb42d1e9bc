"""Rows to files: what is left behind."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from goodheart.data.formats import write_rows


def test_what_killed_writers_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    dead, held = (tmp_path / f".rows.jsonl.{name}.tmp" for name in ("0000dead", "0000held"))
    for left in (dead, held):
        left.write_text("{")
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
        assert sorted(path.name for path in tmp_path.iterdir()) == [held.name, "rows.jsonl"]
    write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_temporary_swept_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, swept = fcntl.flock, []

    def late(file: Any, how: int) -> None:
        if not swept:  # another writer comes between the making and the locking
            swept.append(Path(file.name))
            write_rows(tmp_path / "rows.jsonl", [{"text": "other"}])
            assert not swept[0].exists()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert write_rows(tmp_path / "rows.jsonl", [{"text": "own"}]) == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("rows.jsonl", '{"text": "own"}\n')]


def test_columns_that_rows_share_are_written_as_they_are_without(tmp_path: Path) -> None:
    shared = ({"q": 'ä "1"'}, ["a", "\ud800"]), ({"q": "2"}, ["a"])
    rows = [{"one": one, "two": two, **rest} for one, two in shared for rest in ({}, {"n": 1}, {"n": None, "m": [2]})]
    equal = {"one": dict(rows[-1]["one"]), "two": list(rows[-1]["two"]), "n": 3}  # the same text, other objects
    for name, more in (("plain.jsonl", ()), ("quick.jsonl", ("one", "two"))):
        assert write_rows(tmp_path / name, [*rows, equal], shared=more) == 7
    read = [json.loads(line) for line in (tmp_path / "quick.jsonl").read_text().splitlines()]
    assert read == [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()] == [*rows, equal]
