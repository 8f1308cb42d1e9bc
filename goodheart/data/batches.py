"""Token examples to batches: right-padded, packed, in an order that a resumed run finds again.

Everything here is a pure function of its arguments: epoch N of seed S is the same list on every machine, so a resumed
run skips the batches it has had.  Letters: B rows, T time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Batches of one megabatch share their length sorting. Much longer and an epoch would run from long to short texts,
# much shorter and rows of unequal length would meet in a batch.
_BATCHES_PER_MEGABATCH = 32


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence for a causal model: its ids and which of them are trained on.

    ids: tokens.  mask: as long as ids; never True at 0, for the first token has nothing to be predicted from.
    row: its number among the prepared items, so that an error can name where it came from; -1 = not told.
    """

    ids: list[int]
    mask: list[bool]
    row: int = -1

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.mask):
            raise ValueError(f"{len(self.ids)} ids but {len(self.mask)} mask entries")
        if self.mask and self.mask[0]:
            raise ValueError("the first token of a sequence cannot be trained on: nothing predicts it")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. What is real is told by lengths and segments, never by the padding id."""

    ids_BT: torch.Tensor  # long
    mask_BT: torch.Tensor  # bool, True where trained on
    lengths_B: torch.Tensor  # long, real tokens of each row
    kept_N: torch.Tensor  # long, `models.causal.before` the mask: a GPU would have to be waited for to find it
    segments_BT: torch.Tensor | None = None  # long, packed rows only: 0 = padding, 1.. = which sequence of the row
    positions_BT: torch.Tensor | None = None  # long, packed rows only: from 0 in each sequence

    def to(self, device: Any) -> Batch:
        moved = (self.ids_BT, self.mask_BT, self.lengths_B, self.kept_N, self.segments_BT, self.positions_BT)
        return Batch(*(None if t is None else t.to(device, non_blocking=True) for t in moved))  # type: ignore[arg-type]


def pad(rows: Sequence[Example] | Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """Rows as tensors, padded on the right to the longest.

    Args:
        rows: examples, one a row; or rows of several examples from `pack`, which get segments and positions.
        pad_id: id to fill with; may equal a real one such as EOS.
    """
    import numpy as np
    import torch

    packed = bool(rows) and not isinstance(rows[0], Example)
    groups: list[Sequence[Example]] = [[r] if isinstance(r, Example) else r for r in rows]
    lengths = [sum(len(e) for e in group) for group in groups]
    shape = (len(groups), max(lengths, default=0))
    ids, mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=bool)
    segments, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for b, group in enumerate(groups):
        start = 0
        for number, example in enumerate(group, start=1):
            stop = start + len(example)
            ids[b, start:stop], mask[b, start:stop] = example.ids, example.mask
            if packed:
                segments[b, start:stop], positions[b, start:stop] = number, np.arange(len(example))
            start = stop
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.tensor(lengths, dtype=torch.long),
        torch.from_numpy(np.flatnonzero(mask) - 1),
        torch.from_numpy(segments) if packed else None,
        torch.from_numpy(positions) if packed else None,
    )


def pack(examples: Sequence[Example], max_length: int) -> list[list[Example]]:
    """Examples gathered into rows of at most `max_length` tokens, none split, by best fit decreasing.

    Best fit decreasing needs at most 11/9 of the fewest rows possible, plus one (Johnson et al. 1974, SIAM J. Comput.
    3:299); on HH-RLHF's base sets and rows of 512 tokens, 0.8 % over what the sum of tokens asks for. `pad` gives each
    sequence of a row its own segment, so that none sees another.

    Raises:
        ValueError: an example is longer than a row (`fits` first).
    """
    longest = max((len(e) for e in examples), default=0)
    if longest > max_length:
        raise ValueError(f"an example of {longest} tokens does not fit a row of {max_length}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for i in sorted(range(len(examples)), key=lambda i: -len(examples[i])):
        size = len(examples[i])
        place = bisect_left(room, (size, -1))
        if place < len(room):
            free, row = room.pop(place)
        else:
            free, row = max_length, len(rows)
            rows.append([])
        rows[row].append(i)
        if free > size:
            insort(room, (free - size, row))
    return [[examples[i] for i in sorted(row)] for row in rows]


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every index once, rows of like length together, batches in random order.

    Where the number of rows is no multiple of `batch_size`, the last batch is short; its rows are drawn at random,
    lest it always hold the shortest.

    Args:
        lengths: tokens of each row.
        seed, epoch: the order is a function of these two.
    """
    import numpy as np

    random = np.random.default_rng([seed % 2**63, epoch])
    drawn = random.permutation(len(lengths)).tolist()
    whole = len(drawn) - len(drawn) % batch_size
    batches: list[list[int]] = []
    for start in range(0, whole, _BATCHES_PER_MEGABATCH * batch_size):
        mega = drawn[start : min(start + _BATCHES_PER_MEGABATCH * batch_size, whole)]
        mega.sort(key=lambda i: -lengths[i])  # stable: equal lengths stay in random order
        batches += [mega[i : i + batch_size] for i in range(0, len(mega), batch_size)]
    shuffled = [batches[i] for i in random.permutation(len(batches)).tolist()]
    return shuffled + ([drawn[whole:]] if whole < len(drawn) else [])


def micro_batches(lengths: Sequence[int], max_tokens: int, *, at_least: int = 1) -> list[list[int]]:
    """One step's rows in pieces that fit the memory, longest first so that a lack of it shows at once.

    Args:
        lengths: tokens of each row.
        max_tokens: of a piece, padding included. A row longer than that makes a piece of its own.
        at_least: pieces to make where there are as many rows; for processes that must all make the same number.

    Returns:
        Indices into `lengths`, each once.
    """
    pieces: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if pieces and lengths[pieces[-1][0]] * (len(pieces[-1]) + 1) <= max_tokens:
            pieces[-1].append(i)
        else:
            pieces.append([i])
    while len(pieces) < min(at_least, len(lengths)):
        largest = max(range(len(pieces)), key=lambda p: len(pieces[p]))
        half = (len(pieces[largest]) + 1) // 2
        pieces[largest : largest + 1] = [pieces[largest][:half], pieces[largest][half:]]
    return pieces


def shard(indices: Sequence[int], rank: int, world: int) -> list[int]:
    """The part of a step that process `rank` of `world` takes: every world-th, so lengths are spread evenly."""
    return list(indices[rank::world])


def truncate(example: Example, max_length: int) -> Example:
    """The first `max_length` tokens. No end token is put in place of what is cut: the text did not end there."""
    if len(example) <= max_length:
        return example
    return Example(example.ids[:max_length], example.mask[:max_length], example.row)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `fits` made of a data set."""

    examples: list[Example]
    truncated: int  # of `examples`, how many lost their end
    dropped: list[int]  # places in the input of those that lost every trained token


def fits(examples: Sequence[Example], max_length: int) -> Fitted:
    """Examples of at most `max_length` tokens; those left without a trained token are dropped and listed."""
    cut = [truncate(e, max_length) for e in examples]
    dropped = [i for i, e in enumerate(cut) if not any(e.mask)]
    kept = [(e, c) for e, c in zip(examples, cut, strict=True) if any(c.mask)]
    return Fitted([c for _, c in kept], sum(c is not e for e, c in kept), dropped)
