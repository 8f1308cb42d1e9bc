"""Compiling the C code, and which compiled code is trusted."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from goodheart.generate.build import CODE
from goodheart.models import build, native

FAST = tuple(flag.replace("-O3", "-O0") for flag in build._FLAGS)  # to compile, not to run
LOAD = (
    "from goodheart.generate.build import CODE; from goodheart.models import build; "
    f"build._FLAGS = {FAST}; assert build.load(CODE) is not None"
)


def fresh_load(code: build.Code = CODE) -> object:
    return build.load.__wrapped__(code)


@pytest.mark.parametrize("code", [CODE, *native.CODES.values()], ids=lambda code: code.name)
def test_no_builtin_is_used_that_only_gcc_has(code: build.Code) -> None:
    used = {name for file in code.folder.iterdir() for name in re.findall(r"__builtin_\w+", file.read_text())}
    assert used <= {f"__builtin_{name}" for name in ("convertvector", "prefetch", "ia32_pause")}  # clang knows these


def test_continuous_integration_runs_the_c_code() -> None:
    wanted = os.environ.get("CI") and os.environ.get("GOODHEART_NATIVE") != "0"
    assert build.load(CODE) is not None or not wanted


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder with freshly compiled code in it."""
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "goodheart"))
    monkeypatch.delenv("GOODHEART_NATIVE", raising=False)
    monkeypatch.setattr(build, "_FLAGS", FAST)
    if fresh_load() is None:
        pytest.skip("no C compiler")
    return tmp_path / "goodheart"


def test_it_is_compiled_once(compiled: Path) -> None:
    (file,) = compiled.iterdir()  # nothing temporary is left
    assert file.stat().st_mode & 0o777 == 0o700
    made = file.stat().st_ino
    assert fresh_load() is not None
    assert file.stat().st_ino == made


def test_what_compiles_but_cannot_be_loaded_is_not_kept(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good,) = compiled.iterdir()
    monkeypatch.setattr(build, "_FLAGS", (*FAST, "-c"))  # an object file, not a library
    assert fresh_load() is None
    monkeypatch.setattr(build, "_FLAGS", (*FAST, "-Dgoodheart_draw=other"))  # a library of something else
    assert fresh_load() is None
    assert list(compiled.iterdir()) == [good]


def test_code_that_was_not_used_for_a_month_is_removed(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (used,) = compiled.iterdir()
    names = {"generate-0.so": 31, "generate-1.so": 29, "references-0.so": 31}
    for path, days in ((used, 31), *((compiled / name, days) for name, days in names.items())):
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    assert fresh_load() is not None  # nothing is written, so nothing removed, and this one counts as used
    assert len(list(compiled.iterdir())) == 4
    monkeypatch.setattr(build, "_FLAGS", (*FAST, "-DOTHER"))
    assert fresh_load() is not None
    left = {path.name for path in compiled.iterdir()}
    assert {used.name, "generate-1.so", "references-0.so"} < left
    assert len(left) == 4  # with the new one


def test_processes_that_start_together_and_a_damaged_file(compiled: Path) -> None:
    # Other processes: this one has the file in memory, and would not read it again.
    (file,) = compiled.iterdir()
    file.unlink()
    file.write_bytes(b"half a library")
    started = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert list(compiled.iterdir()) == [file]
    assert file.stat().st_size > 1000


def test_code_is_not_loaded_from_where_others_may_put_it(compiled: Path) -> None:
    (file,) = compiled.iterdir()
    file.chmod(0o722)
    made = file.stat().st_ino
    assert fresh_load() is not None  # made again, not loaded
    assert file.stat().st_ino != made
    compiled.chmod(0o777)
    assert fresh_load() is None
    compiled.chmod(0o755)
    assert fresh_load() is not None


@pytest.mark.parametrize("what", ["_processor", "_FLAGS", "source"])
def test_code_for_another_machine_or_of_another_version_is_not_loaded(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, what: str, tmp_path: Path
) -> None:
    code = CODE
    if what == "_processor":
        monkeypatch.setattr(build, what, lambda: "flags: none of those")
    elif what == "_FLAGS":
        monkeypatch.setattr(build, what, (*build._FLAGS, "-DOTHER"))
    else:
        sources = tmp_path / "c"
        sources.mkdir()
        for path in CODE.folder.iterdir():
            (sources / path.name).write_bytes(path.read_bytes() + b"\n")
        code = replace(CODE, folder=sources)
    assert fresh_load(code) is not None
    assert len(list(compiled.iterdir())) == 2


def test_the_compiler_may_lie_in_a_folder_with_a_blank(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my tools").mkdir()
    (tmp_path / "my tools" / "cc").symlink_to(build._compiler()[0])
    monkeypatch.setenv("CC", f"'{tmp_path}/my tools/cc' -DOTHER")
    assert build._compiler() == [f"{tmp_path}/my tools/cc", "-DOTHER"]
    assert fresh_load() is not None
    assert len(list(compiled.iterdir())) == 2


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_compiler_or_a_folder_there_is_none_and_one_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(why: str) -> bool:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return fresh_load() is None and len(caplog.messages) == 1 and why in caplog.text

    monkeypatch.delenv("GOODHEART_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GOODHEART_NATIVE", raising=False)
    monkeypatch.setattr(build, "_FLAGS", FAST)
    monkeypatch.setenv("CC", "false")
    assert refused("exit status 1")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert refused("no-such-compiler")
    monkeypatch.setenv("CC", "cc -Dint=nonsense")
    assert refused("error: ")
    monkeypatch.setenv("CC", "'cc")
    assert refused("CC is")
    monkeypatch.delenv("CC")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert refused("file")
    monkeypatch.delenv("XDG_CACHE_HOME")
    with monkeypatch.context() as homeless:
        homeless.setattr(Path, "home", no_home)
        assert refused("home directory")
    monkeypatch.setenv("PATH", "")
    assert refused("no C compiler was found")
    caplog.clear()
    monkeypatch.setenv("GOODHEART_NATIVE", "0")
    assert fresh_load() is None
    assert not caplog.messages  # as asked for
