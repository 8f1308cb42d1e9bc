"""Memory that a step gives back is kept for the next one, instead of being asked of the system again."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MOST_IN_HEAP = 32 << 20  # bytes of a tensor; the C library takes no more
_KEPT = 1 << 30  # bytes free at the end of the heap


def keep_freed() -> bool:
    """Tensors up to 32 MiB come from a heap that keeps 1 GiB of what was freed.

    Otherwise every larger one is a mapping of its own, whose pages the system clears and the processor faults on one by
    one: of a step of a small model up to a tenth. -> whether it could be set; only glibc knows how.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _MOST_IN_HEAP) and mallopt(_TRIM_THRESHOLD, _KEPT))
