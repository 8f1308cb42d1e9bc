"""Batches by hand and by property: nothing lost, nothing twice, nothing mixed, within the budget.  B rows, T time."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goodheart.data.batches import Example, epoch_order, fits, micro_batches, pack, pad, shard, truncate

LENGTHS = st.lists(st.integers(1, 40), min_size=0, max_size=60)


def example(first: int, length: int) -> Example:
    """ids first, first + 1, ...; everything but the first token trained on."""
    return Example(list(range(first, first + length)), [False] + [True] * (length - 1))


def test_examples_refuse_a_mask_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="2 ids but 1 mask"):
        Example([1, 2], [False])
    with pytest.raises(ValueError, match="first token"):
        Example([1, 2], [True, True])


def test_pad_by_hand() -> None:
    batch = pad([Example([7, 8, 9], [False, True, True]), Example([5, 0], [False, True])], pad_id=0)
    assert batch.ids_BT.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch.mask_BT.tolist() == [[False, True, True], [False, True, False]]  # of the zeros the real one
    assert batch.lengths_B.tolist() == [3, 2]
    assert batch.segments_BT is None
    assert batch.positions_BT is None
    assert (batch.ids_BT.dtype, batch.mask_BT.dtype, batch.lengths_B.dtype) == (torch.long, torch.bool, torch.long)
    assert batch.to("cpu").ids_BT.tolist() == batch.ids_BT.tolist()


def test_pad_of_packed_rows_by_hand() -> None:
    batch = pad([[example(1, 2), example(5, 3)], [example(9, 1)]], pad_id=99)
    assert batch.ids_BT.tolist() == [[1, 2, 5, 6, 7], [9, 99, 99, 99, 99]]
    assert batch.mask_BT.tolist() == [[False, True, False, True, True], [False] * 5]
    assert batch.segments_BT is not None
    assert batch.segments_BT.tolist() == [[1, 1, 2, 2, 2], [1, 0, 0, 0, 0]]
    assert batch.positions_BT is not None
    assert batch.positions_BT.tolist() == [[0, 1, 0, 1, 2], [0, 0, 0, 0, 0]]
    assert batch.lengths_B.tolist() == [5, 1]


def test_pack_by_hand() -> None:
    # Decreasing: 6 5 4 3 2 into rows of 10. 6 -> row 0 (4 free). 5 -> row 1 (5 free). 4 fits both, best in row 0
    # (0 free). 3 -> row 1 (2 free). 2 -> row 1 (0 free).
    rows = pack([example(i, n) for i, n in enumerate([2, 3, 4, 5, 6])], 10)
    assert [[len(e) for e in row] for row in rows] == [[4, 6], [2, 3, 5]]
    assert pack([], 10) == []
    with pytest.raises(ValueError, match="11 tokens does not fit a row of 10"):
        pack([example(0, 11)], 10)


@given(LENGTHS, st.integers(40, 64))
def test_packing_keeps_every_example_whole_and_apart(lengths: list[int], max_length: int) -> None:
    examples = [example(100 * i, n) for i, n in enumerate(lengths)]
    rows = pack(examples, max_length)
    assert sorted(e.ids[0] for row in rows for e in row) == [100 * i for i in range(len(lengths))]
    assert all(sum(len(e) for e in row) <= max_length for row in rows)
    if not rows:
        return
    batch = pad(rows, pad_id=0)
    assert batch.segments_BT is not None
    assert batch.positions_BT is not None
    for b, row in enumerate(rows):
        for number, one in enumerate(row, start=1):
            of_one = batch.segments_BT[b] == number
            assert batch.ids_BT[b][of_one].tolist() == one.ids
            assert batch.mask_BT[b][of_one].tolist() == one.mask
            assert batch.positions_BT[b][of_one].tolist() == list(range(len(one)))
        assert int((batch.segments_BT[b] == 0).sum()) == batch.ids_BT.shape[1] - int(batch.lengths_B[b])


@given(LENGTHS)
def test_packing_needs_few_rows(lengths: list[int]) -> None:
    rows = pack([example(0, n) for n in lengths], 40)
    # no two rows of a best fit would go into one, so all but one are more than half full
    assert len(rows) <= 2 * sum(lengths) / 40 + 1


@given(LENGTHS, st.integers(1, 9), st.integers(-3, 10), st.integers(0, 5))
def test_an_epoch_has_every_row_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_order(lengths, batch_size, seed, epoch)
    assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
    assert all(len(b) == batch_size for b in batches[:-1])
    assert len(batches) == -(-len(lengths) // batch_size)
    assert batches == epoch_order(lengths, batch_size, seed, epoch)


def test_epochs_and_seeds_differ_and_processes_agree() -> None:
    lengths = list(range(1, 101))
    orders = [epoch_order(lengths, 4, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    code = "from goodheart.data.batches import epoch_order; print(epoch_order(range(1, 101), 4, 0, 1))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(orders[1])


def test_an_epoch_groups_like_lengths_without_sorting_the_epoch() -> None:
    lengths = [(37 * i) % 640 for i in range(6400)]  # every length 0..639 ten times
    batches = epoch_order(lengths, 8, seed=0, epoch=0)
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 640 / 16  # at random it is about 500
    first = [max(lengths[i] for i in b) for b in batches[:400]]
    second = [max(lengths[i] for i in b) for b in batches[400:]]
    assert abs(sum(first) / 400 - sum(second) / 400) < 640 / 10  # neither half has the long ones


def test_the_short_last_batch_is_no_special_one() -> None:
    lengths = list(range(1, 12))  # 11 rows, batches of 10: one is left over
    left = {epoch_order(lengths, 10, seed=0, epoch=e)[-1][0] for e in range(60)}
    assert len(left) > 5  # would be one and the same, the shortest, if it were cut from the sorted rows


def test_micro_batches_by_hand() -> None:
    # Longest first: 9 | 5 5 (2 x 5 = 10, a third would be 15 > 12) | 4 2 2 (3 x 4 = 12) | 1
    assert micro_batches([2, 5, 9, 4, 5, 2, 1], 12) == [[2], [1, 4], [3, 0, 5], [6]]
    assert micro_batches([50], 12) == [[0]]  # longer than the budget: alone
    assert micro_batches([], 12) == []
    assert micro_batches([1, 1, 1], 12, at_least=2) == [[0, 1], [2]]
    assert micro_batches([1, 1], 12, at_least=5) == [[0], [1]]


@given(LENGTHS, st.integers(1, 100), st.integers(1, 8))
def test_micro_batches_keep_the_budget(lengths: list[int], max_tokens: int, at_least: int) -> None:
    pieces = micro_batches(lengths, max_tokens, at_least=at_least)
    assert sorted(chain.from_iterable(pieces)) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * max(lengths[i] for i in piece) <= max_tokens
    assert len(pieces) >= min(at_least, len(lengths))


@given(LENGTHS, st.integers(1, 5))
def test_shards_share_out_a_step(indices: list[int], world: int) -> None:
    shards = [shard(indices, rank, world) for rank in range(world)]
    assert sorted(chain.from_iterable(shards)) == sorted(indices)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_truncation_takes_the_end_and_puts_nothing_in_its_place() -> None:
    whole = Example([1, 2, 3, 4], [False, False, True, True], row=5)
    assert truncate(whole, 4) is whole
    assert truncate(whole, 3) == Example([1, 2, 3], [False, False, True], row=5)


def test_rows_whose_answer_is_cut_away_are_dropped_and_counted() -> None:
    late, early = Example([1, 2, 3], [False, False, True]), Example([4, 5, 6], [False, True, True])
    fitted = fits([late, early, early], 2)
    assert fitted.examples == [Example([4, 5], [False, True])] * 2
    assert fitted.truncated == 2
    assert fitted.dropped == [0]
    assert fits([late], 3).truncated == 0


def test_examples_need_no_torch_to_be_imported() -> None:
    modules = "sys, goodheart.data.batches, goodheart.data.template"
    code = f"import {modules}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
