"""What the C code reads: its structures, field by field as in `c/`, and keys and values as it lays them out.

Structures hold addresses only: whoever makes one keeps the tensors alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from goodheart.models.architecture import TransformerConfig

PANEL = 16  # positions of keys that lie side by side, as in c/panels.h


class CLinear(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class CLayer(Structure):
    _fields_ = (
        *((name, CLinear) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp")),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "turns", "keys", "values")),
        ("window", c_int64),
    )


class CModel(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "length")),
        ("gelu", c_int64),
        *((name, c_float) for name in ("eps", "embedding_scale", "attention_scale", "softcap")),
        *((name, c_void_p) for name in ("embedding", "final_norm")),
        ("layer", POINTER(CLayer)),
    )


class CHead(Structure):
    _fields_ = (
        ("layer", CLinear),
        *((name, c_int64) for name in ("vocabulary", "width")),
        *((name, c_float) for name in ("scale", "softcap", "temperature")),
    )


class CPrompts(Structure):
    _fields_ = (
        ("model", POINTER(CModel)),
        *((name, c_void_p) for name in ("tokens", "starts", "slots", "bases", "hidden")),
        *((name, c_int64) for name in ("rows", "chunk")),
        ("stored", c_void_p),
    )


class CDraws(Structure):
    _fields_ = (
        ("model", POINTER(CModel)),
        ("head", POINTER(CHead)),
        *((name, c_void_p) for name in ("hidden", "tokens", "slots", "positions", "limits", "uniforms", "at", "ends")),
        *((name, c_int64) for name in ("end_count", "rows", "steps")),
        *((name, c_void_p) for name in ("drawn", "made", "logps")),
        ("chunk", c_int64),
        ("taken", c_void_p),
    )


class CompiledCache:
    """Keys and values in the order in which C reads them (`Layer` in c/model.h). Rows may lie in any slot, so none is
    ever moved."""

    def __init__(self, c: TransformerConfig, dtype: torch.dtype, slots: int, length: int) -> None:
        self.kind = (c.layers, c.kv_heads, c.head_dim, dtype)
        self.slots, self.length = slots, -(-length // PANEL) * PANEL
        rows, blocks = (c.layers, slots, c.kv_heads), self.length // PANEL
        self.keys = torch.zeros((*rows, blocks, c.head_dim, PANEL), dtype=dtype, device="cpu")
        self.values = torch.zeros((*rows, blocks, PANEL, c.head_dim), dtype=dtype, device="cpu")

    def fits(self, c: TransformerConfig, dtype: torch.dtype, slots: int, length: int) -> bool:
        """Whether this cache can serve a call with these needs."""
        kind = (c.layers, c.kv_heads, c.head_dim, dtype)
        return self.kind == kind and self.slots >= slots and self.length >= length

    def copy(self, new: Sequence[int], old: Sequence[int], length: int) -> None:
        """Fill slots `new` with the first `length` tokens of slots `old`."""
        blocks = -(-length // PANEL)
        for kept in (self.keys, self.values):
            kept[:, list(new), :, :blocks] = kept[:, list(old), :, :blocks]


def address(tensor: Tensor | None) -> int | None:
    """Of the first number; None for none."""
    assert tensor is None or tensor.is_contiguous()  # the C code knows no strides
    return None if tensor is None else tensor.data_ptr()


def places(numbers: Sequence[int]) -> Tensor:
    """As C reads them, whatever torch's default dtype and device are."""
    return torch.tensor(list(numbers), dtype=torch.long, device="cpu")


def check(failed: int) -> None:
    """Raises MemoryError where a call says that it failed."""
    if failed:
        raise MemoryError("no memory for a step of generation: use fewer slots")
