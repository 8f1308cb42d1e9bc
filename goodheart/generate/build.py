"""The C code of this folder, compiled where that is possible."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from dataclasses import replace
from pathlib import Path

import torch

from goodheart.models import build

_ASKED = (c_void_p, c_int64, c_int64)
CODE = build.Code(
    Path(__file__).with_name("c"),
    "generate",
    {"goodheart_read": _ASKED, "goodheart_draw": _ASKED, "goodheart_in_pairs": ()},
    "generating in PyTorch, which is slower than in C",
    headers=(Path(build.__file__).with_name("c") / "vectors.h",),
)
# By what weights, keys and values are stored in.
CODES = {torch.float32: CODE, torch.bfloat16: replace(CODE, flags=("-DBFLOAT16",))}


def load(dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """See `models/build.py`. dtype: one of CODES."""
    return build.load(CODES[dtype])
