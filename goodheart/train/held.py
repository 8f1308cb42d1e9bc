"""What this process holds of a device's memory, has held at most, and may hold, in bytes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch

# glibc's names for mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**20  # bytes; fixed, while glibc by itself raises its threshold with what it sees freed


def present(device: torch.device) -> float:
    """Bytes in use now."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    _give_back()
    return _of_process("VmRSS")


def peak(device: torch.device) -> float:
    """Most bytes held since `begin_peak`."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _of_process("VmHWM")


def begin_peak(device: torch.device) -> None:
    """Forgets the peak of what ran before in this process, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def available(device: torch.device) -> float:
    """Bytes that this process may hold in all; processes on one machine share what is free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    held = _of_process("VmRSS")
    return held + max(0.0, _free(held)) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def keep_freed() -> None:
    """Lets glibc keep what a step frees for the next one.

    By default every large tensor is mapped anew and given back at once, which costs tens of thousands of page faults a
    step. Other C libraries have no such switch and are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # glibc before 2.35 takes no more than 32 MiB; with the second alone everything large would be mapped for ever.
    if mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def map_large() -> None:
    """Lets glibc map every large tensor by itself and give it back once it is freed: the other way than `keep_freed`.

    What layers that are computed again take and free comes in another order each time, and glibc finds no place for an
    aligned block in a hole of just its size. The heap then grows to three times what is in use at once.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE)


def _give_back() -> None:
    """What glibc keeps of freed memory (`keep_freed`) goes back to the system."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _free(held: float) -> float:
    """Bytes that the machine, and the control groups this process lives in, can still give."""
    free = float("inf")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            free = float(line.split()[1]) * 1024
    for group in _control_groups():
        limit, used = _lines(f"{group}/memory.max"), _lines(f"{group}/memory.current")
        if limit and used and limit[0] != "max":
            # What was read from files counts as used until somebody needs the room.
            files = [line.split()[1] for line in _lines(f"{group}/memory.stat") if line.startswith("inactive_file ")]
            free = min(free, float(limit[0]) - float(used[0]) + sum(map(float, files)))
    return free if free != float("inf") else float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) - held


def _control_groups() -> list[str]:
    """Folders of this process's control group (version 2) and those around it."""
    own = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), "/")
    path = Path("/sys/fs/cgroup") / own.strip("/")
    return [str(folder) for folder in (path, *path.parents) if folder.is_relative_to("/sys/fs/cgroup")]


def _of_process(what: str) -> float:
    for line in _lines("/proc/self/status"):
        if line.startswith(what):
            return float(line.split()[1]) * 1024
    import resource  # no /proc: the peak stands for both

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
