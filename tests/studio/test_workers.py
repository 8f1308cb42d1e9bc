"""Several processes that serve one studio."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.private_postgres import Server
from goodheart.errors import ConfigError
from goodheart.feedback import passwords
from goodheart.feedback.store import open_store
from goodheart.studio.app import serve
from tests.feedback.conftest import postgres

__all__ = ["postgres"]

PROGRAM = """
import sys
from goodheart.feedback.store import open_store
from goodheart.studio.app import serve
serve(open_store(sys.argv[1]), port=int(sys.argv[2]), workers=2, ready=lambda: print("ready", flush=True))
print("ended", flush=True)
"""


@pytest.fixture
def studio(postgres: Server) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, postgres.new_schema(f"workers_{os.getpid()}_{port}"), str(port)]
    pipe = subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells start what runs in the background
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process, port
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    """Processes that were started by it and serve (the spawning machinery has one more, the resource tracker)."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    serving = [pid for pid in text if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [int(pid) for pid in serving]


def _page(port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def _gone(pids: list[int], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _frozen(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_process_answers_with_one_token_and_a_signal_ends_them_all(
    studio: tuple[subprocess.Popen[str], int], number: signal.Signals
) -> None:
    process, port = studio
    both = _children(process.pid)
    assert len(both) == 2
    tokens = set()
    for one, other in (both, both[::-1]):
        _frozen(one)  # so that the other one answers
        status, page = _page(port, "/settings")
        assert status == 200
        tokens |= set(re.findall(r'name="csrf" value="([^"]+)"', page))
        os.kill(one, signal.SIGCONT)
        assert other in _children(process.pid)
    assert len(tokens) == 1  # a form of one is taken by the other
    os.killpg(process.pid, number)
    out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("ended\n", "", 0)
    assert _gone(both)


def test_one_that_dies_is_started_again_and_none_outlives_the_first(
    studio: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = studio
    before = _children(process.pid)
    time.sleep(5.5)  # one that dies sooner would die again
    os.kill(before[0], signal.SIGKILL)
    until = time.monotonic() + 60
    while len(set(_children(process.pid)) - {before[0]}) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    after = _children(process.pid)
    assert len(after) == 2
    assert before[0] not in after
    assert _page(port, "/")[0] == 200
    process.kill()
    assert _gone(after)


def test_sqlite_has_one_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers 2: SQLite lets one write at a time"):
        serve(open_store(tmp_path / "labels.db"), workers=2)


def test_turns_are_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PLACES", "_HASHING"):
        monkeypatch.setattr(passwords, name, getattr(passwords, name))
    passwords.share(2)
    with passwords.turn():
        assert not passwords._HASHING.acquire(blocking=False)  # one at a time in each of two
    passwords.share(1)
    with passwords.turn():
        assert passwords._HASHING.acquire(blocking=False)
