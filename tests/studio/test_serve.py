"""The server as people start it: it says what is wrong, and ends on Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from goodheart.feedback.store import open_store
from goodheart.studio.app import serve
serve(open_store(sys.argv[1]), port=int(sys.argv[2]), ready=lambda: print("ready", flush=True))
print("ended", "torch" in sys.modules)
"""


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder / "labels.db"), str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_ends_it_quietly_and_torch_is_never_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(tmp_path, port)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    second = start(tmp_path, port)  # the port is taken now
    out, errors = second.communicate(timeout=60)
    assert (out, second.returncode) == ("", 1)
    assert f"ConfigError: port {port} of 127.0.0.1 cannot be used" in errors
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("ended False\n", "", 0)
