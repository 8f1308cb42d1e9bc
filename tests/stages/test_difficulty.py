"""Measuring difficulty: pass rates, spreads and margins by hand, and what becomes of rows that cannot be measured."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from goodheart.data.formats import read_rows, write_rows
from goodheart.errors import DataError
from goodheart.judges.difficulty import histogram, middles, of_answers, prompts_report, ranking_margin, reliability
from goodheart.loop.step import results_of
from goodheart.stages.difficulty import _ABOUT_ANSWERS, DifficultyConfig, Measured, difficulty
from goodheart.stages.score import ScoreConfig, score
from tests.stages import commands

ANSWERS: list[dict[str, Any]] = [
    {"prompt": "a", "task": "x", "completions": ["1", "2", "3", ""], "scores": [0, 1, 1, 0], "models": ["m"] * 4},
    {"prompt": "b", "task": "x", "completions": ["1", "2"], "scores": [1, 1], "finish": ["eos", "length"]},
    {"prompt": "c", "task": "y", "completions": ["1", "2", "3"], "scores": [0, None, 0]},
]


def measured(rows: list[Any], tmp_path: Path, **settings: Any) -> tuple[list[dict[str, Any]], Measured]:
    data = commands.write_rows(tmp_path / "scored.jsonl", rows)
    found = difficulty(DifficultyConfig(data=str(data), out=tmp_path / "out.jsonl", quiet=True, **settings))
    return [row.data for row in read_rows(found.out)], found


# Answers ---------------------------------------------------------------------------------------------------------


def test_prompts_by_hand(tmp_path: Path) -> None:
    rows, found = measured(ANSWERS, tmp_path, bar=0.5, kind="task")
    half = (4 * 0.25 / 3) ** 0.5  # of 0 1 1 0: four squared distances of 1/4, divided by 3
    expected = [("a", 0.5, 0.5, half, 4), ("b", 1.0, 1.0, 0.0, 2), ("c", 0.0, 0.0, 0.0, 2)]
    assert [row["prompt"] for row in rows] == ["a", "b", "c"]
    for row, (_, rate, mean, std, count) in zip(rows, expected, strict=True):
        assert (row["pass_rate"], row["reward_mean"], row["answers_measured"]) == (rate, mean, count)
        assert row["reward_std"] == pytest.approx(std)
        assert set(row) == {"prompt", "task", "pass_rate", "reward_mean", "reward_std", "answers_measured"}
    results = found.results
    assert (results["prompts"], results["answers"], results["bar"]) == (3, 8, 0.5)
    assert results["pass_rate"] == pytest.approx(0.5)
    assert [results[name] for name in ("all_pass", "none_pass", "no_spread")] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert results["reward_std"] == pytest.approx(half / 3)
    # of four answers 0, 1, 2, 3 or 4 pass
    assert results["histogram"]["counts"] == [1, 0, 1, 0, 1]
    assert middles(results["histogram"]) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert results["kinds"]["x"]["pass_rate"] == 0.75
    assert results["kinds"]["y"]["prompts"] == 1
    assert json.loads((tmp_path / "out.difficulty.json").read_text()) == results
    told = found.summary()
    assert "3 prompts, 8 answers; a pass is a score over 0.5" in told
    assert "all answers pass: 33.3% of the prompts; none: 33.3%; no spread of scores: 66.7%" in told
    assert "  x: 2 prompts, pass rate 0.750" in told


def test_without_a_bar_it_is_the_mean(tmp_path: Path) -> None:
    rows, found = measured([{"prompt": "a", "completions": ["1", "2", "3"], "scores": [0.0, 1.0, 5.0]}], tmp_path)
    assert found.results["bar"] == 2.0
    assert rows[0]["pass_rate"] == pytest.approx(1 / 3)


def test_a_pass_is_over_the_bar() -> None:
    assert of_answers([0.5, 0.5, 0.6], bar=0.5).pass_rate == pytest.approx(1 / 3)
    assert of_answers([2.0], bar=0.5).std is None
    assert of_answers([2.0, 2.0 + 1e-7], bar=0.5).flat
    assert not of_answers([2.0, 2.1], bar=0.5).flat


def test_rows_that_ask_the_same_are_one_prompt(tmp_path: Path) -> None:
    rows, found = measured(
        [
            {"prompt": "a", "task": "x", "completions": ["1", "2"], "scores": [0, 1], "settings": {"seed": 0}},
            {"prompt": "a", "task": "y", "completions": ["1", "2"], "scores": [3, 3]},  # other columns: another prompt
            {"prompt": "a", "task": "x", "completion": "3", "score": 4.0, "round": "one"},  # as rejection writes it
            {"prompt": "A", "task": "x", "completion": "3", "score": 4.0},  # to the letter
        ],
        tmp_path,
        min_answers=1,
    )
    assert [(r["prompt"], r["task"], r["answers_measured"]) for r in rows] == [
        ("a", "x", 3),
        ("a", "y", 2),
        ("A", "x", 1),
    ]
    assert rows[0]["reward_mean"] == pytest.approx(5 / 3)
    assert rows[2]["reward_std"] is None
    assert not found.skipped.total


def test_columns_named_as_those_of_answers_are_left_out_as_documented(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "curriculum.md").read_text()
    told = text[text.index("Columns of these names") : text.index("and the four above")]
    names = re.findall(r"`(\w+)`", told)
    assert {*names, "pass_rate", "reward_mean", "reward_std", "answers_measured"} == set(_ABOUT_ANSWERS)
    same = {"prompt": "a", "completions": ["1", "2"], "scores": [0, 1], "task": "x"}
    rows, _ = measured([same | {"round": "one", "model": "m"}, same | {"round": "two", "tokens": 3}], tmp_path)
    assert [(set(row) & {"round", "model", "tokens", "task"}, row["answers_measured"]) for row in rows] == [
        ({"task"}, 4)
    ]


def test_what_cannot_be_measured_is_listed(tmp_path: Path) -> None:
    rows, found = measured(
        [
            {"prompt": "a", "completions": ["1", "2"], "scores": [0, 1]},
            {"prompt": "b", "completions": ["1", "2"]},
            {"prompt": "c", "completions": ["1", "2"], "scores": [0]},
            {"prompt": "d", "completions": ["1", "2"], "scores": [0, None]},
            {"prompt": "e"},
            "{torn",
            {"prompt": "f", "completion": "1"},
            {"prompt": "g", "completions": ["1", "2"], "scores": [0, "many"]},
        ],
        tmp_path,
    )
    assert [row["prompt"] for row in rows] == ["a"]
    assert found.listed == tmp_path / "out.skipped.jsonl"
    listed = {json.loads(line)["where"]: json.loads(line)["reason"] for line in found.listed.read_text().splitlines()}
    assert set(listed) == {f"{tmp_path / 'scored.jsonl'}:{line}" for line in range(2, 9)}
    reasons = [listed[f"{tmp_path / 'scored.jsonl'}:{line}"] for line in (2, 3, 4, 5, 7)]
    assert reasons == [
        "no score: let `goodheart score` write them first",
        "1 scores for 2 answers",
        "fewer than 2 answers with a score",
        "the row has no answer",
        "no score: let `goodheart score` write them first",
    ]
    assert "set aside 7" in found.summary()


@pytest.mark.parametrize("score", ["Infinity", "-Infinity", '"inf"', "1e200", "1" + "0" * 400])
def test_infinite_scores_are_set_aside(tmp_path: Path, score: str) -> None:
    answers = [
        '{"prompt": "a", "completions": ["1", "2"], "scores": [0, 1]}',
        f'{{"prompt": "b", "completions": ["1", "2"], "scores": [0, {score}]}}',
    ]
    pairs = [
        '{"prompt": "a", "chosen": "x", "rejected": "y", "score_chosen": 2, "score_rejected": 1}',
        f'{{"prompt": "b", "chosen": "x", "rejected": "y", "score_chosen": {score}, "score_rejected": 1}}',
    ]
    for rows in (answers, pairs):
        data = tmp_path / "scored.jsonl"
        data.write_text("\n".join(rows))
        found = difficulty(DifficultyConfig(data=str(data), out=tmp_path / "out.jsonl", quiet=True))
        assert [row.data["prompt"] for row in read_rows(found.out)] == ["a"]
        assert found.listed is not None
        listed = json.loads(found.listed.read_text())
        assert listed["where"] == f"{data}:2"
        assert listed["reason"].startswith(("score cannot be", "score must be a number"))


def test_nothing_to_measure_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable row with scores; set aside: 1 x no score"):
        measured([{"prompt": "b", "completions": ["1", "2"]}], tmp_path)
    with pytest.raises(DataError, match=r"kind: no row has a column `sort`; there are prompt"):
        measured([{"prompt": "b", "completions": ["1", "2"], "scores": [0, 1]}], tmp_path, kind="sort")
    pair = {"prompt": "a", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": 0}
    with pytest.raises(DataError, match=r"scored.jsonl:2: the data hold answers and pairs"):
        measured([ANSWERS[0], pair], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scored.jsonl"]


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    data = commands.write_rows(tmp_path / "scored.jsonl", ANSWERS)
    with pytest.raises(ValidationError, match=r"`out`: .*scored.jsonl is what is read; choose another file"):
        DifficultyConfig(data=str(data), out=data)
    with pytest.raises(ValidationError, match="`out`: unknown kind of file for rows"):
        DifficultyConfig(data=str(data), out=tmp_path / "out.txt")


def test_a_pipeline_keeps_what_a_report_and_a_gate_read(tmp_path: Path) -> None:
    _, found = measured(ANSWERS, tmp_path, bar=0.5, kind="task")
    assert results_of(found) == found.results


def test_a_column_of_many_values_does_not_fill_the_screen(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "task": f"t{i:02}", "completions": ["1", "2"], "scores": [0, 1]} for i in range(23)]
    _, found = measured(rows, tmp_path, kind="task")
    assert len(found.results["kinds"]) == 23
    told = found.summary().splitlines()
    assert [line[:5] for line in told if line.startswith("  t")] == [f"  t{i:02}" for i in range(20)]
    assert "  and 3 more values of that column" in told


def test_reliability_by_hand_and_against_what_is_true() -> None:
    # means 0.5 and 1 with variance 1/8; noise: (1/3) / 4 and 0, their mean 1/24. 1 - (1/24) / (1/8) = 2/3
    found = reliability([of_answers([0, 1, 1, 0], 0.5), of_answers([1, 1], 0.5)])
    assert found == pytest.approx(2 / 3)
    assert reliability([of_answers([0, 1], 0.5)]) is None
    assert reliability([of_answers([0, 1], 0.5), of_answers([0, 1], 0.5)]) is None
    # means of equal scores differ by rounding alone: 0.1 * 3 / 3 is a little over 0.1
    equal = [of_answers([0.1] * count, 0.5) for count in (2, 3, 6, 7)]
    assert reliability(equal) is None
    shaken = [of_answers([0.1, 0.1], 0.5), of_answers([0.1 + 1e-12, 0.1 + 1e-12], 0.5)]
    assert reliability(shaken) is None
    # prompts with true means of variance 1, answers around them of variance 4, 8 of each: 1 / (1 + 4 / 8) = 2/3
    chance = random.Random(0)
    drawn = []
    for _ in range(3000):
        true = chance.gauss(0, 1)
        drawn.append(of_answers([chance.gauss(true, 2) for _ in range(8)], 0.0))
    assert reliability(drawn) == pytest.approx(2 / 3, abs=0.03)
    # prompts that are all alike: the order of their means is noise
    alike = [of_answers([chance.gauss(0, 2) for _ in range(8)], 0.0) for _ in range(3000)]
    assert reliability(alike) == pytest.approx(0, abs=0.08)


def test_histogram_takes_in_both_ends() -> None:
    found = histogram([0.0, 0.1, 0.3, 1.0], 0.0, 1.0)
    assert found["counts"] == [1, 1, 0, 1, 0, 0, 0, 0, 0, 1]
    assert middles(found) == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95])
    assert sum(histogram([2.0, 2.0], 2.0, 2.0)["counts"]) == 2


@pytest.mark.parametrize(("answers", "bins"), [(1, 2), (3, 4), (10, 11), (11, 10), (64, 10)])
def test_no_bin_of_pass_rates_is_empty_because_no_rate_falls_into_it(answers: int, bins: int) -> None:
    every = [of_answers([1.0] * passed + [0.0] * (answers - passed), 0.5) for passed in range(answers + 1)]
    counts = prompts_report(every, 0.5, {})["histogram"]["counts"]
    assert len(counts) == bins
    assert min(counts) >= 1
    assert sum(counts) == answers + 1


# Pairs -----------------------------------------------------------------------------------------------------------


def test_margins_by_hand(tmp_path: Path) -> None:
    rows, found = measured(
        [
            {"prompt": "a", "chosen": "x", "rejected": "y", "score_chosen": 2.0, "score_rejected": 0.5, "task": "q"},
            {"prompt": "a", "response_0": "x", "response_1": "y", "better_response_id": 1, "score_chosen": 0.0,
             "score_rejected": 1.0},
            # 3 over 1 and 2, 1 and 2 tied: (5 - 1 + 5 - 2) / 2
            # (a column of pairs says nothing of three)
            {"prompt": "b", "completions": ["1", "2", "3"], "ranks": [1, 1, 0], "scores": [1.0, 2.0, 5.0],
             "score_chosen": None},
            {"prompt": "b", "completions": ["1", "2", "3"], "ranks": [1, 2, 0], "score_chosen": 1.0},
            {"prompt": "b", "completions": ["1", "2"], "ranks": [0, 0], "scores": [1.0, 2.0]},
            {"prompt": "c", "chosen": "x", "rejected": "y", "score_chosen": 2.0, "score_rejected": None},
            {"prompt": "d", "completions": ["1", "2"], "ranks": [0, 1]},
        ],
        tmp_path,
    )  # fmt: skip
    assert [row["margin_measured"] for row in rows] == [1.5, -1.0, 3.5]
    assert rows[0]["chosen"] == "x"
    assert rows[0]["task"] == "q"
    assert found.results["pairs"] == 3
    assert found.results["margin"] == pytest.approx(4 / 3)
    assert found.results["against"] == pytest.approx(1 / 3)
    assert dict(found.skipped.counts) == {
        "all answers tie: nothing is preferred to anything": 1,
        "an answer of the pair has no score": 1,
        "no score: let `goodheart score` write them first": 2,
    }
    assert "3 rows, mean margin 1.333, the judge prefers the other 33.3%" in found.summary()


def test_a_ranking_is_all_its_pairs() -> None:
    ranks, scores = [2, 0, 1, 1], [0.3, 1.0, -2.0, 0.5]
    leads = [
        scores[i] - scores[j]
        for i in range(4)
        for j in range(4)
        if ranks[i] < ranks[j]  # by enumeration: (1,0) (1,2) (1,3) (2,0) (3,0)
    ]
    assert len(leads) == 5
    assert ranking_margin(ranks, scores) == pytest.approx(statistics.fmean(leads))
    assert math.isclose(ranking_margin([1, 0], [3.0, 1.0]), -2.0)


# From start to end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_what_score_writes_is_read(tmp_path: Path, suffix: str) -> None:
    data = tmp_path / f"d{suffix}"
    write_rows(data, [{"prompt": p, "completions": ["x" * n, "y"], "task": "t"} for p, n in (("a", 3), ("b", 1))])
    scored = tmp_path / f"s{suffix}"
    score(ScoreConfig(reward="tests.stages.judged:length", data=str(data), out=scored, quiet=True))
    found = difficulty(DifficultyConfig(data=str(scored), out=tmp_path / f"out{suffix}", bar=2.0, quiet=True))
    rows = [row.data for row in read_rows(found.out)]
    assert [float(row["pass_rate"]) for row in rows] == [0.5, 0.0]
    assert [float(row["reward_std"]) for row in rows] == pytest.approx([2**0.5, 0.0])


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    data = commands.write_rows(tmp_path / "d.jsonl", ANSWERS)
    process = commands.start(
        "difficulty", "--data", data, "--out", tmp_path / "p.jsonl", "--bar", "0.5", "--kind", "task"
    )
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert output.startswith("3 prompts, 8 answers; a pass is a score over 0.5")
    assert (
        output.splitlines()[-1] == f"written to {tmp_path / 'p.jsonl'}, the figures to {tmp_path / 'p.difficulty.json'}"
    )
