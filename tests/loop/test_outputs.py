"""Outputs on disk: what is refused so that nobody's own files are moved, and what counts as changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from goodheart.errors import ConfigError
from goodheart.loop.outputs import is_ours, output_digest, reads_from, whole
from goodheart.loop.pipeline import Pipeline

SCORE = """\
out: out
stages:
  first: {{stage: score, reward: "my_scores:length", data: "{data}", out: {out}, quiet: true}}
  second: {{stage: score, reward: "my_scores:length", data: "${{first}}", out: {second}, quiet: true}}
"""

# The stage itself looks at a file of rows that it is to write; where it writes a folder the pipeline alone looks.
TOKENIZERS = """\
out: out
stages:
  first: {{stage: tokenizer, data: "{data}", out: {out}, vocab_size: 300}}
  second: {{stage: tokenizer, data: other.jsonl, out: {second}, vocab_size: 300}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("data/rows.jsonl", "rows.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a", "completion": "four"}\n', encoding="utf-8")
    (tmp_path / "my_scores.py").write_text("def length(completions, **_):\n    return [len(c) for c in completions]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(
    folder: Path,
    *,
    data: str = "rows.jsonl",
    out: str = "out/a.jsonl",
    second: str = "out/b.jsonl",
    template: str = SCORE,
) -> Pipeline:
    (folder / "p.yaml").write_text(template.format(data=data, out=out, second=second), encoding="utf-8")
    return Pipeline.load(Path("p.yaml"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "rows.jsonl"}, "p.yaml:3: `out`: the stage reads rows.jsonl, and rows.jsonl is it"),
        ({"out": "./data/../rows.jsonl"}, "the stage reads rows.jsonl"),
        ({"data": "data", "out": "data/scored.jsonl"}, "the stage reads data, and data/scored.jsonl is it"),
        ({"data": "data/rows.jsonl", "out": "data"}, "the stage reads data/rows.jsonl, and data is it, contains it"),
        ({"data": "data/*.jsonl", "out": "data/x.jsonl"}, "the stage reads data/*.jsonl, which would find data/x"),
        ({"out": "out"}, "out is or contains the pipeline's own folder"),
        ({"out": "."}, ". is or contains the pipeline's own folder"),
        ({"out": ".."}, ".. is or contains"),
        ({"second": "out/a.jsonl"}, "p.yaml:4: `out`: stage `first` writes out/a.jsonl already"),
        ({"second": "out/../out/a.jsonl"}, "stage `first` writes"),
        ({"out": "out/x/a.jsonl", "second": "out/x"}, "out/x and what stage `first` writes lie in each other"),
    ],
)
def test_places_where_something_must_stay(folder: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(folder, **given, template=TOKENIZERS)
    assert message in str(error.value)


def test_a_deep_pattern_finds_its_own_output_only_where_it_does(folder: Path) -> None:
    with pytest.raises(ConfigError, match="which would find"):
        load(folder, data="**/*.jsonl", out="x/y.jsonl", second="z.csv")
    assert load(folder, data="**/rows.jsonl", out="x/y.jsonl").steps


def test_the_current_folder_is_no_output(folder: Path) -> None:
    (folder / "p.yaml").write_text(f"out: {folder.parent}/elsewhere\nstages:\n  playground: {{out: {folder}}}\n")
    with pytest.raises(ConfigError, match=r"p\.yaml:3: `out`: .* is or contains the current folder"):
        Pipeline.load(Path("p.yaml"))


def test_what_no_stage_made_stays_where_it_is(folder: Path) -> None:
    (folder / "mine.jsonl").write_text("years of work\n")
    loaded = load(folder, out="mine.jsonl")
    for act in (loaded.plan, loaded.run):
        with pytest.raises(ConfigError, match=r"`first`: mine\.jsonl is there and no stage of this pipeline made it"):
            act()
    assert (folder / "mine.jsonl").read_text() == "years of work\n"
    (folder / "mine.jsonl").unlink()
    loaded.run()
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "sixsix"}\n', encoding="utf-8")
    loaded.run()  # now it is known
    assert "four" in (folder / "out/replaced/mine-1.jsonl").read_text()


def test_whose_a_folder_is(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert is_ours(mine, [])  # nothing is in it
    (mine / "thesis.txt").write_text("x")
    assert not is_ours(mine, [])
    assert is_ours(mine, [{"settings": {"out": str(tmp_path / "x/../mine")}}])
    assert not is_ours(mine, [{"settings": {"out": str(tmp_path / "other")}}])
    (mine / "lineage.json").write_text("{}")
    assert is_ours(mine, [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("out/labels.jsonl", True),
        ("{cwd}/out/labels.jsonl", True),
        ("x/../out/labels.jsonl", True),
        ("out/*.jsonl", True),
        ("out/lab?ls.jsonl", True),
        ("**/*.jsonl", True),
        ("out/labels.jsonl/deeper", True),
        ("out", True),  # a folder of data
        ("out/**/labels.jsonl", True),
        ("**/labels.csv", False),
        ("out/*.csv", False),
        ("out/other.jsonl", False),
        ("outer/labels.jsonl", False),
    ],
)
def test_what_reads_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: bool) -> None:
    monkeypatch.chdir(tmp_path)
    assert reads_from(whole(text.format(cwd=tmp_path)), whole("out/labels.jsonl"), is_data=True) is found


def test_a_deep_pattern_may_find_something_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reads_from(whole("out/**/corpus.jsonl"), whole("out/world"), is_data=True)
    assert not reads_from(whole("in/**/corpus.jsonl"), whole("out/world"), is_data=True)


def test_a_model_is_no_folder_around_an_output() -> None:
    assert not reads_from(whole("runs"), whole("runs/labels.jsonl"), is_data=False)
    assert reads_from(whole("runs/sft/model"), whole("runs/sft"), is_data=False)


@pytest.mark.parametrize("data", ["out/a.jsonl", "{cwd}/out/a.jsonl", "out/a*.jsonl"])
def test_an_unmentioned_link_is_found(folder: Path, data: str) -> None:
    """A stage that names another's output by its path depends on it all the same."""
    load(folder)
    text = (folder / "p.yaml").read_text().replace("${first}", data.format(cwd=folder))
    (folder / "p.yaml").write_text(text)
    assert Pipeline.load(Path("p.yaml")).steps[1].parents == ["first"]


def test_an_empty_out_is_the_usual_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    loaded = load(folder, out="", second="~/b.jsonl")
    assert [step.output for step in loaded.steps] == [Path("out/first.jsonl"), folder / "home/b.jsonl"]
    assert [step.settings.out for step in loaded.steps] == [step.output for step in loaded.steps]
    for written, read in (("out:", Path("runs/p")), ("out: ~/x", folder / "home/x")):
        (folder / "p.yaml").write_text((folder / "p.yaml").read_text().replace("out: out", written, 1))
        assert Pipeline.load(Path("p.yaml")).out == read
        (folder / "p.yaml").write_text((folder / "p.yaml").read_text().replace(written, "out: out", 1))


def test_logs_and_reports_do_not_change_an_output(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for name in ("results.json", "model/config.json"):
        (run / name).write_text("{}")
    before = output_digest(run)
    for name in ("log.txt", "report.html", ".lock"):
        (run / name).write_text("more")
    assert output_digest(run) == before
    (run / "model/config.json").write_text('{"a": 1}')
    assert output_digest(run) != before
    world = tmp_path / "world"
    world.mkdir()
    (world / "corpus.txt").write_text("a")
    before = output_digest(world)
    (world / ".hidden").write_text("a")
    assert output_digest(world) == before
    (world / "corpus.txt").rename(world / "other.txt")
    assert output_digest(world) != before
