"""What is answered before work starts is answered without the packages that work needs, whose import takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "transformers",
    "scipy",
    "sklearn",
    "pandas",
    "pyarrow",
    "matplotlib",
    "datasets",
    "peft",
    "tokenizers",
)
# What costs tens of milliseconds and is not asked for.
NOT_FOR_HELP = ("pydantic", "yaml", "rich", "asyncio", "importlib.metadata", "email", "goodheart.loop.registry")
NOT_FOR_A_PLAN = ("numpy", "rich", "asyncio", "sqlalchemy", "httpx", "goodheart.data.layouts", "goodheart.train.run")

# Runs the command lines on its input in one process and prints which of the modules named there each has imported.
SCRIPT = """
import json, sys
lines, modules = json.load(sys.stdin)
from goodheart.cli import main
for line in lines:
    sys.argv = ["goodheart", *line.split()]
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = stop.code
    print("told", json.dumps([line, status, [name for name in modules if name in sys.modules]]), file=sys.stderr)
"""

ROWS = "".join(json.dumps({"prompt": f"p{i}", "completions": ["a", "b"], "scores": [i, 1]}) + "\n" for i in range(4))
PIPELINE = """\
out: out
stages:
  playground: {documents: 20, demonstrations: 20}
  difficulty: {data: rows.jsonl}
"""


def heavy(folder: Path, *lines: str, modules: tuple[str, ...] = HEAVY) -> list[tuple[str, int, list[str]]]:
    """(command line, exit status, which of the modules are imported after it) of each."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([lines, modules]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        timeout=300,
    )
    told = [json.loads(line[4:]) for line in done.stderr.splitlines() if line.startswith("told")]
    assert len(told) == len(lines), done.stderr
    return [(line, status, names) for line, status, names in told]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("start-up")
    (made / "p.yaml").write_text(PIPELINE, encoding="utf-8")
    (made / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return made


def test_nothing_heavy_to_say_what_there_is_and_what_is_wrong(folder: Path) -> None:
    asked = {
        "--help": 0,
        "ppo --help": 0,
        f"run {ROOT}/goodheart/loop/demo.yaml --plan": 0,
        "run p.yaml --plan": 0,
        "run missing.yaml": 1,
        f"run {ROOT}/goodheart/loop/demo.yaml --plan --set stages.ppo.lam=2": 1,
        "sft --model m --data d --out r --set lerning_rate=1": 1,
        "dpo --model m --data d --out r --set loss=robust": 1,
        "reward --config missing.yaml": 1,
        "simulate --answers missing.jsonl --out rows.txt": 1,
        "label missing.yaml": 1,
        "chat --model m --set temperature=-1": 1,
        "lineage missing": 1,
        "report missing": 1,
        "plot missing": 1,
        "data check rows.jsonl": 0,
        "data check missing.jsonl": 1,
        "data export missing.db/helpful rows.jsonl": 1,
    }
    assert heavy(folder, *asked) == [(line, status, []) for line, status in asked.items()]


@pytest.mark.parametrize(
    ("line", "modules"),
    [("--help", NOT_FOR_HELP), (f"run {ROOT}/goodheart/loop/demo.yaml --plan", NOT_FOR_A_PLAN)],
)
def test_little_for_help_and_a_plan(folder: Path, line: str, modules: tuple[str, ...]) -> None:
    assert heavy(folder, line, modules=modules) == [(line, 0, [])]


def test_settings_of_every_stage_are_checked_without_its_work(folder: Path) -> None:
    from goodheart.loop.commands import COMMANDS
    from goodheart.loop.registry import STAGES

    names = [command.name for command in COMMANDS]
    assert {*names, "export"} == set(STAGES)  # `goodheart data export` has options of its own
    asked = [f"{name} --set nonsense=1" for name in names]
    assert heavy(folder, *asked) == [(line, 1, []) for line in asked]


def test_a_pipeline_that_is_done_is_left_as_it_is_without_its_work(folder: Path) -> None:
    assert heavy(folder, "run p.yaml")[0][1] == 0
    made = (folder / "out/difficulty.jsonl").stat().st_mtime_ns
    again = ("run p.yaml", "run p.yaml --plan", "lineage out/difficulty.jsonl", "report out")
    assert heavy(folder, *again) == [(line, 0, []) for line in again]
    assert (folder / "out/difficulty.jsonl").stat().st_mtime_ns == made


def test_what_is_imported_is_seen(folder: Path) -> None:
    assert heavy(folder, "chat --model missing")[0][2] != []
