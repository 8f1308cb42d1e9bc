"""What the numbers were measured on, and how busy it was: they mean nothing without."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bench.roofline import Peaks


def load() -> float:
    """Processes that wanted a core, averaged over the last minute."""
    return os.getloadavg()[0]


def describe(threads: int) -> str:
    """One line: processor, cores, memory, threads used, versions."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {threads} threads used; "
        f"Python {platform.python_version()}, torch {torch.__version__}; "
        f"bfloat16 matmuls {'in hardware' if multiplies_bfloat16() else 'emulated (this processor has none)'}"
    )


def peaks(threads: int, dtypes: Iterable[torch.dtype]) -> Peaks:
    """The best this machine does with one thread and with so many, printed; the latter is returned."""
    from bench import roofline

    found = {count: roofline.measure(count, dtypes) for count in sorted({1, threads})}
    print("\n".join([f"at its best now (load {load():.1f}):", *(f"- {each}" for each in found.values())]), flush=True)
    return found[threads]


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it (AVX512-BF16 or AMX); without them it is slower than float32."""
    flags = _cpuinfo("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return ""
    lines = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == field), "")
