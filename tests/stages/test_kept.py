"""Lines of finished work are there again, whatever they hold."""

from __future__ import annotations

from pathlib import Path

from goodheart.stages.kept import Kept


def test_half_an_emoji_is_kept(tmp_path: Path) -> None:
    rows = [{"text": "caf\u00e9"}, {"text": "half \ud83d"}, {"text": "whole \U0001f600"}]
    kept = Kept(tmp_path / "work.jsonl", "one")
    for row in rows:
        kept.add(row)
    # what ASCII cannot hold stands as it is; only half a pair needs an escape
    assert kept.file.read_bytes().split(b"\n")[1:3] == ['{"text": "caf\u00e9"}'.encode(), rb'{"text": "half \ud83d"}']
    assert Kept(kept.file, "one").rows == rows
