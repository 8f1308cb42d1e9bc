"""Records work on the CPU with the limits of a CUDA graph: what is played knows operations, places in memory and the
numbers of the time of recording, not the Python that chose them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They wait for the device, or copy from Python's memory: a GPU refuses them while it records.
_REFUSED = ("_local_scalar_dense", "item", "lift_fresh", "nonzero", "equal", "tolist", "is_nonzero", "masked_select")


class Tape:
    """See `graphs.Recorder`. ran, recorded: how often each was asked for."""

    def __init__(self) -> None:
        self.ran = self.recorded = 0

    def run(self, work: Callable[[], object]) -> None:
        self.ran += 1
        work()

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        """Raises RuntimeError for what a GPU could not record."""
        self.recorded += 1
        with _Operations() as found:
            work()
        found.forget()
        return found.play


class _Operations(TorchDispatchMode):
    """The operations that ran, with the tensors they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, op: Any, types: Any, given: tuple[Any, ...] = (), named: Any = None) -> Any:
        if op.__name__.split(".")[0] in _REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {op}")
        out = op(*given, **(named or {}))
        read = {t.untyped_storage().data_ptr() for t in tree_leaves((given, named)) if isinstance(t, Tensor)}
        new = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in read]
        self.done.append((op, given, named or {}, new))
        self.made += new
        return out

    @torch.inference_mode()
    def forget(self) -> None:
        """As if nothing had been computed while it was recorded."""
        for tensor in self.made:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)

    @torch.inference_mode()
    def play(self) -> None:
        """All of them once more, into the same memory."""
        for op, given, named, new in self.done:
            out = op(*given, **named)
            fresh = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            for place, tensor in zip(new, fresh[: len(new)], strict=True):
                place.copy_(tensor)
