"""The private PostgreSQL of tests and benchmarks."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.private_postgres import programs
from tests.feedback.conftest import quick_folder

_STARTS = """
import sys, time
from pathlib import Path
from bench.private_postgres import Server
Server(Path(sys.argv[1]))
print("started", flush=True)
time.sleep(600)
"""


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_the_server_ends_with_the_process_that_started_it() -> None:
    folder = quick_folder()
    try:
        with subprocess.Popen([sys.executable, "-c", _STARTS, str(folder)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"started\n"
            server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
            assert _is_alive(server)
            child.send_signal(signal.SIGKILL)
            child.wait()
        until = time.monotonic() + 20
        while (_is_alive(server) or any(folder.iterdir())) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _is_alive(server)
        assert not any(folder.iterdir())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
