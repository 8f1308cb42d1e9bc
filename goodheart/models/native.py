"""What a training step does besides matmuls, in C (`c/`): attention without padding, norms, gates, softmax.

Only for float32 and bfloat16 on the CPU, and where `build.py` can compile it; `elementwise.py`, `transformer.py` and
`losses/logprobs.py` do the same in PyTorch. Of bfloat16 every number is read once, computed with in float32, and
rounded once, when it is stored. The work is shared by the threads that PyTorch already has, in pieces that
do not depend on how many there are, so neither do the results. Letters: N tokens, D width, F MLP width, V vocabulary,
H query heads, G key/value heads, d head size, P positions.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodheart.models import build

_ROWS = 64  # that are a piece of work in c/rows.c
_GRAIN = 2**15  # numbers that a thread should have to work on; PyTorch's own
_FUNCTIONS = ("attend", "attend_backward", "norm", "norm_backward", "gate", "gate_backward")


def _code(name: str, *flags: str) -> build.Code:
    return build.Code(
        Path(__file__).with_name("c"),
        name,
        {f"goodheart_{each}": (c_void_p, c_void_p) for each in (*_FUNCTIONS, "softmax", "softmax_backward")},
        "training in PyTorch alone, which is slower than with parts in C",
        (f"-DCHUNK={_ROWS}", *flags),
    )


CODES = {torch.float32: _code("train"), torch.bfloat16: _code("train-bfloat16", "-DBFLOAT16")}


def takes(first: Tensor, *others: Tensor) -> bool:
    """Whether the functions here take these: plain tensors of one dtype on the CPU, and code for it is there."""
    plain = (torch.Tensor, torch.nn.Parameter)
    fits = all(x.device.type == "cpu" and x.dtype == first.dtype and type(x) in plain for x in (first, *others))
    if first.dtype not in CODES or not fits or torch.is_autocast_enabled("cpu"):
        return False
    # The softmax is of float32 whatever the rest is.
    return all(build.load(CODES[dtype]) is not None for dtype in {first.dtype, torch.float32})


def way() -> str:
    """What computes a training step on the CPU, for a run's records: results of the two differ by rounding."""
    return "PyTorch" if build.load(CODES[torch.float32]) is None else "PyTorch, parts in C"


_WHOLE = ("targets", "rows", "families")  # tensors of whole numbers
_FLOATS = ("inverse", "grad_weight", "log_sum", "cos", "sin")  # float32 also where the other tensors are bfloat16


class _Struct(ctypes.Structure):
    """Arguments as the C code for `dtype` reads them; a tensor is its address, None is NULL."""

    def __init__(self, dtype: torch.dtype = torch.float32, /, **values: Any) -> None:
        self.alive, self.dtype = values, dtype
        for name, value in values.items():
            kind = torch.int64 if name in _WHOLE else torch.float32 if name in _FLOATS else dtype
            if isinstance(value, Tensor) and (value.dtype != kind or not value.is_contiguous()):
                told = f"{value.dtype} with strides {value.stride()}"
                raise TypeError(f"{name}: the C code reads contiguous {kind}, got {told}")
        super().__init__(**{k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in values.items()})


def _struct(name: str, numbers: str, tensors: str, fraction: str = "") -> type[_Struct]:
    kinds = [(numbers, c_int64), (fraction, c_float), (tensors, c_void_p)]
    return type(name, (_Struct,), {"_fields_": [(each, kind) for names, kind in kinds for each in names.split()]})


_Norm = _struct("_Norm", "rows width", "x more weight sum out inverse grad_out grad_sum grad_x grad_weight", "eps")
_Gate = _struct("_Gate", "rows width", "gate_up out grad_out grad_gate_up")
_Softmax = _struct("_Softmax", "rows columns", "logits targets logps log_sum entropy grad_logps grad_entropy grad")


class _Attention(_Struct):
    _fields_ = (
        *((name, c_void_p) for name in ("rows", "families")),
        *((name, c_int64) for name in ("number", "longest", "heads", "kv_heads", "size", "window")),
        ("scale", c_float),
        *((name, c_void_p) for name in ("cos", "sin", "qkv", "out", "log_sum", "grad_out", "grad_qkv")),
    )


class _Crew(ctypes.Structure):
    _fields_ = (("run", c_void_p), ("threads", c_int64))


@cache
def _threads() -> int | None:
    """Where the function lies by which compiled code runs in the threads of PyTorch (OpenMP); None: it is not there."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError, TypeError):
        return None


def _call(name: str, arguments: _Struct, numbers: int) -> None:
    """numbers: that the work is done on, which tells how many threads it is worth waking."""
    library = build.load(CODES[arguments.dtype])
    assert library is not None  # the caller asked `takes`
    crew = _Crew(_threads(), min(torch.get_num_threads(), 1 + numbers // _GRAIN))
    if getattr(library, f"goodheart_{name}")(ctypes.byref(arguments), ctypes.byref(crew)):
        raise MemoryError("no memory for a training step: use smaller micro-batches (max_tokens)")


def norm(x_ND: Tensor, more_ND: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """-> s = x + more (x where there is none), s / rms(s) * weight, and 1 / rms(s) of each token."""
    width = x_ND.shape[-1]
    rows = x_ND.numel() // width
    sum_ND = x_ND if more_ND is None else torch.empty_like(x_ND)
    out_ND, inverse_N = torch.empty_like(x_ND), x_ND.new_empty(rows, dtype=torch.float32)
    told = {"more": more_ND, "sum": None if more_ND is None else sum_ND}
    given = {"rows": rows, "width": width, "eps": eps, "x": x_ND, "weight": weight_D}
    _call("norm", _Norm(x_ND.dtype, out=out_ND, inverse=inverse_N, **given, **told), x_ND.numel())
    return sum_ND, out_ND, inverse_N


def norm_backward(
    x_ND: Tensor, weight_D: Tensor, inverse_N: Tensor, grad_ND: Tensor, grad_sum_ND: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x_ND: the sum. grad_ND: of it normed. grad_sum_ND: of itself. -> gradients of the sum and of the weight."""
    width, rows = len(weight_D), len(inverse_N)
    grad_x_ND = torch.empty_like(x_ND)
    parts = x_ND.new_empty(-(-rows // _ROWS), width, dtype=torch.float32)
    given = {"grad_out": grad_ND, "grad_sum": grad_sum_ND, "grad_x": grad_x_ND, "grad_weight": parts}
    _call(
        "norm_backward",
        _Norm(x_ND.dtype, rows=rows, width=width, x=x_ND, weight=weight_D, inverse=inverse_N, **given),
        x_ND.numel(),
    )
    return grad_x_ND, parts.sum(0).to(weight_D.dtype)


def gate(gate_up_N2F: Tensor) -> Tensor:
    """silu of the first half, times the second. -> (..., F)"""
    width = gate_up_N2F.shape[-1] // 2
    out_NF = gate_up_N2F.new_empty(*gate_up_N2F.shape[:-1], width)
    given = {"rows": out_NF.numel() // width, "width": width, "gate_up": gate_up_N2F}
    _call("gate", _Gate(out_NF.dtype, out=out_NF, **given), out_NF.numel())
    return out_NF


def gate_backward(gate_up_N2F: Tensor, grad_NF: Tensor) -> Tensor:
    """-> the gradient of gate_up."""
    width, grad_N2F = grad_NF.shape[-1], torch.empty_like(gate_up_N2F)
    given = {"rows": grad_NF.numel() // width, "width": width, "gate_up": gate_up_N2F, "grad_out": grad_NF}
    _call("gate_backward", _Gate(grad_NF.dtype, grad_gate_up=grad_N2F, **given), grad_NF.numel())
    return grad_N2F


def softmax(logits_NV: Tensor, targets_N: Tensor, *, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> log-probability of each target, logarithm of the sum of exponentials, entropy."""
    rows, columns = logits_NV.shape
    logps_N, log_sum_N = logits_NV.new_empty(2, rows).unbind(0)
    entropy_N = logits_NV.new_empty(rows) if with_entropy else None
    made = {"logps": logps_N, "log_sum": log_sum_N, "entropy": entropy_N}
    given = {"rows": rows, "columns": columns, "logits": logits_NV, "targets": targets_N.contiguous()}
    _call("softmax", _Softmax(**given, **made), logits_NV.numel())
    return logps_N, log_sum_N, entropy_N


def softmax_backward(
    logits_NV: Tensor,
    targets_N: Tensor,
    log_sum_N: Tensor,
    entropy_N: Tensor | None,
    grad_logps_N: Tensor | None,
    grad_entropy_N: Tensor | None,
) -> Tensor:
    """-> the gradient of the logits."""
    rows, columns = logits_NV.shape
    grad_NV = torch.empty_like(logits_NV)
    given = {"logits": logits_NV, "targets": targets_N.contiguous(), "log_sum": log_sum_N, "entropy": entropy_N}
    # The gradient of a sum is one number expanded.
    slopes = [None if grad is None else grad.contiguous() for grad in (grad_logps_N, grad_entropy_N)]
    grads = {"grad_logps": slopes[0], "grad_entropy": slopes[1], "grad": grad_NV}
    _call("softmax_backward", _Softmax(rows=rows, columns=columns, **given, **grads), logits_NV.numel())
    return grad_NV


@dataclass(frozen=True)
class Attending:
    """How heads attend: see `Attention` in c/attention.c. rows_R3, families: of `packed.Packed`."""

    rows_R3: Tensor
    families: Tensor
    longest: int
    heads: int
    kv_heads: int
    window: int | None
    scale: float
    turns: Tensor | None  # (2, P, d/2): cosines and sines of positions; None = heads are not turned

    def _arguments(self, qkv_NE: Tensor, **tensors: Tensor | None) -> _Attention:
        cos, sin = (None, None) if self.turns is None else self.turns
        return _Attention(
            qkv_NE.dtype,
            rows=self.rows_R3,
            families=self.families,
            number=len(self.families) - 1,
            longest=self.longest,
            heads=self.heads,
            kv_heads=self.kv_heads,
            size=qkv_NE.shape[-1] // (self.heads + 2 * self.kv_heads),
            window=self.window or 0,
            scale=self.scale,
            cos=cos,
            sin=sin,
            qkv=qkv_NE,
            **tensors,
        )

    def forward(self, qkv_NE: Tensor) -> tuple[Tensor, Tensor]:
        """qkv_NE: query, key and value heads side by side, not turned yet. -> out (N, H d), log-sums (N, H)"""
        width = qkv_NE.shape[-1] // (self.heads + 2 * self.kv_heads) * self.heads
        out = qkv_NE.new_empty(len(qkv_NE), width)
        log_sum = qkv_NE.new_empty(len(qkv_NE), self.heads, dtype=torch.float32)
        _call("attend", self._arguments(qkv_NE, out=out, log_sum=log_sum), qkv_NE.numel())
        return out, log_sum

    def backward(self, qkv_NE: Tensor, out: Tensor, log_sum: Tensor, grad: Tensor) -> Tensor:
        """-> the gradient of qkv."""
        grad_NE = torch.empty_like(qkv_NE)
        given = self._arguments(qkv_NE, out=out, log_sum=log_sum, grad_out=grad, grad_qkv=grad_NE)
        _call("attend_backward", given, qkv_NE.numel())
        return grad_NE
