"""Keys and values of the running rows for decoders of transformers: a `DynamicCache` whose rows end at the right.

A `DynamicCache` grows by one column for all rows, so each row's newest token must stand in the last column: rows are
shifted to the right, zeros and a mask fill the left. Position ids are passed explicitly, so that learned positions are
those of the unpadded row. New prompts are computed in a cache of their own, then merged; finished rows are dropped.

Shapes: N running rows, P distinct prompts of a prefill, G key/value heads, T time, L columns, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class HFCache:
    """Use: `start(lengths, sources)`, a forward over the prompts, `merge()`; `step()`, a forward; `keep(order)`.

    past: what the model's forward reads and extends.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lengths: list[int] = []  # tokens of each running row, the one being computed included
        self.past: Any = _empty()
        self._before: Any = None  # the running rows' cache, while prompts are computed
        self._new: list[int] = []
        self._sources: list[int] = []

    def start(self, lengths: Sequence[int], sources: Sequence[int]) -> None:
        """The next forward is over right-padded prompts; see `KVCache.start`."""
        self._before, self.past = self.past, _empty()
        self._new, self._sources = list(lengths), list(sources)

    def merge(self) -> None:
        """Append the rows whose prompts were computed."""
        new = torch.tensor(self._new, device=self.device)
        sources = torch.tensor(self._sources, device=self.device)
        for layer in self.past.layers:
            T = layer.keys.shape[2]
            # The column each token moves to the last ones from; pads of the right wrap around to the left.
            from_PT = (torch.arange(T, device=self.device) - (T - new.unsqueeze(1))) % T
            layer.keys = _take_columns(layer.keys[sources], from_PT)
            layer.values = _take_columns(layer.values[sources], from_PT)
        for old, layer in zip(self._before.layers, self.past.layers, strict=False):
            L = max(old.keys.shape[2], layer.keys.shape[2])
            layer.keys = torch.cat((_widen(old.keys, L), _widen(layer.keys, L)))
            layer.values = torch.cat((_widen(old.values, L), _widen(layer.values, L)))
        self.lengths += self._new
        self._before, self._new = None, []

    def step(self) -> Tensor:
        """Prepare a forward over one new token per row. -> positions_N of those tokens."""
        positions_N = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        return positions_N

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; the others are gone, and so are columns that only they used."""
        self.lengths = [self.lengths[i] for i in order]
        if not order:
            self.past = _empty()
            return
        rows = torch.tensor(order, device=self.device)
        for layer in self.past.layers:
            layer.keys = layer.keys[rows, :, -max(self.lengths) :]
            layer.values = layer.values[rows, :, -max(self.lengths) :]

    def mask(self, ids_BT: Tensor) -> Tensor:
        """1 for real tokens, 0 for padding, over cached and new columns, (B, L)."""
        if self._new:
            lengths = dict(zip(self._sources, self._new, strict=True))
            lengths_B = torch.tensor([lengths[i] for i in range(len(ids_BT))], device=self.device)
            return (torch.arange(ids_BT.shape[1], device=self.device) < lengths_B.unsqueeze(1)).long()
        L = self.past.get_seq_length() + ids_BT.shape[1]
        starts_N = L - torch.tensor(self.lengths, device=self.device)
        return (torch.arange(L, device=self.device) >= starts_N.unsqueeze(1)).long()


# Rotary scalings whose frequencies depend on the length so far: cached keys would be turned by old ones.
_LENGTH_DEPENDENT = {"dynamic", "longrope", "su"}


def caches_plainly(hf: Any) -> bool:
    """Whether every layer of this transformers model keeps all keys and values for good, as `HFCache` assumes; windows,
    chunks, recurrent states and rotary scalings that depend on the length do not."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    ropes = getattr(hf.config, "rope_parameters", None) or getattr(hf.config, "rope_scaling", None) or {}
    for rope in (ropes, *(r for r in ropes.values() if isinstance(r, dict))):
        if rope.get("rope_type", rope.get("type")) in _LENGTH_DEPENDENT:
            return False
    try:
        layers = DynamicCache(config=hf.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # a config that says nothing of layers we know
        return False
    return all(type(layer) is DynamicLayer for layer in layers)


def _empty() -> Any:
    from transformers.cache_utils import DynamicCache

    return DynamicCache()


def _take_columns(x_PGTd: Tensor, from_PT: Tensor) -> Tensor:
    return x_PGTd.gather(2, from_PT[:, None, :, None].expand_as(x_PGTd))


def _widen(x_PGTd: Tensor, columns: int) -> Tensor:
    return F.pad(x_PGTd, (0, 0, columns - x_PGTd.shape[2], 0))
