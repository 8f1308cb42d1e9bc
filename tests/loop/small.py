"""A pipeline of two cheap stages that need no model, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from goodheart.loop.pipeline import Pipeline

# Two cheap stages that need no model: score rows with a function, then score the scored rows again.
PIPELINE = """\
out: out
vars:
  data: rows.jsonl
stages:
  first:
    stage: score
    reward: my_scores:length
    data: ${data}
    quiet: true
  second:
    stage: score
    reward: my_scores:length
    data: ${first}
    quiet: true
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "four"}\n', encoding="utf-8")
    (tmp_path / "my_scores.py").write_text("def length(completions, **_):\n    return [len(c) for c in completions]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pipeline(folder: Path, text: str = PIPELINE, sets: list[str] | None = None) -> Pipeline:
    (folder / "p.yaml").write_text(text, encoding="utf-8")
    return Pipeline.load(Path("p.yaml"), sets)


def runs(loaded: Pipeline) -> list[tuple[str, bool, str]]:
    return [(p.step.name, p.runs, p.reason) for p in loaded.plan()]
