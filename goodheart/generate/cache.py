"""Keys and values of the running rows, in one block of memory per engine, for models that call `cache.attend`.

Rows 0 .. n-1 are the running ones, always without holes, so that a decoding step works on views and never copies the
cache. It attends over the longest running row rounded up to a bucket, not over the room there is.

Shapes: P distinct prompts of a prefill, B rows of a forward, H query heads, G key/value heads, d head size, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from goodheart.generate.scheduler import moves
from goodheart.generate.steps import Step, Store
from goodheart.models.attention import Pattern, attend, patterns

if TYPE_CHECKING:
    from goodheart.generate.graphs import Graphs

# Attended lengths are multiples of this: views are made anew once in so many steps, and at most this much is read in
# vain; kernels of accelerators like multiples of 8.
BUCKET = 8


class KVCache:
    """Static room for `slots` rows of `max_length` tokens.

    num_layers, kv_heads, head_dim: of the model. dtype: of keys and values.
    Use: `start(...)` and a forward over the prompts; `step()` and a forward over one token per row; `keep(order)`.
    """

    def __init__(
        self,
        num_layers: int,
        slots: int,
        max_length: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.store = Store(num_layers, slots, round_up(max_length), kv_heads, head_dim, dtype, device)
        self.lengths: list[int] = []  # tokens of each running row that are in the cache
        self.graphs: Graphs | None = None  # what was recorded over this memory, and goes with it
        self._prefill: _Prefill | None = None
        self._step = Step(self.store)
        self._next: list[int] = []  # positions of the step after the last, if no row comes or goes

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.store.dtype

    @property
    def device(self) -> torch.device:
        """Where keys and values lie."""
        return self.store.device

    @property
    def max_length(self) -> int:
        """Tokens a row has room for."""
        return self.store.max_length

    def fits(self, slots: int, max_length: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this cache can serve a call with these needs."""
        kind = (self.dtype, self.device)
        return kind == (dtype, device) and self.store.slots >= slots and self.max_length >= max_length

    def clear(self) -> None:
        """Forget all rows."""
        self.lengths = []

    def start(self, lengths: Sequence[int], sources: Sequence[int]) -> None:
        """Append rows; the next forward is over their right-padded prompts.

        lengths: tokens of each new row. sources: for each new row, which row of the forward holds its prompt, so that
        several rows can share one computation.
        """
        self._prefill = _Prefill(len(self.lengths), torch.tensor(sources, device=self.device))
        self.lengths = [*self.lengths, *lengths]

    def grow(self) -> list[int]:
        """Every row gets a token: the next forward is over those. -> their positions"""
        self._prefill = None
        positions, self.lengths = self.lengths, [length + 1 for length in self.lengths]
        return positions

    def step(self) -> Step:
        """`grow`, and what a forward over the new tokens needs."""
        positions = self.grow()
        span = min(round_up(max(self.lengths)), self.max_length)
        if positions == self._next:
            self._step.advance(span)
        else:
            with torch.inference_mode(False):  # changed later, wherever that may be
                self._step.place(torch.tensor(positions, dtype=torch.long, device=self.device), span)
        self._next = self.lengths
        return self._step

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; the others are gone."""
        new, old = moves(order)
        if new:
            length, kv = max(self.lengths[i] for i in old), self.store.kv
            kv[:, :, new, :, :length] = kv[:, :, old, :, :length]
        self.lengths = [self.lengths[i] for i in order]

    def attend(
        self,
        layer: int,
        q_BHTd: Tensor,
        k_BGTd: Tensor,
        v_BGTd: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Store the keys and values of new tokens and attend from them to all tokens of their rows.

        window: tokens a token sees, itself included; None = all. softcap: see `models.attention`. -> out_BHTd
        """
        q_BHTd, k_BGTd, v_BGTd = q_BHTd.to(self.dtype), k_BGTd.to(self.dtype), v_BGTd.to(self.dtype)
        if self._prefill is None:
            return self._step.attend(layer, q_BHTd, k_BGTd, v_BGTd, scale=scale, window=window, softcap=softcap)
        self._prefill.write(self.store.kv[layer], k_BGTd, v_BGTd)
        pattern = self._prefill.pattern(window, q_BHTd)
        return attend(q_BHTd, k_BGTd, v_BGTd, pattern, scale=scale, softcap=softcap)


class _Prefill:
    """A forward over new prompts: which rows they fill."""

    def __init__(self, first: int, sources: Tensor) -> None:
        self.first, self.sources = first, sources
        self._patterns: dict[int | None, Pattern] = {}

    def write(self, layer: Tensor, k_PGTd: Tensor, v_PGTd: Tensor) -> None:
        """Copy keys and values into the rows. Pads go along; the row's own tokens overwrite them before they show."""
        rows = slice(self.first, self.first + len(self.sources))
        layer[0, rows, :, : k_PGTd.shape[2]] = k_PGTd[self.sources]
        layer[1, rows, :, : v_PGTd.shape[2]] = v_PGTd[self.sources]

    def pattern(self, window: int | None, q_PHTd: Tensor) -> Pattern:
        """Causal attention with that window over the padded prompts."""
        if window not in self._patterns:
            self._patterns |= patterns((window,), q_PHTd.shape[2], None, q_PHTd.device)
        return self._patterns[window]


def round_up(length: int, bucket: int = BUCKET) -> int:
    """To whole buckets."""
    return -(-length // bucket) * bucket
