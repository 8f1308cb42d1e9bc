"""The folder for what may be thrown away at any time: making it again costs time and nothing else.

It is GOODHEART_CACHE, or `goodheart` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache). Others must not be
able to write into it, because what lies there is taken for our own.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*below: str) -> Path:
    """The folder, or one below it; made where it is not there.

    Raises:
        OSError: it cannot be made, or others than this user may write into it.
    """
    folder = _root()
    for name in ("", *below):
        folder = folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise OSError(f"{folder} may be written to by others")
    return folder


def _root() -> Path:
    named = os.environ.get("GOODHEART_CACHE")
    if named:
        return Path(named).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goodheart"
    except RuntimeError as error:
        raise OSError(str(error)) from error
