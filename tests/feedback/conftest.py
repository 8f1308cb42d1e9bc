"""A store in each of the two databases."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.private_postgres import Server, programs
from goodheart.feedback import passwords
from goodheart.feedback.store import Store, open_store


def quick_folder(parent: Path | None = None) -> Path:
    """A temporary folder, in memory where there is room: what a test waits for is mostly the disk.

    Commits are flushed there too, and a killed process is no different; what survives a power cut no test can tell.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    # The path of a socket must be short: not below pytest's folder.
    return Path(tempfile.mkdtemp(prefix="goodheart-", dir=memory if roomy else parent or "/tmp"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if programs() is None:
        message = "PostgreSQL is not installed (apt-get install postgresql); the store is tested on SQLite only"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = quick_folder()
    try:
        server = Server(folder)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", (2**4, 8, 1))


NewPlace = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgres"])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewPlace]:
    """Makes the address of an empty database, another one at each call."""
    made: list[str] = []
    folder = quick_folder(tmp_path)

    def make() -> str:
        name = f"g{os.getpid()}_{abs(hash(request.node.nodeid)) % 10**12}_{len(made)}"
        if request.param == "sqlite":
            place = str(folder / f"{name}.db")
        else:
            server: Server = request.getfixturevalue("postgres")
            place = server.new_schema(name)
        made.append(place)
        return place

    yield make
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(new_place: NewPlace) -> Iterator[Store]:
    opened = open_store(new_place())
    yield opened
    opened.close()
