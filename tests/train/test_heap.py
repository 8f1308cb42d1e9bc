"""The heap that keeps what a step gave back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from goodheart.train.heap import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        tensors = [torch.ones(6_000_000) for _ in range(8)]  # 192 MB in tensors of 24 MB
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
{first}
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_there_for_the_next_step() -> None:
    counts = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(first=first)], check=True, capture_output=True).stdout)
        for first in ("", "assert keep_freed()")
    ]
    assert counts[0] > 4 * 8 * 50  # of every tensor some pages each time, be they large ones
    assert counts[1] < 100


def test_elsewhere_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from goodheart.train import heap

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not heap.keep_freed()
