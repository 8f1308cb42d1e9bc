"""Compiles C code once per machine, and keeps it where only this user can put something."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from ctypes import c_int
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from goodheart.models.cache import cache_folder

# Contraction into fused multiply-adds is wanted; reordering of sums is not, so that rows do not depend on each other.
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")
_KEPT_DAYS = 30  # without use
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Code:
    """The C code of one folder.

    name: what its compiled form is called in the cache folder. functions: of each its name and the types of its
    arguments; all return an int. without: what is done where it cannot be compiled, for the log. flags: more of them
    for the compiler. headers: in other folders, that it includes by their names.
    """

    folder: Path
    name: str
    functions: Mapping[str, tuple[Any, ...]]
    without: str
    flags: tuple[str, ...] = ()
    headers: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Everything that is compiled."""
        return [*sorted(self.folder.iterdir()), *self.headers]


@cache
def load(code: Code) -> ctypes.CDLL | None:
    """The compiled code, from the cache folder if it is there.

    -> None when it is switched off (GOODHEART_NATIVE=0), and, with one note in the log, when there is no compiler, it
    fails, or there is no safe place to keep the result.
    """
    if os.environ.get("GOODHEART_NATIVE") == "0":
        return None
    try:
        return _library(code, _compiler())
    except (OSError, AttributeError) as error:
        reason = str(error)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [str(error)]
        reason = next((line for line in lines if "error" in line), lines[-1])
    except subprocess.TimeoutExpired:
        reason = "the compiler did not end"
    _log.warning("%s: %s (GOODHEART_NATIVE=0 silences this)", code.without, reason)
    return None


def _opened(code: Code, path: Path | str) -> ctypes.CDLL:
    """Raises OSError or AttributeError where this is not the compiled code, whole and for this machine."""
    library = ctypes.CDLL(str(path))
    for name, arguments in code.functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    return library


def _compiler() -> list[str]:
    """CC as a shell reads it, so a path with blanks may be quoted. Raises OSError where there is none."""
    named = os.environ.get("CC", "")
    try:
        found = shlex.split(named) or list(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))[:1]
    except ValueError as error:
        raise OSError(f"CC is {named!r}: {error}") from error
    if sys.platform == "win32" or not found:
        raise OSError("no C compiler was found")
    return found


def _library(code: Code, compiler: Sequence[str]) -> ctypes.CDLL:
    """Raises OSError, AttributeError, or an error of `subprocess` when it cannot be compiled or loaded."""
    sources = b"".join(path.name.encode() + path.read_bytes() for path in code.files)
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=20).stdout
    # Code for one kind of processor must not be loaded by another that shares the home folder.
    identity = b"\0".join(
        (sources, repr((_FLAGS, *code.flags, *compiler, platform.machine(), _processor())).encode(), version)
    )
    path = cache_folder() / f"{code.name}-{hashlib.sha256(identity).hexdigest()[:16]}.so"
    if path.exists() and _only_ours(path):
        with contextlib.suppress(OSError, AttributeError):  # damaged: it is made again
            library = _opened(code, path)
            with contextlib.suppress(OSError):
                os.utime(path)  # see `_remove_unused`
            return library
    library = _compile(code, compiler, path)
    _remove_unused(code, path)
    return library


def _compile(code: Code, compiler: Sequence[str], path: Path) -> ctypes.CDLL:
    """Written under another name and moved, so that processes that start together do not read half of it; loaded
    before that, so that what cannot be is not kept. That name begins as the others: what is left of a compiler
    that was killed goes with what was not used."""
    handle, temporary = tempfile.mkstemp(prefix=f"{code.name}-", suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        sources = [str(source) for source in sorted(code.folder.glob("*.c"))]
        folders = [f"-I{header.parent}" for header in code.headers]
        command = [*compiler, *_FLAGS, *code.flags, *folders, "-o", temporary, *sources, "-lm", "-lpthread"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        os.chmod(temporary, 0o700)
        library = _opened(code, temporary)
        os.replace(temporary, path)
        return library
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _remove_unused(code: Code, kept: Path) -> None:
    """Remove code of other sources, compilers and machines. A process that has it loaded goes on."""
    oldest = time.time() - _KEPT_DAYS * 86400
    for path in kept.parent.glob(f"{code.name}-*.so"):
        with contextlib.suppress(OSError):  # another process was faster
            if path != kept and path.stat().st_mtime < oldest:
                path.unlink()


def _only_ours(path: Path) -> bool:
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _processor() -> str:
    """The instruction sets of this machine, as the system names them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
