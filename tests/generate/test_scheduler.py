"""Which prompt runs when, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from goodheart.errors import ModelError
from goodheart.generate.scheduler import Row, Scheduler, compact, moves, requests


def rows(*lengths: int, limit: int = 4) -> list[Row]:
    return [Row(i, [i] * n, limit) for i, n in enumerate(lengths)]


def indices(group: list[Row]) -> list[int]:
    return [row.index for row in group]


def test_longest_first_in_groups_of_similar_length() -> None:
    scheduler = Scheduler(rows(3, 40, 35, 4, 20), slots=8)
    assert indices(scheduler.next_group(0)) == [1, 2, 4]  # 20 is half of 40; 4 is not
    assert indices(scheduler.next_group(3)) == [3, 0]
    assert scheduler.next_group(5) == []
    assert len(scheduler) == 0


def test_a_group_fits_the_free_slots_and_the_token_budget() -> None:
    scheduler = Scheduler(rows(10, 10, 10, 10, 10, 10), slots=4, prefill_tokens=20)
    assert indices(scheduler.next_group(0)) == [0, 1]
    assert indices(scheduler.next_group(2)) == [2, 3]
    assert scheduler.next_group(4) == []
    assert indices(scheduler.next_group(3)) == [4]


def test_a_prompt_over_the_budget_still_runs_alone() -> None:
    scheduler = Scheduler(rows(50, 50), slots=4, prefill_tokens=20)
    assert indices(scheduler.next_group(0)) == [0]


def test_copies_of_a_prompt_count_once() -> None:
    copies = [Row(i, [7] * 10, 4) for i in range(5)]
    assert indices(Scheduler(copies, slots=8, prefill_tokens=10).next_group(0)) == [0, 1, 2, 3, 4]


def test_refill_waits_for_a_sixteenth_of_many_slots_but_not_of_few() -> None:
    many = Scheduler(rows(*[5] * 100), slots=64)
    assert many.next_group(61) == []
    assert len(many.next_group(60)) == 4
    few = Scheduler(rows(*[5] * 100), slots=8)
    assert len(few.next_group(7)) == 1
    last = Scheduler(rows(5), slots=64)
    assert len(last.next_group(63)) == 1  # nobody else to wait for


def test_compact_moves_the_last_rows_into_the_holes() -> None:
    assert compact([True, False, True, False, True]) == [0, 4, 2]
    assert compact([False, False, True]) == [2]
    assert compact([True, True]) == [0, 1]
    assert compact([False]) == []
    assert moves([0, 4, 2]) == ([1], [4])


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[1], []], "prompt 1 is empty"),
        ([[1], [1, 2, 3, 4]], "prompt 1 has 4 tokens, and with 5 new tokens it exceeds the limit of 8"),
        ([[1, 97]], "prompt 0 holds token id 97, but the model has ids 0 to 96"),
        ([[1, -3]], "prompt 0 holds token id -3"),
    ],
)
def test_impossible_prompts_are_named(prompts: list[list[int]], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        requests(prompts, [5] * len(prompts), 8, 97)


def test_a_prompt_may_fill_the_context_exactly() -> None:
    assert len(requests([[1, 2, 3]], [5], 8, 97)) == 1
    assert len(requests([[1] * 1000], [5], None, 97)) == 1
