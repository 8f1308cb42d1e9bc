"""One writer per run folder."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from goodheart.errors import RunError


class FolderLock:
    """Holds a folder for this process; the system lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None

    def take(self) -> None:
        """Creates the folder where needed and takes it.

        Raises:
            RunError: the folder cannot be made, or another process holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be used as a run folder: {error.strerror}; choose another --out"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise RunError(
                f"{self.folder} is in use by {holder or 'another process'}; "
                "wait for it, stop it, or choose another --out"
            ) from error
        except OSError as error:
            os.close(handle)
            raise RunError(f"{self.folder}: its file system cannot lock files; choose another --out") from error
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Lets go; safe to call twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
