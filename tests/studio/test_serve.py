"""The server as people start it: it says what is wrong, and ends on Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from goodheart.errors import ConfigError
from goodheart.feedback.store import open_store
from goodheart.studio.app import _config, serve

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


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_told_apart_from_a_port_that_is_taken(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"host {host}: no address of this machine"):
        serve(open_store(tmp_path / "labels.db"), host, 8000, accounts=True)


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [(None, "http 127.0.0.1"), ("127.0.0.1", "https 203.0.113.7"), ("10.0.0.1", "http 127.0.0.1")],
)
def test_only_the_proxy_is_believed_about_who_asks(
    proxy: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn reads it where it is told nothing

    async def tells(scope: Any, receive: Any, send: Any) -> None:
        said = f"{scope['scheme']} {scope['client'][0]}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said})

    config = _config(tells, "127.0.0.1", 8000, proxy)
    config.load()
    client = TestClient(config.loaded_app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 5))
    assert client.get("/", headers={"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}).text == expected
