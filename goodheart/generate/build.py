"""The C code of this folder, compiled where that is possible."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from pathlib import Path

from goodheart.models import build

_ASKED = (c_void_p, c_int64, c_int64)
CODE = build.Code(
    Path(__file__).with_name("c"),
    "generate",
    {"goodheart_read": _ASKED, "goodheart_draw": _ASKED},
    "generating in PyTorch, which is slower than in C",
)


def load() -> ctypes.CDLL | None:
    """See `models/build.py`."""
    return build.load(CODE)
