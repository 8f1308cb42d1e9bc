"""What made a model: the whole tree, each part told once, and what has changed since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from goodheart.errors import RunError
from goodheart.loop.lineage import show_lineage, trace
from goodheart.loop.pipeline import Pipeline

PIPELINE = """\
out: out
stages:
  base: {stage: sft, model: tiny, data: demonstrations.jsonl, batch_size: 4, held_out: 0, max_length: 64}
  answers: {stage: sample, model: "${base}", prompts: demonstrations.jsonl, answers: 2, sampling: {max_new_tokens: 4}}
  scored: {stage: score, reward: "lineage_scores:length", data: "${answers}"}
  again: {stage: sft, model: "${base}", data: demonstrations.jsonl, batch_size: 2, held_out: 0, max_length: 64}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A pipeline that ran."""
    folder = tmp_path_factory.mktemp("lineage")
    shutil.copytree(tiny_model, folder / "tiny")
    rows = [{"prompt": f"Who likes {x}?", "completion": "The cat."} for x in ("milk", "bones", "sun", "rain")]
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lineage_scores.py").write_text(
        "def length(completions, **_):\n    return [len(c) for c in completions]\n"
    )
    (folder / "p.yaml").write_text(PIPELINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Pipeline.load(Path("p.yaml")).run()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    return copy


def test_a_run_folder_names_its_parents(folder: Path) -> None:
    origin = trace(Path("out/again"))
    assert origin.stage == "sft"
    assert origin.settings == {"batch_size": 2, "held_out": 0, "max_length": 64}
    assert [(read.role, read.path, read.stage) for read in origin.walk()] == [
        ("", "out/again", "sft"),
        ("model", "out/base", "sft"),
        ("model", "tiny", ""),
        ("data", "demonstrations.jsonl", ""),
        ("data", "demonstrations.jsonl", ""),
    ]
    assert all(read.sha256 for read in origin.walk() if read is not origin)
    assert not any(read.warnings for read in origin.walk())


def test_files_that_stages_wrote_are_traced_too(folder: Path) -> None:
    origin = trace(Path("out/scored.jsonl"))
    assert [(read.role, read.path, read.stage) for read in origin.walk()] == [
        ("", "out/scored.jsonl", "score"),
        ("data", "out/answers.jsonl", "sample"),
        ("model", "out/base", "sft"),
        ("model", "tiny", ""),
        ("data", "demonstrations.jsonl", ""),
        ("prompts", "demonstrations.jsonl", ""),
        ("reward", "lineage_scores:length", ""),
    ]
    assert origin.inputs[0].settings == {"answers": 2, "sampling.max_new_tokens": 4}
    assert trace(Path("out/again/model")).inputs[0].path == "out/base"


def test_what_changed_since_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "demonstrations.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    show_lineage(Path("out/scored.jsonl"))
    told = " ".join(capsys.readouterr().out.split())
    assert "warning: demonstrations.jsonl has changed since out/base was made from it" in told
    assert "warning: demonstrations.jsonl has changed since out/answers.jsonl was made from it" in told
    shutil.rmtree(folder / "out/base")
    warnings = [w for read in trace(Path("out/scored.jsonl")).walk() for w in read.warnings]
    assert "out/base is not here any more" in warnings


@pytest.mark.parametrize("name", ["scored.jsonl", "answers.jsonl"])
def test_an_output_that_was_changed_is_a_warning(folder: Path, name: str) -> None:
    (folder / "out" / name).write_text('{"prompt": "a"}\n')
    warnings = [w for read in trace(Path("out/scored.jsonl")).walk() for w in read.warnings]
    assert f"out/{name} was changed after it was made" in warnings
    model = next((folder / "out/again/model").glob("*.safetensors"))
    model.write_bytes(model.read_bytes() + b"x")
    assert trace(Path("out/again")).warnings == ["out/again was changed after it was made"]


def test_another_file_of_that_name_is_another_file(folder: Path) -> None:
    record = json.loads((folder / "out/pipeline.json").read_text())
    record["done"]["scored"]["settings"]["out"] = "elsewhere/scored.jsonl"
    (folder / "out/pipeline.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"no record of how it was made.*paths are relative to "):
        trace(Path("out/scored.jsonl"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pipeline.json", '{"done": '),
        ("pipeline.json", '{"done": {"base": 3}}'),
        ("again/lineage.json", "[]"),
        ("again/lineage.json", '{"parents": {"model": "x"}}'),
        ("again/lineage.json", '{"data": [{}]}'),
        ("again/lineage.json", '{"starts": {"a": 1}}'),
        ("again/lineage.json", "{"),
        ("again/config.yaml", "a: {"),
        ("again/config.yaml", "- a"),
    ],
)
def test_a_damaged_record_is_named(folder: Path, name: str, text: str) -> None:
    (folder / "out" / name).write_text(text)
    with pytest.raises(RunError, match=rf"out/{name} cannot be read"):
        trace(Path("out/again"))


def test_each_part_is_told_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads((folder / "out/again/lineage.json").read_text())
    known["parents"]["reference"] = known["parents"]["model"]
    (folder / "out/again/lineage.json").write_text(json.dumps(known))
    show_lineage(Path("out/again"))
    told = capsys.readouterr().out
    assert told.count("batch_size 4") == 1
    assert "reference: out/base" in told
    assert told.count("(see above)") == 1


def test_an_unfinished_run_says_so(folder: Path) -> None:
    (folder / "out/again/DONE").unlink()
    assert trace(Path("out/again")).warnings == ["out/again is not finished"]


def test_a_loop_in_damaged_records_ends(folder: Path) -> None:
    known = json.loads((folder / "out/base/lineage.json").read_text())
    known["parents"]["model"] = {"path": "out/again", "sha256": None}
    (folder / "out/base/lineage.json").write_text(json.dumps(known))
    assert [read.path for read in trace(Path("out/again")).walk()][:3] == ["out/again", "out/base", "out/again"]


@pytest.mark.parametrize(
    ("path", "message"), [("nothing", "no such file or folder"), ("tiny", "no record of how it was made")]
)
def test_what_has_no_lineage(folder: Path, path: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        trace(Path(path))
