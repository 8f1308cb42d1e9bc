"""`goodheart demo`: the packaged pipeline is sound, and the table at its end says what was measured."""

from __future__ import annotations

import io
import json
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from rich.console import Console

from goodheart.errors import GateError, Interrupted
from goodheart.loop import demo as module
from goodheart.loop.demo import demo, load_demo, story
from goodheart.loop.pipeline import Pipeline


def measured(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": 100}


RESULTS = {
    "models": {
        "base": {"score": measured(0.4, 0.35, 0.45), "harmful": measured(0.25, 0.2, 0.3), "other": measured(1, 1, 1)},
        "ppo": {"score": measured(0.8, 0.75, 0.85), "harmful": measured(0.01, 0.0, 0.02)},
    },
    "wins": {"ppo": {"base": {"rate": measured(0.7, 0.65, 0.75)}}},
}


def test_the_table_has_values_and_intervals() -> None:
    file = io.StringIO()
    Console(file=file, width=100).print(story(RESULTS))
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert lines == [
        "base ppo",
        "true preference ↑ 40.0 ±5.0 80.0 ±5.0",
        "harmful answers ↓ 25.0 ±5.0 1.0 ±1.0",
        "ppo wins against it 70.0 ±5.0",
    ]


def test_the_pipeline_is_packaged_as_a_file() -> None:
    """A link would point at nothing in a wheel."""
    file = Path(module.__file__).with_name("demo.yaml")
    assert file.is_file()
    assert not file.is_symlink()
    assert Pipeline.load(file).out == Path("runs/demo")
    project = tomllib.loads((file.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["goodheart"]
    assert any(fnmatchcase("loop/demo.yaml", pattern) for pattern in patterns)


def test_the_packaged_pipeline_is_sound(tmp_path: Path) -> None:
    pipeline = load_demo(tmp_path / "demo", seed=7)
    assert pipeline.out == tmp_path / "demo"
    assert all(plan.runs for plan in pipeline.plan())
    kinds = [step.kind_name for step in pipeline.steps]
    assert [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]] == [
        "playground", "tokenizer", "pretrain", "sft", "sample", "simulate", "reward", "ppo", "evaluate",
    ]  # fmt: skip
    assert {step.settings.seed for step in pipeline.steps if hasattr(step.settings, "seed")} == {7}


TINY = """\
out: out
stages:
  world: {stage: playground, documents: 20, demonstrations: 10}
  evaluate: {answers: {a: a.jsonl, b: b.jsonl}, score: "demo_scores:length", resamples: 1000, quiet: true}
gates:
  - evaluate.models.a.score < 0
"""


def test_a_failed_gate_still_ends_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, said in (("a", "yes"), ("b", "no")):
        rows = [{"prompt": f"question {i}", "completions": [said]} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.yaml").write_text(TINY)
    (tmp_path / "demo_scores.py").write_text(
        "def length(completions, **_):\n    return [len(c) / 9 for c in completions]\n"
    )
    monkeypatch.setattr(module, "load_demo", lambda out, seed: Pipeline.load(Path("p.yaml"), [f"out={out}"]))
    with pytest.raises(GateError, match=r"evaluate\.models\.a\.score < 0"):
        demo(Path("out"), 0)
    told = capsys.readouterr().out
    assert "true preference" in told
    assert "report written to out/report.html" in told
    assert (tmp_path / "out/report.html").is_file()


def test_stopping_the_demo_writes_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(TINY.partition("  evaluate")[0])
    pipeline = Pipeline.load(Path("p.yaml"), [])
    pipeline.run()

    def stop(**_: object) -> None:
        raise Interrupted("stopped after step 1")

    monkeypatch.setattr(pipeline, "run", stop)
    monkeypatch.setattr(module, "load_demo", lambda out, seed: pipeline)
    with pytest.raises(Interrupted):
        demo(Path("out"), 0)
    assert "report" not in capsys.readouterr().out
    assert not (tmp_path / "out/report.html").exists()
