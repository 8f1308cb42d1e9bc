"""The run folder: created, continued, finished, guarded."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import goodheart.train.run as module
from goodheart.errors import RunError
from goodheart.train.run import Run

CONFIG = {"learning_rate": 1e-5, "lora": {"rank": 4}, "betas": (0.9, 0.95), "out": "somewhere", "quiet": True}


def open_run(out: Path, config: dict[str, Any] = CONFIG, **changes: Any) -> Run:
    arguments: dict[str, Any] = {"stage": "sft", "parents": {}, "data": [], "seed": 3, "quiet": True}
    return Run.open(out, config=config, **(arguments | changes))


def test_new_run_describes_itself(tmp_path: Path) -> None:
    parent = tmp_path / "parent" / "model"
    parent.mkdir(parents=True)
    (parent / "config.json").write_text("{}")
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    parents = {"model": str(parent.parent), "reward": "somebody/on-the-hub"}
    with open_run(tmp_path / "run", parents=parents, data=[str(data)]) as run:
        assert not run.finished
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config == {**CONFIG, "betas": [0.9, 0.95]}
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    assert lineage["stage"] == "sft"
    assert len(lineage["parents"]["model"]["sha256"]) == 64
    assert lineage["parents"]["reward"] == {"path": "somebody/on-the-hub", "sha256": None}
    # sha256 of "{}\n", by sha256sum
    digest = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert lineage["data"] == [{"path": str(data), "sha256": digest, "bytes": 3}]
    (start,) = lineage["starts"]
    assert start["seed"] == 3
    assert torch.__version__.startswith(start["packages"]["torch"])  # a wheel may say nothing of its CUDA
    assert start["python"].startswith("3.")
    assert start["hardware"]["cpus"] >= 1
    assert len(start["code_sha256"]) == 64


def test_unfinished_run_is_continued_and_every_start_is_recorded(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log(1, {"loss": 2.0})
    with open_run(tmp_path, {**CONFIG, "out": "elsewhere", "quiet": False}) as run:
        assert not run.finished
        run.log(2, {"loss": 1.0})
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()] == [2.0, 1.0]
    assert len(json.loads((tmp_path / "lineage.json").read_text())["starts"]) == 2


def test_a_run_that_goes_on_with_something_else_says_so(tmp_path: Path) -> None:
    for way in ("C", "C", "PyTorch"):
        with open_run(tmp_path) as run:
            run.record("generation", way)
            run.log(1, {"loss": 2.0})
    starts = json.loads((tmp_path / "lineage.json").read_text())["starts"]
    assert [start["generation"] for start in starts] == ["C", "C", "PyTorch"]
    log = (tmp_path / "log.txt").read_text()
    assert log.count("generation: ") == 1
    assert "generation: PyTorch from here on, C before" in log


def test_starts_from_before_there_was_a_choice_worked_as_was_done_then(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log(1, {"loss": 2.0})
    with open_run(tmp_path) as run:
        run.record("generation", "C")
        run.record("training", "C", unknown="PyTorch")
    log = (tmp_path / "log.txt").read_text()
    assert "generation: " not in log
    assert "training: C from here on, PyTorch before" in log


def test_finished_run_is_recognised_and_left_as_it_is(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.finish({"accuracy": torch.tensor(0.5), "path": tmp_path})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"}
    with open_run(tmp_path) as run:
        assert run.finished
        assert run.results == {"accuracy": 0.5, "path": str(tmp_path)}
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"} == before
    assert run.model_dir == tmp_path / "model"


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_by_name(tmp_path: Path, finished: bool) -> None:
    with open_run(tmp_path) as run:
        run.log(1, {"loss": 1.0})
        if finished:
            run.finish({})
    other = {**CONFIG, "learning_rate": 2e-5, "lora": {"rank": 8}, "new": 1}
    with pytest.raises(RunError) as caught:
        open_run(tmp_path, other)
    message = str(caught.value)
    assert "learning_rate: 1e-05 there, 2e-05 now" in message
    assert "lora.rank: 4 there, 8 now" in message
    assert "new: (not set) there, 1 now" in message
    assert "betas" not in message
    assert f"Choose another --out, or remove {tmp_path}" in message
    with pytest.raises(RunError, match="stage: sft there, ppo now"):
        open_run(tmp_path, stage="ppo")
    open_run(tmp_path).close()  # the refusals did not keep the lock


def test_changed_data_or_parent_is_refused(tmp_path: Path) -> None:
    data, parent = tmp_path / "rows.jsonl", tmp_path / "parent"
    data.write_text("a")
    parent.mkdir()
    (parent / "weights").write_text("1")
    inputs: dict[str, Any] = {"data": [str(data)], "parents": {"model": str(parent)}}
    with open_run(tmp_path / "run", **inputs) as run:
        run.log(1, {"loss": 1.0})
    open_run(tmp_path / "run", **inputs).close()
    data.write_text("b")
    with pytest.raises(RunError, match=r"changed since this run was started: .*rows\.jsonl"):
        open_run(tmp_path / "run", **inputs)
    data.write_text("a")
    (parent / "weights").write_text("2")
    with pytest.raises(RunError, match=r"changed since this run was started: model .*parent"):
        open_run(tmp_path / "run", **inputs)


def test_somebody_elses_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is not a run folder and not empty \(thesis\.tex\)"):
        open_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="cannot be used as a run folder"):
        open_run(tmp_path / "thesis.tex")


def test_start_that_died_before_its_config_was_written_is_started_again(tmp_path: Path) -> None:
    for name in (".lock", "lineage.json", ".config.yaml.partial"):
        (tmp_path / name).write_text("{")
    with open_run(tmp_path) as run:
        run.finish({})
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("trace", ["metrics", "checkpoint", "model"])
def test_only_a_run_that_did_nothing_yet_gives_way_to_other_settings(tmp_path: Path, trace: str) -> None:
    open_run(tmp_path).close()
    with open_run(tmp_path, {**CONFIG, "learning_rate": 3e-5}) as run:
        if trace == "metrics":
            run.log(1, {"loss": 1.0})
        else:
            {"checkpoint": tmp_path / "checkpoints" / "step-1", "model": run.model_dir}[trace].mkdir(parents=True)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["learning_rate"] == 3e-5
    with pytest.raises(RunError, match="learning_rate: 3e-05 there, 1e-05 now"):
        open_run(tmp_path)


def test_unreadable_lineage_is_a_clear_error(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log(1, {"loss": 1.0})
    (tmp_path / "lineage.json").write_text('{"starts": [')
    with pytest.raises(RunError, match=r"lineage\.json cannot be read"):
        open_run(tmp_path)


def test_two_processes_cannot_write_one_run_and_a_crash_releases_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from goodheart.train.run import Run\n"
        "run = Run.open(Path(sys.argv[1]), stage='sft', config={}, parents={}, data=[], seed=0)\n"
        "print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(RunError, match=rf"in use by process {holder.pid} on .*; wait for it, stop it"):
            open_run(tmp_path, {})
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(timeout=10)
    finally:
        holder.kill()
    open_run(tmp_path, {}).close()


def test_the_same_process_cannot_open_it_twice_but_can_after_closing(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        open_run(tmp_path)
    run.close()
    run.close()
    open_run(tmp_path).close()


def test_metrics_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        told: list[Any] = []
        run.trackers.append(lambda step, metrics: told.append((step, dict(metrics))))
        run.log(1, {"loss": math.nan, "kl": torch.tensor(math.inf), "ok": torch.tensor(2)}, timing={"wait": 3})
        run.log(2, {"time/step": 0.5})
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").open()]
    assert rows[0]["loss"] is rows[0]["kl"] is None
    assert rows[0]["ok"] == 2.0
    assert rows[0]["non_finite"] == {"loss": "nan", "kl": "inf"}
    assert rows[0]["timing"] == {"wait": 3.0}
    assert rows[1].keys() == {"step", "timing", "time"}
    assert told[1] == (2, {"time/step": 0.5})


def test_cut_back_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.log(step, {"loss": step})
            run.sample(step, {"text": "naïve \u2028 answer"})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2, "loss"')  # torn by a kill
        run.cut_back(2)
        run.log(3, {"loss": 30})
        assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()] == [1.0, 2.0, 30.0]
        assert [json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").open()] == [1, 2]
        run.cut_back(0)
        assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_notes_and_the_reason_of_an_end_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with open_run(tmp_path, quiet=False) as run:
            run.note("3 rows skipped")
            raise ZeroDivisionError("oh")

    with pytest.raises(ZeroDivisionError):
        fail()
    log = (tmp_path / "log.txt").read_text()
    assert "3 rows skipped" in log
    assert "stopped: ZeroDivisionError: oh" in log
    assert capsys.readouterr().err == "3 rows skipped\n"
    with open_run(tmp_path) as run:
        run.note("unseen")
    assert capsys.readouterr().err == ""


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", main=False) as run:
        run.log(1, {"loss": 1.0})
        run.sample(1, {})
        run.note("x")
        run.cut_back(0)
        run.finish({})
        assert not run.finished
    assert not (tmp_path / "run").exists()


def test_done_comes_after_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = module.replace_text
    with open_run(tmp_path) as run:
        monkeypatch.setattr(module, "replace_text", lambda path, text: (written.append(path.name), real(path, text)))
        run.finish({"a": 1})
    assert written == ["results.json", "DONE"]


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "log.txt"])
def test_full_disk_while_logging_is_a_clear_error(tmp_path: Path, name: str) -> None:
    write = {
        "metrics.jsonl": lambda run: run.log(1, {"loss": 1.0}),
        "samples.jsonl": lambda run: run.sample(1, {"text": "a"}),
        "log.txt": lambda run: run.note("a"),
    }[name]

    def fill() -> None:
        with open_run(tmp_path) as run:
            run._logs[name] = FullDisk()
            write(run)

    with pytest.raises(RunError, match=rf"the disk is full: {name} needs"):
        fill()
    open_run(tmp_path).close()


def test_full_disk_at_the_end_leaves_the_run_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_run(tmp_path) as run:
        monkeypatch.setattr(module, "replace_text", full)
        with pytest.raises(RunError, match=r"the disk is full: results\.json"):
            run.finish({})
        assert not run.finished
