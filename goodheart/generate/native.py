"""Prompts, decoding steps and the drawing of tokens in C, for float32 models on CPU: several times faster than PyTorch.

A small model's step in PyTorch is hundreds of operations of a few microseconds each, and its threads wait for each
other at every one. In C (`c/decode.c`, `c/draw.c`) a thread takes some rows through all layers alone. The source is
compiled once per machine with the C compiler found there and kept in the user's cache folder; without a compiler,
`decode.py` and `sampling.py` do the same in PyTorch. GOODHEART_NATIVE=0 in the environment turns it off.

Shapes: N running rows, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from goodheart.generate.cache import KVCache
from goodheart.generate.layers import Linear, PlainLayer, PlainModel
from goodheart.generate.sampling import SamplingParams
from goodheart.models.cache import cache_folder
from goodheart.models.causal import Unembedding

_SOURCES = Path(__file__).with_name("c")
# Contraction into fused multiply-adds is wanted; reordering of sums is not, so that rows do not depend on each other.
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")


class _Linear(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Layer(Structure):
    _fields_ = (
        *((name, _Linear) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp")),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "turns", "keys", "values")),
        ("window", c_int64),
    )


class _Model(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "length")),
        ("gelu", c_int64),
        *((name, c_float) for name in ("eps", "embedding_scale", "attention_scale", "softcap")),
        *((name, c_void_p) for name in ("embedding", "final_norm")),
        ("layer", POINTER(_Layer)),
    )


class _Head(Structure):
    _fields_ = (
        ("layer", _Linear),
        *((name, c_int64) for name in ("vocabulary", "width")),
        *((name, c_float) for name in ("scale", "softcap", "temperature")),
    )


class NativeDecoder:
    """`decode.Decoder` in C. Build with `NativeDecoder.of`."""

    def __init__(self, model: PlainModel, cache: KVCache, library: ctypes.CDLL) -> None:
        c = model.config
        self.cache, self.width, self.library = cache, c.width, library
        self.tensors = model  # C holds addresses only
        self.counting = _places(range(cache.slots + 1))
        self.turns = {rope: table.contiguous() for rope, table in model.turns.items()}
        self.layers = (_Layer * c.layers)(*(self._layer(i, layer) for i, layer in enumerate(model.layers)))
        self.model = _Model(
            c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width, cache.max_length, c.activation != "silu",
            c.norm_eps, model.embedding_scale or 1.0, c.attention_scale, c.attention_softcap or 0.0,
            _address(model.embedding_VD), _address(model.final_norm), self.layers,
        )  # fmt: skip

    @classmethod
    def of(cls, model: PlainModel, cache: KVCache) -> NativeDecoder | None:
        """-> None unless everything is float32 on the CPU and the C code could be compiled."""
        if cache.dtype != torch.float32 or cache.device.type != "cpu":
            return None
        library = load()
        return None if library is None else cls(model, cache, library)

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Compute whole prompts into the slots of the cache. -> hidden_PD of their last tokens. Raises MemoryError."""
        starts = [0, *accumulate(len(prompt) for prompt in prompts)]
        tokens = [token for prompt in prompts for token in prompt]
        return self._forward(_places(tokens), _places(starts), _places(slots), _places([0] * len(slots)))

    def step(self, tokens_N: Tensor) -> Tensor:
        """See `Decoder.step`. Raises MemoryError."""
        return self._forward(tokens_N, self.counting, self.counting, self.cache.positions_N)

    def _forward(self, tokens: Tensor, starts: Tensor, slots: Tensor, bases: Tensor) -> Tensor:
        rows = len(bases)
        hidden_ND = torch.empty(rows, self.width, dtype=torch.float32, device="cpu")
        places = (tokens.data_ptr(), starts.data_ptr(), slots.data_ptr(), bases.data_ptr(), hidden_ND.data_ptr())
        if self.library.goodheart_forward(ctypes.byref(self.model), *places, rows, torch.get_num_threads()):
            raise MemoryError("no memory for a decoding step: use fewer slots")
        return hidden_ND

    def _layer(self, index: int, layer: PlainLayer) -> _Layer:
        keys, values = self.cache.blocks(index)
        return _Layer(
            *(_linear(linear) for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)),
            *(_address(t) for t in (layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp)),
            *(_address(t) for t in (layer.q_norm, layer.k_norm)),
            None if layer.rope is None else _address(self.turns[layer.rope]),
            _address(keys),
            _address(values),
            layer.window or 0,
        )


class NativeSampler:
    """Hidden states to tokens in C, as `sampling.Sampler`. Build with `NativeSampler.of`."""

    def __init__(self, head: Unembedding, params: SamplingParams, library: ctypes.CDLL) -> None:
        self.library, self.greedy = library, params.is_greedy
        self.weight_VD, self.bias_V = head.weight_VD.detach(), None if head.bias_V is None else head.bias_V.detach()
        layer = _Linear(_address(self.weight_VD), _address(self.bias_V))
        self.head = _Head(layer, *self.weight_VD.shape, head.scale, head.softcap or 0.0, params.divisor)

    @classmethod
    def of(cls, head: Unembedding, params: SamplingParams) -> NativeSampler | None:
        """-> None unless nothing is truncated, everything is float32 on the CPU, and the C code could be compiled."""
        tensors = [t for t in (head.weight_VD, head.bias_V) if t is not None]
        plain = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        library = load() if plain and not params.truncates and _whole(head.weight_VD) else None
        return None if library is None else cls(head, params, library)

    def __call__(self, hidden_ND: Tensor, u_N1: Tensor | None) -> Tensor:
        """See `sampling.Sampler`. Raises MemoryError."""
        hidden_ND = hidden_ND.to(torch.float32).contiguous()
        drawn_2N = torch.empty(2, len(hidden_ND), dtype=torch.float32, device="cpu")
        failed = self.library.goodheart_draw(
            ctypes.byref(self.head),
            hidden_ND.data_ptr(),
            None if self.greedy or u_N1 is None else u_N1.data_ptr(),
            drawn_2N.data_ptr(),
            len(hidden_ND),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for the logits of a step: use fewer slots")
        return drawn_2N


def _places(numbers: Sequence[int]) -> Tensor:
    """As C reads them, whatever torch's default dtype and device are."""
    return torch.tensor(list(numbers), dtype=torch.long, device="cpu")


def _whole(weight: Tensor) -> bool:
    """A plain tensor with memory of its own, not a sharded one."""
    return type(weight) in (Tensor, torch.nn.Parameter)


def _linear(linear: Linear) -> _Linear:
    return _Linear(_address(linear[0]), _address(linear[1]))


def _address(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()  # the C code knows no strides
    return None if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The compiled code, from the cache folder if it is there; None without a compiler or when it fails."""
    if os.environ.get("GOODHEART_NATIVE") == "0" or sys.platform == "win32":
        return None
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    try:
        source = b"".join(path.read_bytes() for path in sorted(_SOURCES.iterdir()))
        # Code for one kind of processor must not be loaded by another that shares the home folder.
        identity = source + f"{_FLAGS}{compiler}{platform.machine()}{_processor()}".encode()
        path = cache_folder() / f"decode-{hashlib.sha256(identity).hexdigest()[:16]}.so"
        if compiler is None:
            return None
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # not there yet, or damaged
            _compile(compiler, path)
            library = ctypes.CDLL(str(path))
        for function, arrays in ((library.goodheart_forward, 5), (library.goodheart_draw, 3)):
            function.argtypes = (c_void_p, *[c_void_p] * arrays, c_int64, c_int64)
            function.restype = c_int
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return library


def _compile(compiler: str, path: Path) -> None:
    """Written under another name and moved, so that processes that start together do not read half of it."""
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        sources = [str(source) for source in sorted(_SOURCES.glob("*.c"))]
        command = [*compiler.split(), *_FLAGS, "-o", temporary, *sources, "-lm", "-lpthread"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _processor() -> str:
    """The instruction sets of this machine, as the system names them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
