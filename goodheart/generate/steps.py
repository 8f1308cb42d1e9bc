"""One decoding step over the memory of keys and values: where each row's new token is written, and what it looks at.

Which rows run and how many tokens they have, `cache.py` knows. A step is told positions in a tensor and does nothing
that depends on their numbers but the span, so that it can be recorded (`graphs.py`).

Shapes: S slots, N running rows, H query heads, G key/value heads, g = H / G, d head size, L positions attended to,
X = N * G, Z = N * 2G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Store:
    """One block of memory for the keys and values of `slots` rows of `max_length` tokens, and what is derived of its
    shape. kv: (layers, 2, S, G, max_length, d)."""

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
        self.slots, self.max_length, self.kv_heads, self.head_dim = slots, max_length, kv_heads, head_dim
        # Zeros, not garbage: what lies beyond a row's length is masked, but not-a-number would survive the mask.
        self.kv = torch.zeros(num_layers, 2, slots, kv_heads, max_length, head_dim, dtype=dtype, device=device)
        self.flat = [layer.view(-1, head_dim) for layer in self.kv]
        # Where in `flat` the keys of each row begin, head by head, and its values.
        blocks = torch.arange(2 * slots * kv_heads, device=device).view(2, slots, kv_heads) * max_length
        self.starts_S2G = blocks.transpose(0, 1).contiguous()
        self.at = torch.arange(max_length, device=device)
        self.always, self.never = torch.tensor([0.0, float("-inf")], dtype=dtype, device=device).unbind()

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.kv.dtype

    @property
    def device(self) -> torch.device:
        """Where keys and values lie."""
        return self.kv.device


class Step:
    """One new token of each of the first N rows of a store.

    Use: `place`, or `advance` where the rows are those of the step before; then `write` and `read`, or `attend`, for
    every layer. positions_N: of the new tokens. span: positions that are looked at, masked or not.
    """

    positions_N: Tensor
    span: int

    def __init__(self, store: Store) -> None:
        self.store = store
        self._views: tuple[int, int, list[tuple[Tensor, Tensor]]] = (0, 0, [])
        self._masks: dict[int | None, Tensor] = {}

    def place(self, positions_N: Tensor, span: int) -> None:
        """The new tokens stand at these positions, all of them under the span."""
        N = len(positions_N)
        self.positions_N = positions_N
        self._places_Z = (self.store.starts_S2G[:N] + positions_N.view(N, 1, 1)).view(-1)
        self._positions_X11 = positions_N.view(N, 1).repeat(1, self.store.kv_heads).view(-1, 1, 1)
        self._look(span)

    def advance(self, span: int) -> None:
        """Every row has one token more. Changes `positions_N` in place."""
        for tensor in (self.positions_N, self._places_Z, self._positions_X11):
            tensor.add_(1)
        self._look(span)

    def attend(
        self,
        layer: int,
        q_NH1d: Tensor,
        k_NG1d: Tensor,
        v_NG1d: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Store the keys and values of the new tokens and attend from them. See `KVCache.attend`. -> out_NH1d"""
        N, H, _, d = q_NH1d.shape
        self.write(layer, torch.cat((k_NG1d, v_NG1d), 1).view(-1, d))
        q_Xgd = q_NH1d.reshape(N * self.store.kv_heads, -1, d)
        return self.read(layer, q_Xgd, scale=scale, window=window, softcap=softcap).view(N, H, 1, d)

    def write(self, layer: int, kv_Zd: Tensor) -> None:
        """Store one token per row: of each row its G keys, then its G values."""
        self.store.flat[layer].index_copy_(0, self._places_Z, kv_Zd)

    def read(
        self, layer: int, q_Xgd: Tensor, *, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """Attend from one token per row to all tokens of the row. q_Xgd: query heads by the key head they share.
        -> out_Xgd"""
        kt_XdL, v_XLd = self._views[2][layer]
        mask_X1L = self._mask(window)
        if softcap is not None:
            scores_XgL = torch.bmm(q_Xgd, kt_XdL).float().mul_(scale / softcap).tanh_().mul_(softcap).add_(mask_X1L)
        elif self.store.dtype == torch.float32:
            scores_XgL = torch.baddbmm(mask_X1L, q_Xgd, kt_XdL, alpha=scale)
        else:  # keeps the scores in float32 inside; the group of heads stands where time would
            return F.scaled_dot_product_attention(
                q_Xgd[None], kt_XdL.transpose(1, 2)[None], v_XLd[None], attn_mask=mask_X1L[None], scale=scale
            )[0]
        return torch.bmm(scores_XgL.softmax(2).to(self.store.dtype), v_XLd)

    def _look(self, span: int) -> None:
        """Per layer: keys, transposed, and values of the rows, up to the span; as they were if neither has changed."""
        N, s = len(self.positions_N), self.store
        self.span, self._masks = span, {}
        if self._views[:2] != (N, span):
            views = []
            for keys, values in s.kv[:, :, :N, :, :].unbind(0):
                k_XLd = keys.reshape(-1, s.max_length, s.head_dim)[:, :span]
                v_XLd = values.reshape(-1, s.max_length, s.head_dim)[:, :span]
                views.append((k_XLd.transpose(1, 2), v_XLd))
            self._views = (N, span, views)

    def _mask(self, window: int | None) -> Tensor:
        """0 where a row's newest token may look, -inf elsewhere; one row per key head, (X, 1, L)."""
        if window is not None and window >= self.span:
            window = None
        if window not in self._masks:
            at_L = self.store.at[: self.span]
            hidden_X1L = at_L > self._positions_X11
            if window is not None:
                hidden_X1L |= at_L <= self._positions_X11 - window
            self._masks[window] = torch.where(hidden_X1L, self.store.never, self.store.always)
        return self._masks[window]
