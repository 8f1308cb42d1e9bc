"""Pipelines: what runs, what is skipped and why, and how gates stop it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from goodheart.errors import ConfigError, DataError, GateError, RunError
from goodheart.loop.pipeline import Pipeline
from goodheart.loop.record import Record
from goodheart.loop.step import difference
from goodheart.train.lock import FolderLock
from tests.loop.small import PIPELINE, folder, pipeline, runs

__all__ = ["folder"]


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
    loaded = pipeline(folder, sets=["stages.second.dtype=float32"])
    assert runs(loaded) == [("first", False, "unchanged"), ("second", True, "dtype: 'auto' -> 'float32'")]


@pytest.mark.parametrize("setting", ["quiet=false", "max_tokens=99"])
def test_how_loud_or_how_fast_a_stage_is_changes_nothing(folder: Path, setting: str) -> None:
    pipeline(folder).run()
    assert all(not run for _, run, _ in runs(pipeline(folder, sets=[f"stages.first.{setting}"])))


def test_changed_code_runs_again_and_better_words_do_not(folder: Path) -> None:
    pipeline(folder).run()
    scores = folder / "my_scores.py"
    scores.write_text('"""Scores."""\n' + scores.read_text())
    assert all(not run for _, run, _ in runs(pipeline(folder)))
    scores.write_text(scores.read_text().replace("len(c)", "len(c) + 0"))
    assert runs(pipeline(folder)) == [
        ("first", True, "code changed: my_scores.py"),
        ("second", True, "first runs before it"),
    ]
    trusting = Pipeline.load(Path("p.yaml"), trust_code=True)
    assert all(not plan.runs for plan in trusting.plan())
    # what was not finished goes on too, and starts anew without trust
    record = json.loads((folder / "out/pipeline.json").read_text())
    (folder / "out/pipeline.json").write_text(json.dumps(record | {"done": {}}))
    trusting.run("first")
    assert not (folder / "out/replaced").exists()
    (folder / "out/pipeline.json").write_text(json.dumps(record | {"done": {}}))
    pipeline(folder).run("first")
    assert (folder / "out/replaced/first-1.jsonl").exists()


def test_what_comes_out_the_same_spares_what_follows(folder: Path) -> None:
    pipeline(folder).run()
    before = (folder / "out/second.jsonl").stat().st_mtime_ns
    loaded = pipeline(folder, sets=["stages.first.dtype=float32"])  # matters to nothing that a function scores
    done = loaded.run()
    assert [(p.step.name, p.runs, p.reason) for p in done] == [
        ("first", True, "dtype: 'auto' -> 'float32'"),
        ("second", False, "what it reads came out the same"),
    ]
    assert (folder / "out/second.jsonl").stat().st_mtime_ns == before


def test_reasons_name_what_is_inside_a_block(folder: Path) -> None:
    old = {"stage": "x", "settings": {"sampling": {"a": 1, "b": 2}}, "inputs": {}, "code": {"a.py": "1", "b.py": "1"}}
    new = {"stage": "x", "settings": {"sampling": {"a": 1}, "c": 3}, "inputs": {}, "code": {"a.py": "2", "c.py": "1"}}
    assert difference(old, new) == "sampling.b: 2 -> not set; c: not set -> 3; code changed: a.py, b.py, c.py"
    assert difference(old, new, with_code=False) == "sampling.b: 2 -> not set; c: not set -> 3"
    many = new | {"settings": old["settings"], "code": {f"{i}.py": "1" for i in range(3)}}
    assert difference(old, many) == "code changed: 0.py, 1.py, 2.py and 2 more"
    del old["code"]
    assert difference(old, old | {"code": {}}) == "code changed: (not recorded)"


def test_killed_before_the_note_is_not_taken_for_what_was_there_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline(folder).run()

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline(folder, sets=["stages.first.dtype=float32"]).run()
    assert (folder / "out/first.jsonl").exists()
    # back at the old settings: the output there is not theirs
    assert runs(pipeline(folder))[0] == ("first", True, "no record of how its output was made")


def test_one_pipeline_at_a_time(folder: Path) -> None:
    loaded = pipeline(folder)
    lock = FolderLock(loaded.out)
    lock.take()
    with pytest.raises(RunError, match=r"out is in use by process .*choose another folder with --set out="):
        loaded.run()
    lock.release()
    loaded.run()


@pytest.mark.parametrize(
    "text",
    ['{"done": ', "[]", "3", '{"done": []}', '{"done": {"first": 3}}', '{"begun": {"first": {}}}', "[" * 100_000],
)
def test_a_damaged_record_is_an_error(folder: Path, text: str) -> None:
    pipeline(folder).run()
    (folder / "out/pipeline.json").write_text(text)
    with pytest.raises(RunError, match=r"out/pipeline\.json cannot be read .*; move out away"):
        pipeline(folder).plan()


GATED = (
    PIPELINE
    + """\
gates:
  - first.rows > 0
  - second.rows < first.rows
"""
)


def test_a_failed_gate_stops_with_its_evidence(folder: Path) -> None:
    text = GATED.replace("first.rows > 0", "first.rows >= 2")
    loaded = pipeline(folder, text)
    for _ in range(2):  # a finished stage is not run again, and its gate is checked again
        with pytest.raises(GateError) as error:
            loaded.run()
        assert str(error.value).splitlines() == [
            "p.yaml:16: the gate `first.rows >= 2` does not hold; the pipeline stops after `first`",
            "  fails  first.rows >= 2    first.rows = 1",
            "  see out/pipeline.json",
        ]
        assert not (folder / "out/second.jsonl").exists()
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "four"}\n' * 2, encoding="utf-8")
    with pytest.raises(GateError, match=r"second\.rows < first\.rows"):
        loaded.run()
    assert (folder / "out/second.jsonl").exists()
    record = json.loads((folder / "out/pipeline.json").read_text())
    assert {text: gate["holds"] for text, gate in record["gates"].items()} == {
        "first.rows >= 2": True,
        "second.rows < first.rows": False,
    }
    pipeline(folder, PIPELINE).run()  # a gate that was taken out of the file is forgotten
    assert json.loads((folder / "out/pipeline.json").read_text())["gates"] == {}


def test_a_gate_on_a_result_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        pipeline(folder, GATED.replace("first.rows > 0", "first.row > 0")).run()
    assert "p.yaml:16: gate `first.row > 0`: `first` has no result `row`; did you mean `rows`?" in str(error.value)


def test_a_stage_alone_needs_what_it_reads_and_passes_its_own_gates(folder: Path) -> None:
    loaded = pipeline(folder, GATED.replace("second.rows < first.rows", "second.rows == first.rows"))
    with pytest.raises(ConfigError, match="`second` reads `first`, which is not finished: run that first"):
        loaded.run("second")
    loaded.run("first")
    loaded.run("second")
    assert set(json.loads((folder / "out/pipeline.json").read_text())["gates"]) == {
        "first.rows > 0",
        "second.rows == first.rows",
    }


def test_a_stage_alone_does_not_get_past_a_gate_above_it(folder: Path) -> None:
    third = "  third:\n    stage: score\n    reward: my_scores:length\n    data: ${second}\n    quiet: true\n"
    text = GATED.replace("first.rows > 0", "first.rows > 1").replace("gates:", third + "gates:")
    text = text.replace("second.rows < first.rows", "third.rows > 0")
    pipeline(folder, text.partition("gates:")[0]).run()
    (folder / "out/third.jsonl").unlink()
    loaded = pipeline(folder, text)
    for stage in ("second", "third"):  # the gate is over the parent, or over the parent's parent
        with pytest.raises(GateError, match=r"`first\.rows > 1` does not hold"):
            loaded.run(stage)
    assert not (folder / "out/third.jsonl").exists()
    pipeline(folder, text.replace("first.rows > 1", "first.rows == 1")).run("third")
    assert (folder / "out/third.jsonl").exists()


def test_a_stage_alone_says_that_what_it_reads_is_out_of_date(folder: Path) -> None:
    pipeline(folder).run()
    loaded = pipeline(folder, sets=["stages.first.dtype=float32", "stages.second.dtype=float32"])
    why = "dtype: 'auto' -> 'float32'"
    assert [p.reason for p in loaded.plan("second")] == [f"{why}; parent `first` would run again ({why})"]
    (done,) = loaded.run("second")
    assert (done.runs, done.reason) == (True, f"{why}; parent `first` would run again ({why})")
    (folder / "out/first.jsonl").unlink()
    assert loaded.plan("second")[0].reason == "unchanged; parent `first` must run first (not run yet)"


def test_what_changes_while_a_pipeline_runs_is_seen(folder: Path) -> None:
    """A plan says what is known at its time; each stage is asked again when its turn comes."""
    (folder / "my_second.py").write_text(
        'def width(completions, **_):\n    open(\'other.jsonl\', \'w\').write(\'{"prompt": "a", "completion": "b"}\')\n'
        "    return [1.0 for _ in completions]\n"
    )
    (folder / "other.jsonl").write_text('{"prompt": "a", "completion": "four"}\n')
    text = PIPELINE.replace("data: ${first}", "data: other.jsonl")
    pipeline(folder, text).run()
    text = text.replace("my_scores:length", "my_second:width", 1)
    loaded = pipeline(folder, text)
    assert [run for _, run, _ in runs(loaded)] == [True, False]
    assert [(p.runs, p.reason) for p in loaded.run()][1] == (True, "other.jsonl changed")


def test_a_finished_output_that_was_changed_is_made_again(folder: Path) -> None:
    pipeline(folder).run()
    (folder / "out/second.jsonl").write_text("")
    loaded = pipeline(folder)
    assert runs(loaded) == [("first", False, "unchanged"), ("second", True, "its output was changed")]
    loaded.run()
    assert json.loads((folder / "out/second.jsonl").read_text())["score"] == 4.0
    assert (folder / "out/replaced/second-1.jsonl").read_text() == ""


def test_what_was_finished_under_trust_is_remembered_as_of_the_code_it_was_begun_with(folder: Path) -> None:
    loaded = pipeline(folder)
    loaded.run("first")
    record = json.loads((folder / "out/pipeline.json").read_text())
    (folder / "out/pipeline.json").write_text(json.dumps(record | {"done": {}}))  # as if killed before the end
    scores = folder / "my_scores.py"
    scores.write_text(scores.read_text().replace("len(c)", "len(c) + 0"))
    Pipeline.load(Path("p.yaml"), trust_code=True).run("first")
    assert Pipeline.load(Path("p.yaml"), trust_code=True).plan()[0].reason == "unchanged"
    assert pipeline(folder).plan()[0].reason == "code changed: my_scores.py"


def test_a_setting_that_is_new_and_usual_does_not_count_under_trust(folder: Path) -> None:
    pipeline(folder).run()
    file = folder / "out/pipeline.json"
    record = json.loads(file.read_text())
    for noted in record["done"].values():
        del noted["settings"]["dtype"]  # as older code wrote it
    file.write_text(json.dumps(record))
    assert runs(pipeline(folder))[0][2] == "dtype: not set -> 'auto'"
    assert [p.reason for p in Pipeline.load(Path("p.yaml"), trust_code=True).plan()] == ["unchanged"] * 2
    other = Pipeline.load(Path("p.yaml"), ["stages.first.dtype=float32"], trust_code=True)
    assert other.plan()[0].reason == "dtype: not set -> 'float32'"


def test_what_a_gate_came_to_is_forgotten_when_its_stage_runs_again(folder: Path) -> None:
    text = GATED.replace("second.rows < first.rows", "second.rows > 0")
    pipeline(folder, text).run()
    (folder / "my_scores.py").write_text("def length(completions, **_):\n    raise ValueError('no')\n")
    sys.modules.pop("my_scores", None)
    with pytest.raises(DataError):
        pipeline(folder, text).run()
    assert json.loads((folder / "out/pipeline.json").read_text())["gates"].keys() == {"second.rows > 0"}
    sys.modules.pop("my_scores", None)


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
    (folder / "scores_2.py").write_text(
        "from math import sqrt\n\n\ndef width(completions, **_):\n    return [len(c) for c in completions]\n"
    )
    loaded = pipeline(
        folder, PIPELINE.replace("my_scores:length\n    data: ${first}", "scores_2:length\n    data: ${first}")
    )
    with pytest.raises(ConfigError, match=r"`scores_2` has no function `length`; it has width$"):
        loaded.run()
    assert runs(loaded) == [("first", False, "unchanged"), ("second", True, "not run yet")]
