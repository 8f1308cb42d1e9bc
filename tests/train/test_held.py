"""Memory that is kept for the next step, or is not."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from goodheart.stages.sft import SFTConfig
from goodheart.stages.sft import train as sft
from goodheart.train import held

# What the C library itself says, as not every kernel counts page faults: bytes mapped for single tensors while they are
# held, and bytes that it keeps for later once they are freed. Fields of struct mallinfo2, or of mallinfo before 2.33.
KEPT = """
import ctypes
import torch
from goodheart.train.held import keep_freed, map_large

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


def bytes_of(first: str) -> list[int]:
    """Bytes mapped while tensors are held, and kept by the C library afterwards, with this statement before."""
    # Somebody's own settings of the library, or another allocator, would answer instead.
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN", "LD_PRELOAD"))
    }
    code = [sys.executable, "-c", KEPT.format(first=first)]
    return [int(count) for count in subprocess.run(code, check=True, capture_output=True, env=env).stdout.split()]


HELD = 8 * 6_000_000 * 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_there_for_the_next_step() -> None:
    mapped, kept = bytes_of("")
    assert mapped >= HELD > kept  # each tensor is given back to the system as soon as it is freed
    mapped, kept = bytes_of("keep_freed()")
    assert mapped == 0
    assert kept >= HELD


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_goes_back_at_once_where_layers_are_recomputed() -> None:
    before = "torch.ones(6_000_000)"  # once it has seen so much freed, the library maps only what is larger
    assert bytes_of(before)[0] < HELD
    mapped, kept = bytes_of(f"keep_freed(); map_large(); {before}")
    assert mapped >= HELD > kept


@pytest.mark.parametrize("recomputed", [True, False])
def test_whose_layers_are_recomputed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recomputed: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(held, "map_large", lambda: asked.append(True))
    rows = [json.dumps({"prompt": f"a{n}", "completion": " b"}) + "\n" for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    settings = {"model": str(tiny_model), "data": str(tmp_path / "rows.jsonl"), "out": tmp_path / "run", "quiet": True}
    sft(SFTConfig(**settings, device="cpu", max_steps=1, activation_checkpointing=recomputed))
    assert bool(asked) is recomputed
