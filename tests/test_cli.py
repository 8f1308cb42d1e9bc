"""The command line as a user meets it: exit status, messages, and what --help costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from goodheart import cli
from goodheart.cli import app, main
from goodheart.loop.commands import COMMANDS, Command
from goodheart.loop.registry import STAGES

HEAVY = ("torch", "transformers", "datasets", "pydantic", "numpy", "pyarrow", "peft")


def goodheart(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "goodheart.cli", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        cwd=cwd,
        timeout=300,
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom goodheart.cli import main\nsys.argv = ['goodheart', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="torch comes with GNU's OpenMP on Linux alone")
@pytest.mark.parametrize(
    ("own", "crowded", "spins"),
    [
        ({}, False, "30000"),
        ({}, True, "0"),
        ({"GOMP_SPINCOUNT": "7"}, True, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, False, "0"),
        ({"OMP_WAIT_POLICY": "active"}, True, "30000000000"),
    ],
)
def test_threads_do_not_wait_by_spinning_for_long(own: dict[str, str], crowded: bool, spins: str) -> None:
    code = (
        f"import sys\nfrom goodheart import cli\nsys.argv = ['goodheart', '--help']\ncli._crowded = lambda: {crowded}\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    import torch"
    )
    kept = {name: value for name, value in os.environ.items() if name not in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | own | {"OMP_DISPLAY_ENV": "verbose"},  # the library then says what it was told
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.parametrize(
    ("said", "crowded"),
    [
        ("some avg10=21.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", True),
        ("some avg10=19.00 avg60=90.00 avg300=90.00 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n", False),
        ("", False),
        (None, False),
    ],
)
def test_a_crowded_machine_is_one_where_work_waits(
    said: str | None, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **_: object) -> str:
        assert str(path) == "/proc/pressure/cpu"
        if said is None:
            raise FileNotFoundError
        return said

    monkeypatch.setattr(Path, "read_text", read)
    assert cli._crowded() is crowded


def test_every_command_has_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"sft", "ppo", "simulate", "label", "evaluate", "run", "init", "demo", "report", "lineage"} <= set(commands)
    assert {"data"} <= set(commands)
    for name, command in commands.items():
        told = CliRunner().invoke(app, [name, "--help"])
        assert told.exit_code == 0, name
        assert (command.help or "").endswith("."), name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_options_are_settings_of_the_stage(command: Command) -> None:
    settings = STAGES[command.name].load_settings()
    assert {option.setting for option in command.options} <= set(settings.model_fields)


def text_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


PAIR = json.dumps({"prompt": "Once", "chosen": " upon a time", "rejected": " more"}) + "\n"


# (arguments with {x} filled in, part of the message)
BAD_INPUT = [
    ("sft --model {model} --data {dir}/missing.jsonl --out {dir}/r", "missing.jsonl: no such file"),
    ("sft --model {model} --data {empty} --out {dir}/r", "the file is empty"),
    ("sft --model {model} --data {wrong} --out {dir}/r", "colour"),
    ("sft --model {model} --data {noanswer} --out {dir}/r", "no row that gives a demonstration"),
    ("sft --model {dir}/nothing --data {pairs} --out {dir}/r", "nothing: no such folder"),
    ("sft --model {dir} --data {pairs} --out {dir}/r", "config.json"),
    ("sft --model {half} --data {pairs} --out {dir}/r", "half"),
    ("sft --model {model} --data {pairs} --out {dir}/r --set lerning_rate=1", "did you mean `learning_rate`"),
    ("sft --model {model} --data {pairs} --out {dir}/r --set epochs=none", "`epochs`"),
    ("sft --model {model} --data {pairs} --out {dir}/r --set max_length=9999", "context of 512"),
    ("sft --model {model} --data {pairs} --out {dir}", "not a run folder and not empty"),
    ("sft --model {model} --data {pairs}", "`out` is missing"),
    ("ppo --model {model} --prompts {pairs} --reward no.such:thing --out {dir}/r", "cannot import module `no.such`"),
    ("ppo --model {model} --prompts {pairs} --reward {model} --out {dir}/r", "reward"),
    ("ppo --model {model} --prompts {pairs} --reward {model} --out {dir}/r --set sampling.top_p=0.9", "top_p"),
    ("ppo --model {model} --prompts {long} --reward math:fsum --out {dir}/r", "prompt longer than"),
    ("score --reward {model} --data {pairs} --out {dir}/s.jsonl", "reward"),
    ("sample --model {model} --prompts {pairs} --out {dir}/s.xyz", "unknown kind of file"),
    ("run {dir}/missing.yaml", "missing.yaml: no such file"),
    ("simulate --answers {dir}/missing.jsonl --out {dir}/l.jsonl", "missing.jsonl: no such file"),
    ("simulate --answers {pairs} --out {dir}/l.jsonl --population croud", "no preset `croud`; did you mean `crowd`?"),
    ("simulate --answers {pairs} --out {dir}/l.jsonl", "there is no column `completions`"),
    ("evaluate --answers base --score math:fsum --out {dir}/e", "write --answers name=file"),
    ("evaluate --answers a={pairs} --answers a={pairs} --score math:fsum --out {dir}/e", "each name once"),
    ("playground --language fr --out {dir}/w", "`language.0`: input should be 'en' or 'zh'"),
    ("lineage {dir}", "no record of how it was made"),
    ("lineage {dir}/missing", "missing: no such file or folder"),
    ("data check {dir}/missing.jsonl", "no such file"),
    ("sft --model {model} --nonsense", "No such option"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, stories260k: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    half = folder / "half"
    half.mkdir()
    for file in stories260k.iterdir():
        data = file.read_bytes()
        (half / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    return {
        "dir": folder,
        "model": stories260k,
        "half": half,
        "empty": text_file(folder, "empty.jsonl", ""),
        "wrong": text_file(folder, "wrong.jsonl", '{"colour": "red"}\n' * 3),
        "noanswer": text_file(folder, "noanswer.jsonl", '{"prompt": "Once"}\n' * 3),
        "pairs": text_file(folder, "pairs.jsonl", PAIR * 3),
        "long": text_file(folder, "long.jsonl", json.dumps({"prompt": "word " * 3000}) + "\n"),
    }


@pytest.mark.parametrize(("line", "message"), BAD_INPUT, ids=[line for line, _ in BAD_INPUT])
def test_bad_input(line: str, message: str, places: dict[str, Path]) -> None:
    done = goodheart(*line.format(**places).split())
    assert done.returncode != 0
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = goodheart("run", tmp_path / "missing.yaml", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_world_is_labelled_and_evaluated(tmp_path: Path) -> None:
    """The commands that need no model, one after the other, as they are typed."""
    done = goodheart("playground", "--out", "w", "--language", "en", "--language", "zh", "--seed", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "world written to w\n"
    rows = [json.loads(line) for line in (tmp_path / "w/prompts-test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["language"] for row in rows} == {"en", "zh"}
    for name, said in (("base", ["No.", "I cannot help you with that."]), ("new", ["Yes.", "Here is how you do it."])):
        answers = [row | {"completions": said} for row in rows[::20]]
        text_file(tmp_path, f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in answers))
    done = goodheart("simulate", "--answers", "base.jsonl", "--answers", "new.jsonl", "--out", "l.jsonl", "--seed", 0,
                     "--population", "careful", "--overlap", 2, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{4 * len(answers)} labels of 12 people on {len(answers)} prompts, in l.jsonl" in done.stdout
    done = goodheart("evaluate", "--answers", "base=base.jsonl", "--answers", "new=new.jsonl", "--out", "e", "--quiet",
                     "--score", "goodheart.playground.truth:score", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "evaluation written to e" in done.stdout
    assert set(json.loads((tmp_path / "e/results.json").read_text(encoding="utf-8"))["models"]) == {"base", "new"}
    done = goodheart("lineage", "e", cwd=tmp_path)
    assert "score: goodheart.playground.truth:score" in done.stdout


def test_a_nought_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--seed 0 is over the file's seed, and --answers 0 is a mistake, not the default."""
    file = text_file(tmp_path, "c.yaml", "seed: 5\nquiet: true\n")
    built: list[Any] = []
    monkeypatch.setattr("goodheart.loop.registry.Stage.load", lambda _: built.append)
    monkeypatch.setattr("goodheart.loop.view.show", lambda *_: None)
    named = ["--model", "m", "--prompts", "p", "--out", str(tmp_path / "o.jsonl"), "--config", str(file)]
    assert CliRunner().invoke(app, ["sample", *named, "--seed", "0"]).exit_code == 0
    assert (built[0].seed, built[0].quiet) == (0, True)
    refused = CliRunner().invoke(app, ["sample", *named, "--answers", "0"])
    assert "`answers`: input should be greater than or equal to 1 (got 0)" in str(refused.exception)


def test_ctrl_c_while_a_command_gets_ready_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("goodheart.loop.registry.Stage.load", stop)
    monkeypatch.setattr("sys.argv", ["goodheart", "sft", "--model", "m", "--data", "d", "--out", "o"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "stopped\n")


@pytest.mark.parametrize(("command", "named"), [("sample", "prompts"), ("score", "data"), ("simulate", "answers")])
def test_what_is_read_is_not_written_over(tmp_path: Path, command: str, named: str) -> None:
    rows = text_file(tmp_path, "rows.jsonl", '{"prompt": "a", "completion": "b"}\n{torn\n')
    before = rows.read_bytes()
    options = {"sample": ["--model", "m"], "score": ["--reward", "r"], "simulate": []}[command]
    for source in (rows, tmp_path / "*.jsonl"):
        told = CliRunner().invoke(app, [command, *options, f"--{named}", str(source), "--out", str(rows)])
        assert "rows.jsonl is what is read; choose another file" in str(told.exception)
    for name, why in (("o.txt", "unknown kind of file for rows"), ("o", "unknown kind of file for rows")):
        told = CliRunner().invoke(app, [command, *options, f"--{named}", str(rows), "--out", str(tmp_path / name)])
        assert why in str(told.exception)
    told = CliRunner().invoke(app, ["data", "convert", str(rows), str(rows), "--to", "trl-sft"])
    assert "rows.jsonl is what is read" in str(told.exception)
    assert rows.read_bytes() == before
