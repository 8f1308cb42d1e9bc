"""Memory that is kept for the next step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# What the C library itself says, as not every kernel counts page faults: bytes mapped for single tensors while they are
# held, and bytes that it keeps for later once they are freed. Fields of struct mallinfo2, or of mallinfo before 2.33.
KEPT = """
import ctypes
import torch
from goodheart.train.held import keep_freed

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
libc = ctypes.CDLL(None)
modern = hasattr(libc, "mallinfo2")

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t if modern else ctypes.c_int) for name in NAMES]

info = libc.mallinfo2 if modern else libc.mallinfo
info.restype = Info
torch.set_num_threads(1)
{first}
mapped = info().hblkhd
tensors = [torch.ones(6_000_000) for _ in range(8)]
mapped = info().hblkhd - mapped
del tensors
print(mapped, info().fordblks)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_there_for_the_next_step() -> None:
    # Somebody's own settings of the library, or another allocator, would answer instead.
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN", "LD_PRELOAD"))
    }

    def bytes_of(first: str) -> list[int]:
        code = [sys.executable, "-c", KEPT.format(first=first)]
        return [int(count) for count in subprocess.run(code, check=True, capture_output=True, env=env).stdout.split()]

    held = 8 * 6_000_000 * 4
    mapped, kept = bytes_of("")
    assert mapped >= held > kept  # each tensor is given back to the system as soon as it is freed
    mapped, kept = bytes_of("keep_freed()")
    assert mapped == 0
    assert kept >= held
