"""Rows without padding, and what several rows begin with only once: two answers to one prompt share it.

A causal model's state of a token depends on the tokens before it alone, so equal beginnings have equal states, and the
gradients of a shared token are the sums of those its copies would have had. Rows are sorted as in a dictionary; each
then keeps only the tokens in which it differs from the one before. c/attention.c walks through such rows.

Shapes: B rows, T time, R sequences (rows, or the parts of packed rows), N tokens that are kept, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from goodheart.models import native

# Rows that share something are one piece of work for the threads, so a common beginning that is shorter, or less than a
# part of the row's own tokens (the header of a chat), is computed twice. A rule of lengths: results know no threads.
_LEAST_SHARED = 8
_LEAST_PART = 8


@dataclass(frozen=True)
class Packed:
    """rows_R3: first token of a row among the N, tokens it shares with the row before, tokens of its own.
    families: first row of each run of rows that share something, and R. longest: tokens of the longest row.
    ids_N: the tokens. kept_K: places among the N of the states that were asked for, which may repeat.
    """

    rows_R3: Tensor
    families: Tensor
    longest: int
    ids_N: Tensor
    kept_K: Tensor

    @classmethod
    def of(
        cls,
        ids_BT: Tensor,
        kept_N: Tensor,
        lengths_B: Tensor | None = None,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
    ) -> Packed | None:
        """As `CausalLM.forward` is told of them, on the CPU.

        -> None where there are no tokens, a state of padding is asked for, or positions do not count from 0 in every
        sequence.
        """
        starts, lengths = _sequences(ids_BT, lengths_B, segments_BT)
        if not lengths:
            return None
        if positions_BT is not None and not _count_from_zero(positions_BT.reshape(-1), starts, lengths):
            return None
        ids = ids_BT.reshape(-1)
        source, place, rows, families = _sorted_rows(ids, starts, lengths)
        kept_K = place[kept_N]
        if len(kept_K) and int(kept_K.min()) < 0:
            return None
        longest = max(shared + own for _, shared, own in rows)
        return cls(torch.tensor(rows), torch.tensor(families), longest, ids[source], kept_K)


def _sequences(ids_BT: Tensor, lengths_B: Tensor | None, segments_BT: Tensor | None) -> tuple[list[int], list[int]]:
    """Where each sequence begins among the B T places, and its length; empty ones are left out."""
    B, T = ids_BT.shape
    if segments_BT is None:
        lengths = [T] * B if lengths_B is None else lengths_B.tolist()
        found = [(b * T, length) for b, length in enumerate(lengths) if length]
    else:
        numbers = torch.nn.functional.pad(segments_BT, (1, 0), value=-1)
        begins = (numbers[:, 1:] != numbers[:, :-1]).flatten().nonzero().squeeze(1)
        ends = torch.cat([begins[1:], begins.new_tensor([B * T])])
        real = segments_BT.reshape(-1)[begins] != 0
        found = list(zip(begins[real].tolist(), (ends - begins)[real].tolist(), strict=True))
    return [start for start, _ in found], [length for _, length in found]


def _count_from_zero(positions: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> bool:
    wanted = torch.cat([torch.arange(length) for length in lengths])
    places = wanted + torch.repeat_interleave(torch.tensor(starts), torch.tensor(lengths))
    return torch.equal(positions[places], wanted)


def _sorted_rows(
    ids: Tensor, starts: Sequence[int], lengths: Sequence[int]
) -> tuple[Tensor, Tensor, list[tuple[int, int, int]], list[int]]:
    """-> where each kept token comes from, where each token went (-1: nowhere), the rows, the families."""
    listed = ids.tolist()
    tokens = [listed[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    source = torch.empty(sum(lengths), dtype=torch.long)
    place = torch.full((len(listed),), -1)
    rows: list[tuple[int, int, int]] = []
    families, number, before = [], 0, -1
    for i in sorted(range(len(tokens)), key=tokens.__getitem__):
        start, length = starts[i], lengths[i]
        shared = 0 if before < 0 else _shared(tokens[before], tokens[i])
        if not shared:
            families.append(len(rows))
        else:
            place[start : start + shared] = place[starts[before] : starts[before] + shared]
        own = length - shared
        source[number : number + own] = torch.arange(start + shared, start + length)
        place[start + shared : start + length] = torch.arange(number, number + own)
        rows.append((number, shared, own))
        number, before = number + own, i
    return source[:number], place, rows, [*families, len(rows)]


def kept_tokens(rows: Iterable[list[int]]) -> int:
    """How many tokens a pass over these rows computes."""
    ordered = sorted(rows)
    return sum(map(len, ordered)) - sum(_shared(before, row) for before, row in pairwise(ordered))


def _shared(before: list[int], row: list[int]) -> int:
    """Tokens at its beginning that a row has from the one before it."""
    common = _common(before, row)
    return 0 if common < max(_LEAST_SHARED, (len(row) - common) / _LEAST_PART) else common


def _common(a: list[int], b: list[int]) -> int:
    """Tokens that both begin with."""
    least = min(len(a), len(b))
    if a[:least] == b[:least]:
        return least
    low, high = 0, least  # the first `low` agree, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle)
    return low


def attend(qkv_NE: Tensor, how: native.Attending) -> Tensor:
    """qkv_NE: query, key and value heads of the kept tokens. -> (N, H d), in the dtype of qkv. Differentiable once."""
    return _Attend.apply(qkv_NE.contiguous(), how)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_NE: Tensor, how: native.Attending) -> Tensor:
        out, log_sum = how.forward(qkv_NE)
        ctx.save_for_backward(qkv_NE, out, log_sum)
        ctx.how = how
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.how.backward(*ctx.saved_tensors, grad.contiguous()), None
