"""Which code an output depends on: what its module imports and no more, by what it does and not how it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goodheart.loop import code
from goodheart.loop.code import changed, code_of, exists
from goodheart.loop.registry import STAGES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rewards.py").write_text("import helpers.words\ndef reward(x):\n    return 1\n")
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers/__init__.py").write_text("")
    (tmp_path / "helpers/words.py").write_text("from . import more\nimport json\n")
    (tmp_path / "helpers/more.py").write_text("from goodheart.errors import DataError\nFOUR = 4\n")
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited(file: Path, text: str) -> list[str]:
    before = code_of("rewards")
    file.write_text(text)
    return changed(before, code_of("rewards"))


def test_follows_the_users_imports(folder: Path) -> None:
    assert sorted(code_of("rewards")) == [
        "goodheart/errors.py",
        "helpers/__init__.py",
        "helpers/more.py",
        "helpers/words.py",
        "rewards.py",
    ]


def test_follows_imports_beside_a_module_that_lies_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lib").mkdir()
    (folder / "lib/other_rewards.py").write_text("import helper2, torch, json\nimport rewards\n")
    (folder / "lib/helper2.py").write_text("TWO = 2\n")
    monkeypatch.syspath_prepend(str(folder / "lib"))
    found = code_of("other_rewards")
    assert {"other_rewards.py", "helper2.py", "rewards.py", "helpers/words.py"} <= found.keys()
    assert not [name for name in found if name.startswith(("torch", "json"))]
    (folder / "lib/helper2.py").write_text("TWO = 3\n")
    assert changed(found, code_of("other_rewards")) == ["helper2.py"]


def test_what_it_does_counts_and_how_it_reads_does_not(folder: Path) -> None:
    more = folder / "helpers/more.py"
    text = more.read_text()
    assert edited(more, '"""Words."""\n# why\n\n' + text.replace("4", " 4  # four")) == []
    assert edited(more, text.replace("FOUR = 4", "FOUR = 5")) == ["helpers/more.py"]
    reward = folder / "rewards.py"
    assert edited(reward, reward.read_text().replace("    return", '    """One."""\n    return')) == []
    assert edited(folder / "unrelated.py", "x = 2\n") == []


def test_broken_code_still_has_a_hash(folder: Path) -> None:
    assert edited(folder / "helpers/more.py", "def (") == ["goodheart/errors.py", "helpers/more.py"]


def test_stages_depend_on_their_own_code() -> None:
    sft, ppo = code_of("goodheart.stages.sft"), code_of("goodheart.stages.ppo")
    assert "goodheart/train/step.py" in sft
    assert "goodheart/losses/logprobs.py" in sft
    assert "goodheart/stages/ppo.py" not in sft
    assert "goodheart/losses/policy.py" in ppo
    # what is compiled when it is first used
    assert "goodheart/generate/c/generate.c" in ppo
    assert "goodheart/generate/c/generate.c" not in code_of("goodheart.stages.tokenizer")
    # a new release by itself changes no output
    assert "goodheart/__init__.py" not in sft


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_can_be_found(name: str) -> None:
    kind = STAGES[name]
    assert kind.module.replace(".", "/") + ".py" in code_of(kind.module)
    settings = kind.load_settings()
    assert callable(kind.load())
    named = {setting.partition(".")[0] for setting in (*kind.models, *kind.data)}
    assert named <= set(settings.model_fields)
    assert "out" in settings.model_fields


def test_whether_a_module_is_there(folder: Path) -> None:
    assert exists("rewards")
    assert exists("helpers.words")
    assert exists("math")
    assert exists("goodheart.judges.function")
    assert not exists("goodheart.judges.functions")
    assert not exists("reward")


def test_all_stages_together_look_for_a_module_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code._ours.cache_clear()
    code._ours_of.cache_clear()
    asked: list[str] = []
    real = code.os.path.isfile
    monkeypatch.setattr(code.os.path, "isfile", lambda file: asked.append(file) or real(file))
    for kind in STAGES.values():
        code_of(kind.module)
    assert len(asked) == len(set(asked)) > 100


def fresh(module: str) -> dict[str, str]:
    """As a new process finds it."""
    code._memory.cache_clear()
    code._known.cache_clear()
    return code_of(module)


def test_files_known_by_their_content_are_not_parsed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "cache"))
    parsed: list[str] = []
    real = code._parsed
    monkeypatch.setattr(code, "_parsed", lambda name, file, text: parsed.append(name) or real(name, file, text))
    found = fresh("rewards")
    assert set(parsed) == {"rewards", "helpers", "helpers.words", "helpers.more", "goodheart.errors"}
    parsed.clear()
    assert fresh("rewards") == found
    assert parsed == []
    (folder / "helpers/more.py").write_text("FOUR = 5\n")
    assert changed(found, fresh("rewards")) == ["goodheart/errors.py", "helpers/more.py"]
    assert parsed == ["helpers.more"]


def test_what_an_earlier_version_of_this_module_remembered_goes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "cache"))
    fresh("rewards")
    (file,) = (tmp_path / "cache").iterdir()
    older, other_python, else_ = (file.with_name(n) for n in (f"{file.stem[:-2]}xy.json", "code-2.7-ab.json", "de.so"))
    for each in (older, other_python, else_):
        each.write_text("{}")
    fresh("rewards")  # nothing new, nothing written
    assert older.exists()
    (folder / "helpers/more.py").write_text("FOUR = 5\n")
    # another process may be quicker
    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **how: (real(path), real(path, **how)))
    fresh("rewards")
    assert set((tmp_path / "cache").iterdir()) == {file, other_python, else_}
    assert json.loads(file.read_text())


@pytest.mark.parametrize("content", ["{torn", "[]", '{"a": 3}', '{"a": ["b"]}'])
def test_a_damaged_memory_of_code_is_no_obstacle(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    found = code_of("rewards")
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "cache"))
    assert fresh("rewards") == found
    (file,) = (tmp_path / "cache").iterdir()
    good = file.read_text()
    file.write_text(content)
    assert fresh("rewards") == found
    assert json.loads(file.read_text()) == json.loads(good)
    # nor is a cache that cannot be written
    monkeypatch.setenv("GOODHEART_CACHE", str(file / "below"))
    assert fresh("rewards") == found
