"""The benchmark of aggregation: the job, and our side of it."""

from bench.aggregation_job import accuracy, goodheart, problem


def test_accuracy_by_hand() -> None:
    # of the pairs 0-1, 0-2 and 1-2 the last is the wrong way round
    assert accuracy({0: 0.0, 1: 2.0, 2: 1.0}, [0.0, 1.0, 2.0]) == 2 / 3


def test_our_side_beats_chance_with_few_comparisons() -> None:
    given = problem(3000, seed=0)
    assert problem(3000, seed=0) == given
    found = goodheart(given["rows"])()
    assert 0.7 < accuracy(found, given["scores"]) < 0.95
