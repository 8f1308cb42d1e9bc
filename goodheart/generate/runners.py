"""What runs the model for the engine: prompts in and hidden states out, one token per row in and hidden states out.

Ways with one interface: our decoder over a static cache (here in PyTorch, in `compiled.py` in C), a transformers
decoder over its own cache, and any decoder without a cache (slow: every step computes whole sequences again; for
architectures whose cache is not made of keys and values alone, such as windows, chunks or recurrent states).

Shapes: N running rows, P new rows, U distinct prompts, T time, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from goodheart.generate.cache import KVCache
from goodheart.generate.decode import Decoder
from goodheart.generate.graphs import GraphedDecoder, records
from goodheart.generate.hf_cache import HFCache, caches_plainly
from goodheart.generate.layers import PlainModel, plain_model
from goodheart.models.causal import CausalLM, at_end


class Runner(Protocol):
    """Rows 0 .. n-1 run. None of this records gradients."""

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows and compute their prompts. -> hidden_PD of the last token of each."""

    def step(self, tokens_N: Tensor) -> Tensor:
        """Append one token to every row. -> hidden_ND of those tokens."""

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; the others are gone."""


class NativeRunner:
    """`Transformer` over a `KVCache`. The cache may come from an earlier call."""

    def __init__(self, model: CausalLM, cache: KVCache) -> None:
        cache.clear()
        self.model, self.cache = model, cache
        plain = _plain(model, cache.max_length, cache.dtype, cache.device)
        self.graphed = None if plain is None else GraphedDecoder.of(plain, cache)
        self.decoder = None if plain is None or self.graphed is not None else Decoder(plain)

    @torch.no_grad()
    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        distinct, sources = share(prompts)
        ids_UT, lengths_U = pad(distinct, self.cache.device)
        self.cache.start([len(p) for p in prompts], sources)
        hidden_UD = self.model(ids_UT, cache=self.cache, kept_N=at_end(lengths_U, ids_UT.shape[1]))
        return shared_out(hidden_UD, sources)

    def step(self, tokens_N: Tensor) -> Tensor:
        if self.graphed is not None:
            return self.graphed.step(tokens_N)
        step = self.cache.step()
        if self.decoder is not None:
            return self.decoder.step(tokens_N, step)
        positions_N1 = step.positions_N.unsqueeze(1)
        with torch.no_grad():
            return self.model(tokens_N.unsqueeze(1), positions_BT=positions_N1, cache=self.cache)[:, 0]

    def keep(self, order: Sequence[int]) -> None:
        self.cache.keep(order)


class HFRunner:
    """`HFCausal` over an `HFCache`."""

    def __init__(self, model: CausalLM, device: torch.device) -> None:
        self.model, self.cache = model, HFCache(device)

    @torch.no_grad()
    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        distinct, sources = share(prompts)
        ids_UT, lengths_U = pad(distinct, self.cache.device)
        self.cache.start([len(p) for p in prompts], sources)
        hidden_UD = self.model(ids_UT, cache=self.cache, kept_N=at_end(lengths_U, ids_UT.shape[1]))
        self.cache.merge()
        return shared_out(hidden_UD, sources)

    @torch.no_grad()
    def step(self, tokens_N: Tensor) -> Tensor:
        positions_N = self.cache.step()
        return self.model(tokens_N.unsqueeze(1), positions_BT=positions_N.unsqueeze(1), cache=self.cache)[:, 0]

    def keep(self, order: Sequence[int]) -> None:
        self.cache.keep(order)


class RecomputingRunner:
    """Any `CausalLM`, whole sequences at every step."""

    def __init__(self, model: CausalLM, device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows: list[list[int]] = []

    @torch.no_grad()
    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.rows += [list(p) for p in prompts]
        return self._last(prompts)

    @torch.no_grad()
    def step(self, tokens_N: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens_N.tolist(), strict=True):
            row.append(token)
        return self._last(self.rows)

    def keep(self, order: Sequence[int]) -> None:
        self.rows = [self.rows[i] for i in order]

    def _last(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids_NT, lengths_N = pad(rows, self.device)
        return self.model(ids_NT, lengths_B=lengths_N, kept_N=at_end(lengths_N, ids_NT.shape[1]))


def way(model: CausalLM) -> str:
    """What computes where it is not C, for a run's records."""
    first = next(model.parameters())
    graphed = records(first.device) and _plain(model, 1, first.dtype, first.device) is not None
    return "PyTorch, CUDA graphs" if graphed else "PyTorch"


def _plain(model: CausalLM, length: int, dtype: torch.dtype, device: torch.device) -> PlainModel | None:
    """For a faster way to run single tokens than the model's own forward pass, if there is one."""
    return None if torch.is_autocast_enabled(device.type) else plain_model(model, length, dtype)


def hf_runner(model: CausalLM, device: torch.device) -> type[HFRunner] | type[RecomputingRunner]:
    """The faster runner that is right for a transformers decoder, found by trying it on a few tokens."""
    hf: Any = getattr(model, "hf", None)
    if hf is None or not caches_plainly(hf):
        return RecomputingRunner
    vocabulary = model.vocab_size
    first, late = [[i % vocabulary for i in range(7)], [5 % vocabulary] * 3], [[i % vocabulary for i in range(1, 6)]]
    hidden = []
    for kind in (HFRunner, RecomputingRunner):
        runner: Runner = kind(model, device)
        try:
            runner.admit(first)
            runner.keep([1])
            runner.admit(late)
            runner.step(torch.tensor([3, 4], device=device) % vocabulary)
            hidden.append(runner.step(torch.tensor([6, 1], device=device) % vocabulary).float())
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            if kind is RecomputingRunner:
                raise
            return RecomputingRunner
    scale = hidden[1].abs().max().clamp(min=1.0)
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 5e-2
    return HFRunner if bool((hidden[0] - hidden[1]).abs().max() <= tolerance * scale) else RecomputingRunner


def share(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """Distinct prompts, and for each prompt which of them it is."""
    places: dict[tuple[int, ...], int] = {}
    sources = [places.setdefault(tuple(p), len(places)) for p in prompts]
    return list(places), sources


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the right with id 0, which nothing looks at. -> ids_NT, lengths_N."""
    longest = max(len(r) for r in rows)
    ids_NT = torch.tensor([[*r, *[0] * (longest - len(r))] for r in rows], dtype=torch.long)
    return ids_NT.to(device), torch.tensor([len(r) for r in rows], device=device)


def shared_out(hidden_UD: Tensor, sources: Sequence[int]) -> Tensor:
    """States of distinct prompts to all that asked them. -> hidden_PD"""
    return hidden_UD if len(sources) == len(hidden_UD) else hidden_UD[torch.tensor(sources, device=hidden_UD.device)]
