"""Prompts, decoding steps and the drawing of tokens in C, for models in float32 or bfloat16 on CPU.

A small model's step in PyTorch is hundreds of operations of a few microseconds each, and its threads wait for each
other at every one. In C (`c/`) a thread takes some rows through all layers alone, and through several steps in one
call. `build.py` compiles it; without a compiler `decode.py` and `sampling.py` do the same in PyTorch.

Shapes: N running rows, P new rows, U distinct prompts, D width, V vocabulary, S steps, E ending tokens.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from goodheart.generate import build
from goodheart.generate.layers import PlainLayer, PlainModel, plain_model
from goodheart.generate.runners import share, shared_out
from goodheart.generate.sampling import SamplingParams
from goodheart.generate.structures import (
    PANEL,
    CDraws,
    CHead,
    CLayer,
    CLinear,
    CModel,
    CompiledCache,
    CPrompts,
    address,
    check,
    places,
)
from goodheart.models.causal import CausalLM, Unembedding

# Multiply-adds of one call: some tens of milliseconds on a core, after which Python looks for signals. Prompts get
# more, and at least so many tokens per thread: with fewer, reading the weights costs as much as multiplying by them.
_CALL = 2**32
_PROMPT_CALL, _PROMPT_TOKENS = 2**35, 64
_ATTENTION = 16  # how much longer a multiply-add takes over a long row's keys and values, which come from memory
_PATIENCE = 16  # steps that a freed slot waits for its next row, at most


class CompiledRunner:
    """A `Runner` in C. Make it with `CompiledRunner.of`. The cache may come from an earlier call."""

    def __init__(self, model: PlainModel, cache: CompiledCache, library: ctypes.CDLL) -> None:
        self.cache, self.library = cache, library
        self.plain, self.dtype = model, model.embedding_VD.dtype
        self.floats: list[Tensor] = []  # C holds addresses only
        self.turns = {rope: self._float(table) for rope, table in model.turns.items()}
        self.weights = sum(w.numel() for layer in model.layers for w, _ in layer.matmuls)
        self.layers = (CLayer * len(model.layers))(*(self._layer(i, layer) for i, layer in enumerate(model.layers)))
        c = model.config
        self.model = CModel(
            c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width, cache.length, c.activation != "silu",
            c.norm_eps, model.embedding_scale or 1.0, c.attention_scale, c.attention_softcap or 0.0,
            address(model.embedding_VD), self._float(model.final_norm), self.layers,
        )  # fmt: skip
        self.slots: list[int] = []  # of the running rows
        self.lengths: list[int] = []  # tokens of each that are in the cache
        self._free = list(range(cache.slots))[::-1]

    @classmethod
    def of(cls, model: CausalLM, slots: int, length: int, cache: CompiledCache | None) -> CompiledRunner | None:
        """-> None unless `serves`. cache: one to use again, which `fits`."""
        plain, library = _usable(model, -(-length // PANEL) * PANEL)
        if plain is None or library is None:
            return None
        if cache is None:
            with torch.inference_mode(False):
                cache = CompiledCache(plain.config, plain.embedding_VD.dtype, slots, length)
        return cls(plain, cache, library)

    @staticmethod
    def serves(model: CausalLM) -> bool:
        """Whether the model is plain (see `layers.py`), float32 or bfloat16 and on the CPU, and the C code could be
        compiled."""
        return None not in _usable(model, 1)

    @staticmethod
    def way(model: CausalLM) -> str | None:
        """What computes, for a run's records; None unless `serves`. pairs: by the processor's own dot products."""
        plain, library = _usable(model, 1)
        if plain is None or library is None:
            return None
        pairs = " in pairs" if library.goodheart_in_pairs() else ""
        return "C" if plain.embedding_VD.dtype == torch.float32 else f"C, bfloat16{pairs}"

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Runner.admit`. Raises MemoryError."""
        distinct, sources = share(prompts)
        slots = [self._free.pop() for _ in prompts]
        owners = [slots[sources.index(u)] for u in range(len(distinct))]
        hidden_UD = torch.empty(len(distinct), self.model.width, dtype=self.dtype, device="cpu")
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
        slots, positions = places(self.slots), places(self.lengths)
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
        hidden_UD = torch.empty(len(prompts), self.model.width, dtype=self.dtype, device="cpu")
        given = (
            places([token for prompt in prompts for token in prompt]),
            places([0, *accumulate(map(len, prompts))]), places(slots), places(bases), hidden_UD,
        )  # fmt: skip
        asked = CPrompts(ctypes.pointer(self.model), *map(address, given), len(prompts))
        check(self.library.goodheart_read(ctypes.byref(asked), self.weights, torch.get_num_threads()))
        return hidden_UD

    def _layer(self, index: int, layer: PlainLayer) -> CLayer:
        return CLayer(
            *(CLinear(address(weight), address(bias)) for weight, bias in layer.matmuls),
            *map(self._float, (layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp)),
            *map(self._float, (layer.q_norm, layer.k_norm)),
            None if layer.rope is None else self.turns[layer.rope],
            address(self.cache.keys[index]),
            address(self.cache.values[index]),
            layer.window or 0,
        )

    def _float(self, tensor: Tensor | None) -> int | None:
        """Where it lies in float32: norm weights and rotary tables, which are small."""
        if tensor is None:
            return None
        self.floats.append(tensor.to(torch.float32).contiguous())
        return address(self.floats[-1])


class CompiledSampler:
    """Hidden states to tokens in C, as `sampling.Sampler`. Make it with `CompiledSampler.of`."""

    def __init__(self, head: Unembedding, params: SamplingParams, library: ctypes.CDLL) -> None:
        self.library, self.greedy = library, params.is_greedy
        self.weight_VD, self.bias_V = head.weight_VD.detach(), None if head.bias_V is None else head.bias_V.detach()
        layer = CLinear(address(self.weight_VD), address(self.bias_V))
        self.head = CHead(layer, *self.weight_VD.shape, head.scale, head.softcap or 0.0, params.divisor)

    @classmethod
    def of(cls, head: Unembedding, params: SamplingParams) -> CompiledSampler | None:
        """-> None unless nothing is truncated, everything is float32 or bfloat16 on the CPU, and the C code was
        compiled."""
        weight_VD, dtype = head.weight_VD, head.weight_VD.dtype
        tensors = [t for t in (weight_VD, head.bias_V) if t is not None]
        plain = all(t.dtype == dtype and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        if not plain or params.truncates or not _whole(weight_VD) or torch.is_autocast_enabled("cpu"):
            return None
        library = _library(dtype, weight_VD.shape[1])
        return None if library is None else cls(head, params, library)

    def __call__(self, hidden_ND: Tensor, u_N1: Tensor | None) -> Tensor:
        """See `sampling.Sampler`. Raises MemoryError."""
        hidden_ND = hidden_ND.to(self.weight_VD.dtype).contiguous()
        rows = len(hidden_ND)
        trunk = CModel(layers=0, width=hidden_ND.shape[1])
        given = None if u_N1 is None else (u_N1, places(range(rows)))
        tokens_N1, logps_N1, _ = self.draw(trunk, 0, 1, [1] * rows, given, (), (hidden_ND, None, None, None))
        return torch.stack((tokens_N1[:, 0].to(torch.float32), logps_N1[:, 0]))

    def draw(
        self,
        trunk: CModel,
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
        limits_N, ends_E, made_N = places(limits), places(ends), places([0] * N)
        numbers, at_N = (None, None) if self.greedy or uniforms is None else uniforms
        given = (*rows, limits_N, numbers, at_N, ends_E)
        asked = CDraws(
            ctypes.pointer(trunk), ctypes.pointer(self.head), *map(address, given), len(ends), N, steps,
            *map(address, (drawn_NS, made_N, logps_NS)),
        )  # fmt: skip
        weights += self.weight_VD.numel()
        check(self.library.goodheart_draw(ctypes.byref(asked), weights, torch.get_num_threads()))
        return drawn_NS, logps_NS, made_N.tolist()


def _usable(model: CausalLM, length: int) -> tuple[PlainModel | None, ctypes.CDLL | None]:
    if next(model.parameters()).device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None, None
    plain = plain_model(model, length, next(model.parameters()).dtype)
    if plain is None:
        return None, None
    c = plain.config
    return plain, _library(plain.embedding_VD.dtype, c.width, c.head_dim, c.mlp_width)


def _library(dtype: torch.dtype, *widths: int) -> ctypes.CDLL | None:
    """The code for numbers of this type. widths: over which it sums; two bfloat16 are multiplied at once."""
    if dtype not in build.CODES or (dtype == torch.bfloat16 and any(width % 2 for width in widths)):
        return None
    return build.load(dtype)


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


def _whole(weight: Tensor) -> bool:
    """A plain tensor with memory of its own, not a sharded one."""
    return type(weight) in (Tensor, torch.nn.Parameter)
