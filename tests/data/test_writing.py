"""Rows to files: what is left behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from goodheart.data.formats import write_rows


def test_what_killed_writers_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    dead, fresh, held = (tmp_path / f".rows.jsonl.{name}.tmp" for name in ("0000dead", "0000new0", "0000held"))
    for left in (dead, fresh, held):
        left.write_text("{")
    for left in (dead, held):
        os.utime(left, (1.0, 1.0))
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_rows(out, [{"text": "a"}])
        assert sorted(path.name for path in tmp_path.iterdir()) == [held.name, fresh.name, "rows.jsonl"]
    os.utime(fresh, (1.0, 1.0))
    write_rows(out, [{"text": "a"}])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
