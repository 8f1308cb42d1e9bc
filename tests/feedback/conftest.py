"""A store in each of the two databases. PostgreSQL is started privately: its own folder, a socket, no port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from goodheart.feedback import passwords
from goodheart.feedback.store import Store, open_store


def _programs() -> Path | None:
    """The folder with initdb: on the path, or where Debian puts it."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


class Server:
    """A private PostgreSQL server. It refuses to run as root: then it runs as the user `postgres`."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-U", "goodheart", "-A", "trust", "-E", "UTF8", "--no-sync")
        # fsync stays on: what is promised about a kill is tested with it.
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=200"
        self._run("pg_ctl", "-D", str(folder / "data"), "-w", "-l", str(folder / "log"), "-o", options, "start")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        done = subprocess.run(
            command, check=False, user=self.user, group=self.user, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{program}: {done.stderr}{done.stdout}"

    def new_schema(self, name: str) -> str:
        """The address of an empty schema: much quicker to make than a database, and as good to be alone in."""
        import psycopg

        address = f"postgresql://goodheart@/postgres?host={self.folder}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f'CREATE SCHEMA "{name}"')
        return f"{address}&options=-csearch_path%3D{name}"

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")


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
    programs = _programs()
    if programs is None:
        message = "PostgreSQL is not installed (apt-get install postgresql); the store is tested on SQLite only"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = quick_folder()
    try:
        server = Server(programs, folder)
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
