"""A PostgreSQL server of one's own, for tests and benchmarks: its own folder, a socket in it, no port.

It ends with the process that started it, however that ends: a shell waits at the end of a pipe that only that process
holds, and when the pipe closes unsaid stops the server and clears its folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

_WATCH = 'read ended || { "$1/pg_ctl" -D "$2/data" -m immediate stop; rm -rf "$2"/*; }'  # $1 programs, $2 folder


def programs() -> Path | None:
    """The folder with initdb: on the path, or where Debian puts it; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


class Server:
    """PostgreSQL in a given folder, with fsync on. It refuses to run as root: then it runs as the user `postgres`."""

    def __init__(self, folder: Path) -> None:
        place = programs()
        if place is None:
            raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
        self.programs, self.folder = place, folder
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-U", "goodheart", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c max_connections=200"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )
        self._watch = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self.programs), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self.user,
            group=self.user,
            cwd=self.folder,
            start_new_session=True,  # or Ctrl-C would end it before it could do its work
        )

    def stop(self) -> None:
        """At once, as if the power failed: what was committed is found in the log at the next start."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        self._watch.communicate(b"ended\n")

    def new_schema(self, name: str) -> str:
        """The address of an empty schema: much quicker to make than a database, and as good to be alone in."""
        import psycopg

        address = f"postgresql://goodheart@/postgres?host={self.folder}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f'CREATE SCHEMA "{name}"')
        return f"{address}&options=-csearch_path%3D{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        log = self.folder / f"{program}.log"  # to a file: the server would hold a pipe open for ever
        with log.open("w") as output:
            done = subprocess.run(
                command, check=False, user=self.user, group=self.user, cwd=self.folder, stdout=output, stderr=output
            )
        if done.returncode:
            raise RuntimeError(f"{program}: {log.read_text()}")
