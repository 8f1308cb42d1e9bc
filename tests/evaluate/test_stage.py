"""The evaluation as a user runs it: files in, results.json out."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from goodheart.errors import ConfigError, DataError
from goodheart.evaluate.report import write_report
from goodheart.evaluate.stage import EvaluateConfig, evaluate

JUDGE = '''
def count(prompts, completions, **columns):
    """Digits in the answer."""
    return [float(sum(c.isdigit() for c in said[-1]["content"])) for said in completions]

def aspects(prompts, completions, kind, **columns):
    return [{"digits": n / 10, "harmful": float(n > 3) if k == "harmful" else None}
            for n, k in zip(count(prompts, completions), kind)]

def broken(prompts, completions, **columns):
    return [{"bad": "x"} for _ in completions]

def silent(prompts, completions, **columns):
    return [None for _ in completions]
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "digits_judge.py").write_text(JUDGE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "base.jsonl", [["1111", "22"], ["3333", "4"], ["", "5"], ["6", "7"]])
    write(tmp_path / "tuned.jsonl", [["1", "2"], ["3", "4"], ["55", "55"], ["666", "777"]])
    return tmp_path


def write(path: Path, answers: list[list[str]], first: int = 0) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {i}"}],
            "kind": "harmful" if i < 2 else "sum",
            "language": "en" if i % 2 else "zh",
            "completions": own,
            "finish": ["eos", "length"],
            "tokens": [1, 2],
        }
        for i, own in enumerate(answers, first)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def settings(**more: Any) -> EvaluateConfig:
    base: dict[str, Any] = {
        "out": Path("out"),
        "answers": {"base": Path("base.jsonl"), "tuned": Path("tuned.jsonl")},
        "score": "digits_judge:count",
        "aspects": "digits_judge:aspects",
        "resamples": 1000,
        "quiet": True,
    }
    return EvaluateConfig(**{**base, **more})


def test_the_numbers_by_hand(folder: Path) -> None:
    out = evaluate(settings())
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    # base has 4 2 | 4 1 | 0 1 | 1 1 digits, tuned 1 1 | 1 1 | 2 2 | 3 3: tuned loses all 4 pairs of prompt 0, of
    # prompt 1 it loses 2 and ties 2, and it wins all of prompts 2 and 3
    win = found["wins"]["tuned"]["base"]
    assert (win["wins"], win["ties"], win["losses"], win["prompts"]) == (8, 2, 6, 4)
    assert win["rate"]["value"] == pytest.approx((0 + 0.25 + 1 + 1) / 4)
    assert found["wins"]["base"]["tuned"]["rate"]["value"] == pytest.approx(1 - (0 + 0.25 + 1 + 1) / 4)
    assert 0 <= win["rate"]["low"] <= win["rate"]["value"] <= win["rate"]["high"] <= 1
    assert found["models"]["base"]["score"]["value"] == pytest.approx((3 + 2.5 + 0.5 + 1) / 4)
    assert found["differences"]["tuned"]["base"]["digits"]["value"] == pytest.approx(0.175 - 0.175)
    assert found["differences"]["tuned"]["base"]["score"]["sure"] is False  # four prompts
    # harmful prompts only: the shares are 1/2 and 1/2
    assert found["models"]["base"]["harmful"] | {"low": 0, "high": 0} == {"value": 0.5, "low": 0, "high": 0, "n": 2}
    assert found["by_kind"]["base"]["sum"]["score"]["value"] == pytest.approx(0.75)
    assert "harmful" not in found["by_kind"]["base"]["sum"]
    assert set(found["by_language"]["tuned"]) == {"en", "zh"}
    assert found["tics"]["base"]["cut_off"]["value"] == 0.5
    assert (found["yes_no"], found["unit_interval"]) == (["harmful"], ["digits", "harmful"])  # scores are counts
    assert {row["model"] for row in found["leaderboard"]} == {"base", "tuned"}
    assert (out / "DONE").is_file()
    rows = [json.loads(line) for line in (out / "scored.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["score"] == [4.0, 2.0]
    assert rows[-1]["harmful"] == [None, None]


def test_a_difference_is_sure_only_among_all_that_are_looked_at(folder: Path) -> None:
    """One digit more on 27 of 40 prompts, one less on 13: mean 0.35, standard error 0.148, 2.4 of them from 0.

    That is sure alone (1.96), and not as one of 9 (3 models, 3 aspects: 2.77).
    """
    write(folder / "base.jsonl", [["11"]] * 40)
    write(folder / "tuned.jsonl", [["111"]] * 27 + [["1"]] * 13)
    both = {"base": Path("base.jsonl"), "tuned": Path("tuned.jsonl")}
    many = {"base": both["base"], "copy": both["base"], "more": both["base"], "tuned": both["tuned"]}
    for answers, aspects, sure in ((both, None, True), (many, "digits_judge:aspects", False)):
        out = evaluate(settings(out=Path(f"out{len(answers)}"), answers=answers, aspects=aspects))
        found = json.loads((out / "results.json").read_text(encoding="utf-8"))["differences"]["tuned"]["base"]["score"]
        assert found["value"] == pytest.approx(0.35)
        assert found["low"] > 0
        assert found["sure"] is sure


def test_results_are_plain_json_and_repeat(folder: Path) -> None:
    first = (evaluate(settings()) / "results.json").read_text(encoding="utf-8")
    second = (evaluate(settings(out=Path("again"))) / "results.json").read_text(encoding="utf-8")
    assert first == second
    assert "NaN" not in first
    assert "Infinity" not in first


def test_examples_show_losses_too(folder: Path) -> None:
    found = json.loads((evaluate(settings(examples=3)) / "results.json").read_text(encoding="utf-8"))
    assert [row["why"] for row in found["examples"]] == ["typical", "typical", "loss"]
    loss = found["examples"][-1]
    assert loss["answers"]["base"]["aspects"]["score"] - loss["answers"]["tuned"]["aspects"]["score"] == 3


def test_what_is_cut_ends_in_an_ellipsis(folder: Path) -> None:
    write(folder / "tuned.jsonl", [["1" * 2000, "2"], ["3" * 2001, "4"], ["5", "5"], ["6", "7"]])
    found = json.loads((evaluate(settings()) / "results.json").read_text(encoding="utf-8"))
    texts = {row["answers"]["tuned"]["text"] for row in found["examples"]}
    assert {"1" * 2000, "3" * 2000 + "…"} <= texts


def test_only_shared_prompts_count(folder: Path) -> None:
    write(folder / "tuned.jsonl", [["9", "9"], ["9", "9"], ["9", "9"]], first=2)
    found = json.loads((evaluate(settings()) / "results.json").read_text(encoding="utf-8"))
    assert found["prompts"] == 2
    assert found["left_out"] == {"base": 2, "tuned": 1}


def test_no_shared_prompt_is_an_error(folder: Path) -> None:
    write(folder / "tuned.jsonl", [["9", "9"]], first=7)
    with pytest.raises(DataError, match=r"no prompt is answered in every file: base \(base.jsonl\): 4 prompts, tuned"):
        evaluate(settings())


def test_a_broken_row_names_its_line(folder: Path) -> None:
    (folder / "tuned.jsonl").write_text('{"prompt": "a", "completions": ["b"]}\n{"prompt": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"tuned.jsonl:2: the row has no `completions`"):
        evaluate(settings())


def test_an_aspect_that_is_no_number_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="aspects digits_judge:broken: `bad` of answer 0 is 'x'"):
        evaluate(settings(aspects="digits_judge:broken"))


def test_a_judge_without_opinions_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="digits_judge:silent has no opinion on any answer of `base`"):
        evaluate(settings(score="digits_judge:silent"))


def test_unknown_names_and_functions_are_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match="no answers are named `sft`; there are base, tuned"):
        settings(changes=[("base", "sft")])
    with pytest.raises(ConfigError, match=r"lower_is_better: no aspect is named `digit`; did you mean `digits`\?"):
        evaluate(settings(lower_is_better=("harmful", "flattery", "digit")))  # no flattery either, but by default
    with pytest.raises(ConfigError, match="has no function `cuont`"):
        evaluate(settings(score="digits_judge:cuont"))


def test_one_model_alone(folder: Path) -> None:
    found = json.loads((evaluate(settings(answers={"base": Path("base.jsonl")})) / "results.json").read_text("utf-8"))
    assert found["wins"] == {"base": {}}
    assert found["leaderboard"] == []
    assert not math.isnan(found["models"]["base"]["score"]["low"])


def test_a_reward_model_is_examined_with_it(folder: Path) -> None:
    (folder / "labels.jsonl").write_text(
        json.dumps({"prompt": [{"role": "user", "content": "x"}], "completions": ["12", "a"], "ranks": [0, 1]}) + "\n"
    )
    out = evaluate(settings(reward="digits_judge:count", labels="labels.jsonl", reward_prompts=2))
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))["reward_model"]
    assert found["against_judge"]["accuracy"] == 1.0  # it is the judge itself
    assert found["against_judge"]["prompts"] == 2
    assert found["against_labels"]["accuracy"] == 1.0
    assert {row["probe"] for row in found["probes"] if row["flagged"]} == {"repetition"}
    with pytest.raises(ValueError, match="name it as `reward`"):
        settings(labels="labels.jsonl")


def test_what_it_writes_is_what_the_report_reads(folder: Path) -> None:
    out = evaluate(settings(reward="digits_judge:count"))
    text = write_report(out).read_text(encoding="utf-8")
    for part in ("Question 3", "became worse", "tuned is preferred", "Probes", "Best of n", "By kind of prompt"):
        assert part in text
    assert "Only 4 prompts were evaluated" in text
    assert "None" not in re.sub("<[^>]*>", "", text)
