"""What a GPU would have to be waited for, counted on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# A number is read; places are looked for, of which nobody knows how many there are.
_WAITS = (_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.masked_scatter_backward, _aten.equal)
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_)


class Waits(TorchDispatchMode):
    """Counts them; what is indexed by a mask is looked for too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket
        masked = name in _INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
        self.count += masked or name in _WAITS
        return func(*args, **(kwargs or {}))
