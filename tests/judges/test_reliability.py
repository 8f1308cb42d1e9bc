"""Agreement with people, and the rulers printed beside it."""

from __future__ import annotations

import pytest

from goodheart.data.batches import Example
from goodheart.data.examples import Compared
from goodheart.judges.reliability import accuracy_by, pair_report, pairs_of, score_report, thumb_report

TOKENS = Example([1, 2], [False, True])


def judged(
    ranks: tuple[int, ...], words: tuple[int, ...], prompt: str, shown: tuple[int, ...] | None = None
) -> Compared:
    return Compared(tuple(TOKENS for _ in ranks), ranks, prompt_key=prompt, sizes=words, shown_order=shown)


def test_accuracy_weighs_each_prompt_once() -> None:
    # prompt a: three answers ranked 0 1 2 scored 3 1 2 -> pairs 0>1 right, 0>2 right, 1>2 wrong: 2/3
    # prompt b: one pair, wrong: 0.  Mean over prompts (2/3 + 0) / 2 = 1/3, while 2 of 4 pairs are right.
    items = [judged((0, 1, 2), (9, 5, 5), "a"), judged((1, 0), (1, 2), "b")]
    report = pair_report(items, [[3.0, 1.0, 2.0], [5.0, 4.0]])
    assert report["accuracy"] == pytest.approx(1 / 3)
    assert (report["prompts"], report["pairs"], report["ties"]) == (2, 4, 0)
    # longest: a: 9>5 right, 9>5 right, 5=5 half -> 2.5/3; b: the preferred one is longer: 1
    assert report["always_longest"] == pytest.approx((2.5 / 3 + 1) / 2)
    assert report["always_first"] is None
    assert report["accuracy_low"] < 1 / 3 < report["accuracy_high"]


def test_ties_are_counted_and_equal_scores_are_half_right() -> None:
    report = pair_report([judged((0, 0, 1), (1, 1, 1), "a")], [[1.0, 2.0, 1.0]])
    assert (report["pairs"], report["ties"]) == (2, 1)
    assert report["accuracy"] == pytest.approx(0.75)  # first pair equal scores, second right


def test_shown_first() -> None:
    # shown from left to right: answer 1, then answer 0. People preferred 0, which was shown second.
    assert pairs_of(judged((0, 1), (1, 1), "a", (1, 0)), [1.0, 0.0])[0].first == 0.0
    assert pair_report([judged((0, 1), (1, 1), "a", (0, 1))], [[1.0, 0.0]])["always_first"] == 1.0


def test_ratings_and_thumbs() -> None:
    assert score_report([1.0, 2.0, 3.0], [10.0, 20.0, 25.0])["spearman"] == pytest.approx(1.0)
    assert score_report([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])["spearman"] == pytest.approx(-1.0)
    found = thumb_report([1.0, 1.0, 0.0, 0.0], [2.0, -1.0, -2.0, -3.0])
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["auc"] == pytest.approx(1.0)  # every up above every down
    assert found["majority"] == 0.5


def test_accuracy_by_group() -> None:
    items = [judged((0, 1), (1, 1), "a"), judged((0, 1), (1, 1), "b"), judged((0, 1), (1, 1), "b")]
    items.append(judged((0, 0), (1, 1), "c"))  # a tie alone makes no group
    found = accuracy_by(items, [[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]], ["sum", "fact", "fact", "list"])
    assert set(found) == {"sum", "fact"}
    assert (found["sum"]["accuracy"], found["fact"]["accuracy"]) == (1.0, 0.5)
    assert (found["fact"]["prompts"], found["fact"]["pairs"]) == (1, 2)


def test_quarters_by_length_weigh_prompts() -> None:
    # four pairs, so one in each quarter, shortest first: 2 characters right, 4 wrong, 6 right, 8 wrong
    items = [judged((0, 1), (n, n), f"p{n}") for n in (4, 1, 3, 2)]
    rows = pair_report(items, [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])["by_length"]
    assert [row["from"] for row in rows] == [2, 4, 6, 8]
    assert [row["accuracy"] for row in rows] == [1.0, 0.0, 1.0, 0.0]
    assert rows[0]["accuracy_low"] < 1.0 == rows[0]["accuracy_high"]
