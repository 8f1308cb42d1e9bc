"""Keys and values of the running rows, in one block of memory per engine, for models that call `cache.attend`.

Rows 0 .. n-1 are the running ones, always without holes, so that a decoding step works on views and never copies the
cache. It attends over the longest running row rounded up to a bucket, not over the room there is.

Shapes: N running rows, P distinct prompts of a prefill, H query heads, G key/value heads, g = H / G, d head size,
T time, L positions attended to, X = N * G, Z = N * 2G.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from goodheart.generate.scheduler import moves
from goodheart.models.attention import Pattern, attend, patterns

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
        self.slots, self.kv_heads, self.head_dim = slots, kv_heads, head_dim
        self.max_length = round_up(max_length)
        # Zeros, not garbage: what lies beyond a row's length is masked, but not-a-number would survive the mask.
        self._store = torch.zeros(num_layers, 2, slots, kv_heads, self.max_length, head_dim, dtype=dtype, device=device)
        self._at = torch.arange(self.max_length, device=device)
        self._always, self._never = torch.tensor([0.0, float("-inf")], dtype=dtype, device=device).unbind()
        self._flat = [layer.view(-1, head_dim) for layer in self._store]
        self.lengths: list[int] = []  # tokens of each running row that are in the cache
        self._prefill: _Prefill | None = None
        self._views: tuple[int, int, list[tuple[Tensor, Tensor]]] = (0, 0, [])
        self._masks: dict[int | None, Tensor] = {}
        self._places: tuple[Tensor, ...] | None = None
        self._stale = True  # the rows changed since the last step

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._store.dtype

    @property
    def device(self) -> torch.device:
        """Where keys and values lie."""
        return self._store.device

    def fits(self, slots: int, max_length: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this cache can serve a call with these needs."""
        return (self.dtype, self.device) == (dtype, device) and self.slots >= slots and self.max_length >= max_length

    def clear(self) -> None:
        """Forget all rows."""
        self.keep([])

    def start(self, lengths: Sequence[int], sources: Sequence[int]) -> None:
        """Append rows; the next forward is over their right-padded prompts.

        lengths: tokens of each new row. sources: for each new row, which row of the forward holds its prompt, so that
        several rows can share one computation.
        """
        self._prefill = _Prefill(len(self.lengths), torch.tensor(sources, device=self.device))
        self.lengths = [*self.lengths, *lengths]
        self._stale = True

    def step(self) -> Tensor:
        """Prepare a forward over one new token per row. -> positions_N of those tokens."""
        self._prefill = None
        if self._stale:
            self.positions_N = torch.tensor(self.lengths, dtype=torch.long, device=self.device)
            self._places = None
            self._stale = False
        else:
            self.positions_N += 1
            if self._places is not None:
                self._places = tuple(place.add_(1) for place in self._places)
        self.lengths = [length + 1 for length in self.lengths]
        self.span = min(round_up(max(self.lengths)), self.max_length)
        self._masks = {}
        return self.positions_N

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; the others are gone."""
        new, old = moves(order)
        if new:
            length = max(self.lengths[i] for i in old)
            self._store[:, :, new, :, :length] = self._store[:, :, old, :, :length]
        self.lengths = [self.lengths[i] for i in order]
        self._stale = True

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
        k_BGTd, v_BGTd = k_BGTd.to(self.dtype), v_BGTd.to(self.dtype)
        if self._prefill is not None:
            self._prefill.write(self._store[layer], k_BGTd, v_BGTd)
            pattern = self._prefill.pattern(window, q_BHTd)
            return attend(q_BHTd.to(self.dtype), k_BGTd, v_BGTd, pattern, scale=scale, softcap=softcap)
        N, H, _, d = q_BHTd.shape
        self.write(layer, torch.cat((k_BGTd, v_BGTd), 1).view(-1, d))
        q_Xgd = q_BHTd.reshape(N * self.kv_heads, -1, d).to(self.dtype)
        return self.read(layer, q_Xgd, scale=scale, window=window, softcap=softcap).view(N, H, 1, d)

    def write(self, layer: int, kv_Zd: Tensor) -> None:
        """Store one token per row: of each row its G keys, then its G values."""
        self._flat[layer].index_copy_(0, self._row_places()[0], kv_Zd)

    def read(
        self, layer: int, q_Xgd: Tensor, *, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """Attend from one token per row to all tokens of the row. q_Xgd: query heads by the key head they share.
        -> out_Xgd"""
        kt_XdL, v_XLd = self._layer_views()[layer]
        mask_X1L = self._mask(window)
        if softcap is not None:
            scores_XgL = torch.bmm(q_Xgd, kt_XdL).float().mul_(scale / softcap).tanh_().mul_(softcap).add_(mask_X1L)
        elif self.dtype == torch.float32:
            scores_XgL = torch.baddbmm(mask_X1L, q_Xgd, kt_XdL, alpha=scale)
        else:  # keeps the scores in float32 inside; the group of heads stands where time would
            return F.scaled_dot_product_attention(
                q_Xgd[None], kt_XdL.transpose(1, 2)[None], v_XLd[None], attn_mask=mask_X1L[None], scale=scale
            )[0]
        return torch.bmm(scores_XgL.softmax(2).to(self.dtype), v_XLd)

    def _row_places(self) -> tuple[Tensor, ...]:
        """Where each row writes its newest token: of its keys and values in the flat store, (Z,), and by position,
        (X, 1, 1). Advanced by `step` until the rows change."""
        if self._places is None:
            N, G = len(self.lengths), self.kv_heads
            with torch.inference_mode(False):  # `step` changes them later, wherever they were first asked for
                blocks = torch.arange(2 * self.slots * G, device=self.device).view(2, self.slots, G)[:, :N]
                write_Z = blocks.transpose(0, 1) * self.max_length + self.positions_N.view(N, 1, 1)
                self._places = (write_Z.reshape(-1), self.positions_N.repeat_interleave(G).view(-1, 1, 1))
        return self._places

    def _layer_views(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer: keys, transposed, and values of the running rows, up to the span."""
        N = len(self.lengths)
        if self._views[:2] != (N, self.span):
            views = []
            for keys, values in self._store[:, :, :N, :, :].unbind(0):
                k_XLd = keys.reshape(-1, self.max_length, self.head_dim)[:, : self.span]
                v_XLd = values.reshape(-1, self.max_length, self.head_dim)[:, : self.span]
                views.append((k_XLd.transpose(1, 2), v_XLd))
            self._views = (N, self.span, views)
        return self._views[2]

    def _mask(self, window: int | None) -> Tensor:
        """0 where a row's newest token may look, -inf elsewhere; one row per key head, (X, 1, L)."""
        if window is not None and window >= self.span:
            window = None
        if window not in self._masks:
            at_L = self._at[: self.span]
            positions_X11 = self._row_places()[1]
            hidden_X1L = at_L > positions_X11
            if window is not None:
                hidden_X1L |= at_L <= positions_X11 - window
            self._masks[window] = torch.where(hidden_X1L, self._never, self._always)
        return self._masks[window]


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


def round_up(length: int) -> int:
    """To whole buckets."""
    return -(-length // BUCKET) * BUCKET
