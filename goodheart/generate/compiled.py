"""Prompts, decoding steps and the drawing of tokens in C, for float32 models on CPU: several times faster than PyTorch.

A small model's step in PyTorch is hundreds of operations of a few microseconds each, and its threads wait for each
other at every one. In C (`c/`) a thread takes some rows through all layers alone, and through several steps in one
call. `build.py` compiles it; without a compiler `decode.py` and `sampling.py` do the same in PyTorch.

Shapes: N running rows, P new rows, U distinct prompts, D width, V vocabulary, S steps, E ending tokens.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from goodheart.generate import build
from goodheart.generate.layers import Linear, PlainLayer, PlainModel, plain_model
from goodheart.generate.runners import share, shared_out
from goodheart.generate.sampling import SamplingParams
from goodheart.models.architecture import TransformerConfig
from goodheart.models.causal import CausalLM, Unembedding

_PANEL = 16  # positions of keys that lie side by side, as in c/vectors.h
# Multiply-adds of one call: some tens of milliseconds on a core, after which Python looks for signals. Prompts get
# more, and at least so many tokens per thread: with fewer, reading the weights costs as much as multiplying by them.
_CALL = 2**32
_PROMPT_CALL, _PROMPT_TOKENS = 2**35, 64
_ATTENTION = 16  # how much longer a multiply-add takes over a long row's keys and values, which come from memory
_PATIENCE = 16  # steps that a freed slot waits for its next row, at most


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


class _Prompts(Structure):
    _fields_ = (
        ("model", POINTER(_Model)),
        *((name, c_void_p) for name in ("tokens", "starts", "slots", "bases", "hidden")),
        *((name, c_int64) for name in ("rows", "chunk")),
        ("stored", c_void_p),
    )


class _Draws(Structure):
    _fields_ = (
        ("model", POINTER(_Model)),
        ("head", POINTER(_Head)),
        *((name, c_void_p) for name in ("hidden", "tokens", "slots", "positions", "limits", "uniforms", "at", "ends")),
        *((name, c_int64) for name in ("end_count", "rows", "steps")),
        *((name, c_void_p) for name in ("drawn", "made", "logps")),
        ("chunk", c_int64),
        ("taken", c_void_p),
    )


class CompiledCache:
    """Keys and values in the order in which C reads them. Rows may lie in any slot, so none is ever moved."""

    def __init__(self, c: TransformerConfig, slots: int, length: int) -> None:
        self.shape = (c.layers, c.kv_heads, c.head_dim)
        self.slots, self.length = slots, -(-length // _PANEL) * _PANEL
        rows, blocks = (c.layers, slots, c.kv_heads), self.length // _PANEL
        self.keys = torch.zeros((*rows, blocks, c.head_dim, _PANEL), dtype=torch.float32, device="cpu")
        self.values = torch.zeros((*rows, self.length, c.head_dim), dtype=torch.float32, device="cpu")

    def fits(self, c: TransformerConfig, slots: int, length: int) -> bool:
        """Whether this cache can serve a call with these needs."""
        return self.shape == (c.layers, c.kv_heads, c.head_dim) and self.slots >= slots and self.length >= length

    def copy(self, new: Sequence[int], old: Sequence[int], length: int) -> None:
        """Fill slots `new` with the first `length` tokens of slots `old`."""
        blocks = -(-length // _PANEL)
        self.keys[:, list(new), :, :blocks] = self.keys[:, list(old), :, :blocks]
        self.values[:, list(new), :, :length] = self.values[:, list(old), :, :length]


class CompiledRunner:
    """A `Runner` in C. Make it with `CompiledRunner.of`. The cache may come from an earlier call."""

    def __init__(self, model: PlainModel, cache: CompiledCache, library: ctypes.CDLL) -> None:
        self.cache, self.library = cache, library
        self.plain = model  # C holds addresses only
        self.turns = {rope: table.contiguous() for rope, table in model.turns.items()}
        self.weights = sum(w.numel() for layer in model.layers for w, _ in _matmuls(layer))
        self.layers = (_Layer * len(model.layers))(*(self._layer(i, layer) for i, layer in enumerate(model.layers)))
        c = model.config
        self.model = _Model(
            c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width, cache.length, c.activation != "silu",
            c.norm_eps, model.embedding_scale or 1.0, c.attention_scale, c.attention_softcap or 0.0,
            _address(model.embedding_VD), _address(model.final_norm), self.layers,
        )  # fmt: skip
        self.slots: list[int] = []  # of the running rows
        self.lengths: list[int] = []  # tokens of each that are in the cache
        self._free = list(range(cache.slots))[::-1]

    @classmethod
    def of(cls, model: CausalLM, slots: int, length: int, cache: CompiledCache | None) -> CompiledRunner | None:
        """-> None unless `serves`. cache: one to use again, which `fits`."""
        plain, library = _usable(model, -(-length // _PANEL) * _PANEL)
        if plain is None or library is None:
            return None
        if cache is None:
            with torch.inference_mode(False):
                cache = CompiledCache(plain.config, slots, length)
        return cls(plain, cache, library)

    @staticmethod
    def serves(model: CausalLM) -> bool:
        """Whether the model is plain (see `layers.py`), float32 and on the CPU, and the C code could be compiled."""
        return None not in _usable(model, 1)

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Runner.admit`. Raises MemoryError."""
        distinct, sources = share(prompts)
        slots = [self._free.pop() for _ in prompts]
        owners = [slots[sources.index(u)] for u in range(len(distinct))]
        hidden_UD = torch.empty(len(distinct), self.model.width, dtype=torch.float32, device="cpu")
        least = _PROMPT_TOKENS * torch.get_num_threads()
        for piece in _pieces([len(p) for p in distinct], least, _PROMPT_CALL, self._work):
            tokens = [distinct[u][begin:end] for u, begin, end in piece]
            which = [u for u, _, _ in piece]
            hidden_UD[which] = self._read(tokens, [owners[u] for u in which], [begin for _, begin, _ in piece])
        copies = [(slot, owners[u]) for slot, u in zip(slots, sources, strict=True) if slot != owners[u]]
        if copies:
            self.cache.copy([new for new, _ in copies], [old for _, old in copies], max(map(len, distinct)))
        self.slots += slots
        self.lengths += map(len, prompts)
        return shared_out(hidden_UD, sources)

    def step(self, tokens_N: Tensor) -> Tensor:
        """See `Runner.step`. Raises MemoryError."""
        hidden_ND = self._read([[token] for token in tokens_N.tolist()], self.slots, self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        return hidden_ND

    def keep(self, order: Sequence[int]) -> None:
        """See `Runner.keep`."""
        slots, lengths = self.slots, self.lengths
        self.slots, self.lengths = [slots[i] for i in order], [lengths[i] for i in order]
        kept = set(self.slots)
        self._free += [slot for slot in slots if slot not in kept]

    def steps_at_once(self, sampler: CompiledSampler, waiting: bool) -> int:
        """How many steps of the running rows one call may take. waiting: whether others want their slots."""
        longest = max(self.lengths)
        steps = _CALL // ((self._work(longest, longest + 1) + sampler.weight_VD.numel()) * len(self.slots))
        return max(1, min(steps, _PATIENCE) if waiting else steps)

    def run(
        self,
        tokens_N: Tensor,
        sampler: CompiledSampler,
        uniforms: tuple[Tensor, Tensor] | None,
        limits: Sequence[int],
        ends: Sequence[int],
        steps: int,
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Several steps of all rows, each until it draws one of `ends` or has drawn its limit.

        uniforms: numbers, float64, and where those of each row begin.
        -> tokens_NS, logps_NS, and how many of each row are real: rows with fewer than `steps` are over.
        Raises MemoryError.
        """
        slots, positions = _places(self.slots), _places(self.lengths)
        drawn = sampler.draw(
            self.model, self.weights, steps, limits, uniforms, ends, (None, tokens_N, slots, positions)
        )
        self.lengths = [length + steps for length in self.lengths]  # of those that go on
        return drawn

    def _work(self, begin: int, end: int) -> int:
        """Multiply-adds of the trunk, or what takes as long, for the tokens of a row from `begin` to `end`: each is
        multiplied by all weights, and reads the keys and values of those before it and its own. Windows are not
        counted; they would make it less."""
        seen = (begin + 1 + end) * (end - begin) // 2
        attention = 2 * self.model.layers * self.model.heads * self.model.head_dim * seen
        return (end - begin) * self.weights + _ATTENTION * attention

    def _read(self, prompts: Sequence[Sequence[int]], slots: Sequence[int], bases: Sequence[int]) -> Tensor:
        hidden_UD = torch.empty(len(prompts), self.model.width, dtype=torch.float32, device="cpu")
        given = (
            _places([token for prompt in prompts for token in prompt]),
            _places([0, *accumulate(map(len, prompts))]), _places(slots), _places(bases), hidden_UD,
        )  # fmt: skip
        asked = _Prompts(ctypes.pointer(self.model), *map(_address, given), len(prompts))
        _check(self.library.goodheart_read(ctypes.byref(asked), self.weights, torch.get_num_threads()))
        return hidden_UD

    def _layer(self, index: int, layer: PlainLayer) -> _Layer:
        return _Layer(
            *(_Linear(_address(weight), _address(bias)) for weight, bias in _matmuls(layer)),
            *(_address(t) for t in (layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp)),
            *(_address(t) for t in (layer.q_norm, layer.k_norm)),
            None if layer.rope is None else _address(self.turns[layer.rope]),
            _address(self.cache.keys[index]),
            _address(self.cache.values[index]),
            layer.window or 0,
        )


class CompiledSampler:
    """Hidden states to tokens in C, as `sampling.Sampler`. Make it with `CompiledSampler.of`."""

    def __init__(self, head: Unembedding, params: SamplingParams, library: ctypes.CDLL) -> None:
        self.library, self.greedy = library, params.is_greedy
        self.weight_VD, self.bias_V = head.weight_VD.detach(), None if head.bias_V is None else head.bias_V.detach()
        layer = _Linear(_address(self.weight_VD), _address(self.bias_V))
        self.head = _Head(layer, *self.weight_VD.shape, head.scale, head.softcap or 0.0, params.divisor)

    @classmethod
    def of(cls, head: Unembedding, params: SamplingParams) -> CompiledSampler | None:
        """-> None unless nothing is truncated, everything is float32 on the CPU, and the C code was compiled."""
        tensors = [t for t in (head.weight_VD, head.bias_V) if t is not None]
        plain = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        if not plain or params.truncates or not _whole(head.weight_VD) or torch.is_autocast_enabled("cpu"):
            return None
        library = build.load()
        return None if library is None else cls(head, params, library)

    def __call__(self, hidden_ND: Tensor, u_N1: Tensor | None) -> Tensor:
        """See `sampling.Sampler`. Raises MemoryError."""
        hidden_ND = hidden_ND.to(torch.float32).contiguous()
        rows = len(hidden_ND)
        trunk = _Model(layers=0, width=hidden_ND.shape[1])
        given = None if u_N1 is None else (u_N1, _places(range(rows)))
        tokens_N1, logps_N1, _ = self.draw(trunk, 0, 1, [1] * rows, given, (), (hidden_ND, None, None, None))
        return torch.stack((tokens_N1[:, 0].to(torch.float32), logps_N1[:, 0]))

    def draw(
        self,
        trunk: _Model,
        weights: int,
        steps: int,
        limits: Sequence[int],
        uniforms: tuple[Tensor, Tensor] | None,
        ends: Sequence[int],
        rows: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, Tensor, list[int]]:
        """See `CompiledRunner.run`, and `Draws` in c/generate.c for the tensors."""
        N = len(limits)
        drawn_NS = torch.empty(N, steps, dtype=torch.long, device="cpu")
        logps_NS = torch.empty(N, steps, dtype=torch.float32, device="cpu")
        limits_N, ends_E, made_N = _places(limits), _places(ends), _places([0] * N)
        numbers, at_N = (None, None) if self.greedy or uniforms is None else uniforms
        given = (*rows, limits_N, numbers, at_N, ends_E)
        asked = _Draws(
            ctypes.pointer(trunk), ctypes.pointer(self.head), *map(_address, given), len(ends), N, steps,
            *map(_address, (drawn_NS, made_N, logps_NS)),
        )  # fmt: skip
        weights += self.weight_VD.numel()
        _check(self.library.goodheart_draw(ctypes.byref(asked), weights, torch.get_num_threads()))
        return drawn_NS, logps_NS, made_N.tolist()


def _usable(model: CausalLM, length: int) -> tuple[PlainModel | None, ctypes.CDLL | None]:
    if next(model.parameters()).device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None, None
    plain = plain_model(model, length, torch.float32)
    return plain, None if plain is None else build.load()


def _pieces(
    lengths: Sequence[int], least: int, most: int, work: Callable[[int, int], int]
) -> Iterator[list[tuple[int, int, int]]]:
    """Prompts in order, cut into groups of at most so much work, but at least so many tokens (1 or more).

    work: of the tokens of a prompt from one to another. -> lists of (prompt, from token, to token)
    """
    piece: list[tuple[int, int, int]] = []
    tokens, room = 0, most
    for number, length in enumerate(lengths):
        begin = 0
        while begin < length:
            fitting = bisect_right(range(begin + 1, length + 1), room, key=partial(work, begin))
            count = min(length - begin, max(fitting, least - tokens))
            if count > 0:
                piece.append((number, begin, begin + count))
                tokens, room = tokens + count, room - work(begin, begin + count)
                begin += count
            else:
                yield piece
                piece, tokens, room = [], 0, most
    if piece:
        yield piece


def _matmuls(layer: PlainLayer) -> tuple[Linear, Linear, Linear, Linear]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a step of generation: use fewer slots")


def _places(numbers: Sequence[int]) -> Tensor:
    """As C reads them, whatever torch's default dtype and device are."""
    return torch.tensor(list(numbers), dtype=torch.long, device="cpu")


def _whole(weight: Tensor) -> bool:
    """A plain tensor with memory of its own, not a sharded one."""
    return type(weight) in (Tensor, torch.nn.Parameter)


def _address(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()  # the C code knows no strides
    return None if tensor is None else tensor.data_ptr()
