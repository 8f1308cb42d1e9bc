"""`goodheart run` and `goodheart init` as they are typed, and what is shown while a pipeline runs."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from goodheart.errors import ConfigError, GateError, Interrupted
from goodheart.loop.live import TableView, seen
from goodheart.loop.pipeline import Pipeline
from goodheart.loop.start import run_pipeline, write_template
from goodheart.train.progress import Progress

PIPELINE = """\
out: out
stages:
  first: {stage: score, reward: "start_scores:length", data: rows.jsonl}
  second: {stage: score, reward: "start_scores:length", data: "${first}"}
gates:
  - second.rows >= 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "four"}\n', encoding="utf-8")
    (tmp_path / "start_scores.py").write_text(
        "def length(completions, **_):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_goodheart_yaml_is_the_default(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no goodheart\.yaml here: name a pipeline file, or write one with"):
        run_pipeline(None)
    (folder / "goodheart.yaml").write_text(PIPELINE)
    run_pipeline(None, plan=True)
    assert not (folder / "out").exists()
    run_pipeline("first")  # a stage alone
    assert (folder / "out/first.jsonl").exists()
    assert not (folder / "out/second.jsonl").exists()
    run_pipeline(None)
    assert (folder / "out/second.jsonl").exists()
    with pytest.raises(ConfigError, match="no stage `frist`; did you mean `first`"):
        run_pipeline("frist")


def test_a_named_file_and_overrides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "goodheart.yaml").write_text("stages: nothing\n")
    (folder / "mine.yaml").write_text(PIPELINE)
    run_pipeline("mine.yaml", "first", sets=["out=elsewhere"])
    assert (folder / "elsewhere/first.jsonl").exists()
    run_pipeline("mine.yaml", plan=True, sets=["out=elsewhere"])
    told = capsys.readouterr().out
    assert "first   skip  unchanged" in told
    assert "second  run   not run yet" in told
    assert "gate  second.rows >= 1" in told
    with pytest.raises(ConfigError, match=r"other\.yaml: no such file"):
        run_pipeline("other.yaml")


def test_the_plan_of_one_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.yaml").write_text(PIPELINE)
    run_pipeline("mine.yaml", "second", plan=True)
    told = capsys.readouterr().out
    assert "second  run   not run yet; parent `first` must run first (not run yet)" in told
    assert "\nfirst " not in told
    assert not (folder / "out").exists()
    with pytest.raises(ConfigError, match="no stage `nosuch`"):
        run_pipeline("mine.yaml", "nosuch", plan=True)


def test_several_processes_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "goodheart.yaml").write_text(PIPELINE)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="give torchrun a stage's own command"):
        run_pipeline(None)


def test_init_writes_what_loads_and_plans(folder: Path) -> None:
    assert write_template(Path("goodheart.yaml")) == (
        "goodheart.yaml written. See what it would do: goodheart run --plan"
    )
    assert write_template(Path("sub/x.yaml")).endswith("goodheart run sub/x.yaml --plan")
    with pytest.raises(ConfigError, match=r"goodheart\.yaml is there already"):
        write_template(Path("goodheart.yaml"))
    loaded = Pipeline.load(Path("goodheart.yaml"))
    assert loaded.plan()[0].reason == "not run yet"
    assert {gate.stages for gate in loaded.gates} == {("reward",), ("ppo",), ("evaluate",)}


def test_plain_lines_off_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "p.yaml").write_text(PIPELINE)
    loaded = Pipeline.load(Path("p.yaml"), ["stages.first.quiet=true", "stages.second.quiet=true"])
    for _ in range(2):
        with seen(loaded) as view:
            loaded.run(view=view)
    said = re.sub(r"done in \d+:\d\d", "done in 0:00", capsys.readouterr().err)
    assert said.splitlines() == [
        "[1/2] first runs: not run yet",
        "[1/2] first done in 0:00",
        "[2/2] second runs: not run yet",
        "[2/2] second done in 0:00",
        "gate holds: second.rows >= 1",
        "[1/2] first kept: unchanged",
        "[2/2] second kept: unchanged",
        "gate holds: second.rows >= 1",
    ]


def drawn(view: TableView) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=160).print(view.render())
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_the_table_tells_what_happens(folder: Path) -> None:
    (folder / "p.yaml").write_text(PIPELINE)
    loaded = Pipeline.load(Path("p.yaml"))
    view = TableView(loaded)
    plans = loaded.plan()
    assert drawn(view)[:2] == ["·  first", "·  second"]
    view.begins(plans[0])
    assert drawn(view)[0] == "▶  first   0:00  starting"
    with Progress(8, "scoring", unit="rows", shown=False) as bar:
        bar.advance(2, loss=1.5)
        view.progress(bar)
        line = drawn(view)[0]
    assert line.startswith("▶  first   0:00  ━━━━━")
    assert "scoring 2/8 rows" in " ".join(line.split())
    assert line.endswith("loss 1.5")
    view.ends(plans[0], "done", 61.0)
    assert drawn(view)[0] == "✓  first   1:01"
    view.ends(plans[1], "kept", 0.0)
    assert drawn(view)[1].split() == ["=", "second", "first", "runs", "before", "it"]


def test_a_low_terminal_shows_the_stages_around_the_running_one(folder: Path) -> None:
    stages = "".join(f'  s{i}: {{stage: score, reward: "start_scores:length", data: rows.jsonl}}\n' for i in range(9))
    (folder / "p.yaml").write_text(f"out: out\nstages:\n{stages}")
    loaded = Pipeline.load(Path("p.yaml"))
    view = TableView(loaded, height=5)

    def shown() -> list[str]:
        return [line.split()[1] for line in drawn(view)[:-1]]

    assert shown() == ["s0", "s1", "s2"]
    for plan in loaded.plan()[:5]:
        view.ends(plan, "kept", 0.0)
    assert shown() == ["s4", "s5", "s6"]
    for plan in loaded.plan():
        view.ends(plan, "kept", 0.0)
    assert shown() == ["s6", "s7", "s8"]


def test_a_failed_gate_is_shown_and_raised(folder: Path) -> None:
    (folder / "p.yaml").write_text(PIPELINE.replace(">= 1", "> 1"))
    loaded = Pipeline.load(Path("p.yaml"), ["stages.first.quiet=true", "stages.second.quiet=true"])
    view = TableView(loaded)
    with pytest.raises(GateError):
        loaded.run(view=view)
    assert drawn(view)[2].split() == ["✗", "gate", "second.rows", ">", "1"]


def test_a_failed_stage_is_shown(folder: Path) -> None:
    (folder / "p.yaml").write_text(PIPELINE)
    (folder / "start_scores.py").write_text("def length(completions, **_):\n    return 1 / 0\n")
    sys.modules.pop("start_scores", None)
    loaded = Pipeline.load(Path("p.yaml"), ["stages.first.quiet=true"])
    view = TableView(loaded)
    with pytest.raises(Exception, match="division by zero"):
        loaded.run(view=view)
    assert drawn(view)[0].startswith("✗  first")
    sys.modules.pop("start_scores", None)


def test_a_stage_that_was_asked_to_stop_did_not_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "p.yaml").write_text(PIPELINE)
    loaded = Pipeline.load(Path("p.yaml"))

    def stop(settings: object) -> None:
        raise Interrupted("stopped after step 3 of 9")

    monkeypatch.setattr(type(loaded.steps[0].kind), "load", lambda self: stop)
    view = TableView(loaded)
    with pytest.raises(Interrupted):
        loaded.run(view=view)
    assert drawn(view)[0].startswith("■  first")
    assert [plan.reason for plan in loaded.plan()] == ["not run yet", "first runs before it"]
