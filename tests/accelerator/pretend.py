"""The device "pretend" (`pretend.cpp`), and who would have to wait for it if it were a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import traceback
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SOURCE = Path(__file__).with_name("pretend.cpp")
_TORCH = Path(torch.__file__).parent


def build(folder: Path) -> Path:
    """The library, compiled into `folder` unless it is there; half a minute."""
    name = hashlib.sha256(_SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = folder / f"pretend-{name}.so"
    if not library.exists():
        include = _TORCH / "include"
        folders = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
        flags = ["-shared", "-fPIC", "-std=c++20", "-O0", "-w", f"-Wl,-rpath,{_TORCH / 'lib'}"]
        libraries = [f"-L{_TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        partial = library.with_suffix(".partial")
        subprocess.run(["g++", *flags, *folders, str(_SOURCE), "-o", str(partial), *libraries], check=True)
        partial.rename(library)
    return library


def begin(library: Path) -> None:
    """The device is there in this process, for good."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("pretend")
    torch._register_device_module("pretend", _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    ctypes.CDLL(str(library)).pretend_begin()


class Waits(TorchDispatchMode):
    """Counts where the program would wait for a GPU: numbers and tensors fetched, and shapes that depend on values.

    places: how often, by "file function" of goodheart, the innermost first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode operations come before they are taken apart
            parts = func.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        if _waits(str(func.overloadpacket), args, kwargs or {}):
            frames = [f for f in traceback.extract_stack() if f"{os.sep}goodheart{os.sep}" in f.filename]
            called = [f"{f.filename.rsplit(f'{os.sep}goodheart{os.sep}')[-1]} {f.name}" for f in reversed(frames[-3:])]
            self.places[" < ".join(called)] += 1
        return func(*args, **(kwargs or {}))


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    devices = [a.device.type for a in args if isinstance(a, torch.Tensor)]
    if "pretend" not in devices:
        return False
    if name == "aten._to_copy":
        return str(kwargs.get("device")) == "cpu" and not kwargs.get("non_blocking")
    if name == "aten.copy_":
        return devices[0] == "cpu"
    if name in {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}:
        places = [t for t in args[1] if t is not None]
        return any(t.dtype in (torch.bool, torch.uint8) or t.device.type == "cpu" for t in places)
    return name in _WAITING


# The sizes of what they give depend on values, or they give a number.
_WAITING = {
    f"aten.{name}"
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim")
} | {"aten.unique_consecutive", "aten.repeat_interleave"}


def _module() -> ModuleType:
    """What torch asks of `torch.pretend`."""
    module = ModuleType("torch.pretend")
    for name, answer in (
        ("is_available", True),
        ("is_initialized", True),
        ("_is_in_bad_fork", False),
        ("device_count", 1),
        ("current_device", 0),
        ("manual_seed_all", None),
        ("get_amp_supported_dtype", [torch.bfloat16, torch.float16]),
    ):
        setattr(module, name, lambda *_, answer=answer: answer)
    return module
