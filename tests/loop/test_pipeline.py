"""Pipelines: what runs, what is skipped and why, and what a wrong file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goodheart.errors import ConfigError
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


def test_runs_in_order_then_skips(folder: Path) -> None:
    loaded = pipeline(folder)
    assert runs(loaded) == [("first", True, "not run yet"), ("second", True, "first runs before it")]
    loaded.run()
    assert json.loads((folder / "out/second.jsonl").read_text())["score"] == 4.0
    before = (folder / "out/first.jsonl").stat().st_mtime_ns
    assert runs(pipeline(folder)) == [("first", False, "unchanged"), ("second", False, "unchanged")]
    pipeline(folder).run()
    assert (folder / "out/first.jsonl").stat().st_mtime_ns == before


def test_changed_data_runs_again_with_what_depends_on_it(folder: Path) -> None:
    pipeline(folder).run()
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "sixsix"}\n', encoding="utf-8")
    loaded = pipeline(folder)
    assert runs(loaded) == [("first", True, "rows.jsonl changed"), ("second", True, "first runs before it")]
    loaded.run()
    assert json.loads((folder / "out/second.jsonl").read_text())["score"] == 6.0
    # what was replaced is kept
    kept = json.loads((folder / "out/replaced/first-1.jsonl").read_text())
    assert kept["score"] == 4.0


def test_changed_setting_says_which(folder: Path) -> None:
    pipeline(folder).run()
    loaded = pipeline(folder, sets=["stages.second.max_tokens=99"])
    assert runs(loaded) == [("first", False, "unchanged"), ("second", True, "max_tokens: 16384 -> 99")]


def test_how_loud_a_stage_is_changes_nothing(folder: Path) -> None:
    pipeline(folder).run()
    assert all(not run for _, run, _ in runs(pipeline(folder, sets=["stages.first.quiet=false"])))


def test_an_output_that_vanished_is_made_again(folder: Path) -> None:
    pipeline(folder).run()
    (folder / "out/second.jsonl").unlink()
    assert [r[1] for r in runs(pipeline(folder))] == [False, True]


def test_one_stage_alone(folder: Path) -> None:
    loaded = pipeline(folder)
    loaded.run("first")
    assert (folder / "out/first.jsonl").exists()
    assert not (folder / "out/second.jsonl").exists()
    with pytest.raises(ConfigError, match=r"no stage `frist`; did you mean `first`\?"):
        loaded.run("frist")


def test_failed_stage_stops_and_the_next_call_goes_on(folder: Path) -> None:
    (folder / "scores_2.py").write_text("def width(completions, **_):\n    return [len(c) for c in completions]\n")
    loaded = pipeline(
        folder, PIPELINE.replace("my_scores:length\n    data: ${first}", "scores_2:length\n    data: ${first}")
    )
    with pytest.raises(ConfigError, match="`scores_2` has no function `length`; it has width"):
        loaded.run()
    assert runs(loaded) == [("first", False, "unchanged"), ("second", True, "not run yet")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("stage: score", "stage: scor"), "p.yaml:6: unknown stage `scor`; did you mean `score`?"),
        (
            ("${first}", "${fist}"),
            "p.yaml:13: `data`: `${fist}` is neither a variable nor an earlier stage; did you mean `first`?",
        ),
        (
            ("data: ${data}", "data: ${second}"),
            "p.yaml:8: `data`: stages wait for each other: `first` -> `second` -> `first`; one of them must read",
        ),
        (("data: ${first}", "data: ${second}"), "p.yaml:13: `data`: stage `second` reads its own output"),
        (
            ("    quiet: true\n  second", "    quite: true\n  second"),
            "p.yaml:9: unknown key `quite`; did you mean `quiet`?",
        ),
        (("vars:", "vras:"), "p.yaml:2: unknown key `vras`; did you mean `vars`?"),
        (
            ("    data: ${data}\n", "    data: ${data}\n    max_tokens: many\n"),
            "p.yaml:9: `max_tokens`: input should be a valid integer",
        ),
        (("    data: ${data}\n", ""), "p.yaml:5: `data` is missing"),
    ],
)
def test_wrong_files(folder: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in PIPELINE
    with pytest.raises(ConfigError) as error:
        pipeline(folder, PIPELINE.replace(*change, 1))
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "stages:\n", "- a\n", "out: x\n", "stages:\n  sft:\n"])
def test_files_without_stages(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        pipeline(folder, text)


@pytest.mark.parametrize("recipe", ["demo.yaml", "hh-small.yaml"])
def test_our_recipes_are_sound(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(root)
    assert len(Pipeline.load(root / "recipes" / recipe).steps) >= 4
