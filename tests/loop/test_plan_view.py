"""A plan as a person sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from goodheart.loop.pipeline import Pipeline
from goodheart.loop.plan_view import plan_lines

FILE = """\
out: out
stages:
  world: {stage: playground}
  tokenizer: {data: "${world}/corpus.jsonl"}
  small: {stage: tokenizer, data: ["${world}/corpus.jsonl", "${world}/demonstrations.jsonl"]}
gates:
  - world.documents > 10 and small.vocab_size > 100
"""


def test_a_plan_in_a_wide_and_in_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(FILE, encoding="utf-8")
    pipeline = Pipeline.load(Path("p.yaml"))
    assert list(plan_lines(pipeline, None, 80)) == [
        "stage            why",
        "world      run   not run yet",
        "tokenizer  run   world runs before it",
        "small      run   world runs before it",
        "           gate  world.documents > 10 and small.vocab_size > 100",
    ]
    # 13 characters before the reason, and at least 24 for it: 37
    assert list(plan_lines(pipeline, "small", 10))[1:] == [
        "small  run   not run yet; parent\n             `world` must run first\n             (not run yet)",
        "       gate  world.documents > 10 and\n             small.vocab_size > 100",
    ]
