"""What a reward model is worth: agreement and probes, on judges whose faults are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from goodheart.data.records import Answer, Message, Prompt
from goodheart.evaluate.answers import Answers
from goodheart.evaluate.probes import PROBES, gibberish, listed
from goodheart.evaluate.reward_model import against_judge, against_labels, probe
from goodheart.judges.function import FunctionJudge

SAID = ["It is red. The sky is blue.", "Seven apples are left.", "I do not know him.", "Boil the water first."]


def judge(score: Callable[[str], float]) -> FunctionJudge:
    def function(prompts: list, completions: list, **columns: list) -> list[float]:
        return [score(said[-1]["content"]) for said in completions]

    return FunctionJudge(function, name="toy")


def asked(number: int, kind: str = "fact") -> Prompt:
    return Prompt(messages=(Message("user", f"Question {number}"),), meta={"kind": kind})


def probed(score: Callable[[str], float], kind: str = "fact") -> dict[str, dict]:
    prompts = [asked(i, kind) for i in range(len(SAID) * 10)]
    answers = [[Answer(SAID[i % len(SAID)])] for i in range(len(prompts))]
    return {row["probe"]: row for row in probe(judge(score), prompts, answers, resamples=1000)}


def test_a_judge_of_length_falls_for_what_is_longer() -> None:
    found = probed(len)
    assert {name for name, row in found.items() if row["flagged"]} == {
        "padding", "repetition", "flattery", "list", "please", "question marks", "refusal"
    }  # fmt: skip
    assert found["padding"]["rises"]["value"] == 1.0
    assert "the score rises by 31.48 standard" in found["padding"]["words"]
    assert not found["empty"]["flagged"]
    assert found["empty"]["change"]["high"] < 0


def test_the_change_is_in_standard_deviations() -> None:
    # scores are the lengths 27 22 18 21: mean 22, standard deviation sqrt((25 + 0 + 16 + 1) / 4) = 3.2404
    # "???" with a space makes every answer 4 longer: 4 / 3.2404 = 1.2344
    change = probed(len)["question marks"]["change"]
    assert change["value"] == pytest.approx(4 / 3.2404, rel=1e-4)
    assert change["n"] == 40


def test_a_rise_that_would_teach_nothing_is_not_flagged() -> None:
    # lengths differ by 3.2404; a rise of 0.3 for "???" is 0.093 of it, one of 0.35 is 0.108
    for rise, flagged in ((0.3, False), (0.35, True)):
        row = probed(lambda text, rise=rise: len(text.replace(" ???", "")) + rise * ("???" in text))["question marks"]
        assert row["change"]["value"] == pytest.approx(rise / 3.2404, rel=1e-4)
        assert row["change"]["low"] > 0
        assert row["flagged"] is flagged


def test_a_rise_that_is_sure_alone_but_not_among_all_probes_is_not_flagged() -> None:
    """27 of 40 answers gain a standard deviation by "???", 13 lose one: 2.4 standard errors; 9 probes need 2.8."""

    def score(asked_: str, text: str) -> float:
        gain = 3.24 if int(asked_.split()[-1]) < 27 else -3.24
        return len(text.replace(" ???", "")) + gain * ("???" in text)

    def function(prompts: list, completions: list, **columns: list) -> list[float]:
        both = zip(prompts, completions, strict=True)
        return [score(asked_[-1]["content"], said[-1]["content"]) for asked_, said in both]

    model = FunctionJudge(function, name="toy")
    answers = [[Answer(SAID[i % len(SAID)])] for i in range(40)]
    rows = probe(model, [asked(i) for i in range(40)], answers, resamples=2000)
    row = next(row for row in rows if row["probe"] == "question marks")
    assert row["change"]["value"] == pytest.approx(0.35, abs=1e-3)
    assert row["change"]["low"] > 0
    assert not row["flagged"]


def test_a_sound_judge_is_not_flagged() -> None:
    rows = probed(lambda text: -abs(len(text) - len(next((s for s in SAID if s in text), text * 5))))
    assert [name for name, row in rows.items() if row["flagged"]] == []
    assert rows["padding"]["words"] == ""


def test_a_probe_that_suits_the_prompt_is_left_out() -> None:
    found = probed(lambda text: float("cannot" in text), kind="harmful")
    assert found["refusal"]["change"]["n"] == 0
    assert not found["refusal"]["flagged"]
    assert probed(lambda text: float("cannot" in text))["refusal"]["flagged"]


def test_probes_speak_the_language_of_the_answer() -> None:
    changes = {one.name: one.change for one in PROBES}
    assert changes["flattery"]("天空是蓝色的。").startswith("问得真好")
    assert changes["flattery"]("Blue.") == "What a great question, you are so clever! Blue."
    assert listed("It is red. Is it? 是的。好！") == "- It is red.\n- Is it?\n- 是的。\n- 好！"
    assert sorted(gibberish("abcdef")) == list("abcdef")
    assert gibberish("abcdef") == gibberish("abcdef") != "abcdef"


def test_agreement_with_the_judge_by_hand() -> None:
    """Truth is the number of a's; the model counts letters. Two models, two prompts of two kinds."""
    models = {"base": [["a", "bbb"], ["aa", "a"]], "ppo": [["aaa", "b"], ["bbbb", "a"]]}
    found = Answers(
        [asked(0, "fact"), asked(1, "sum")],
        {name: [[Answer(text) for text in own] for own in prompts] for name, prompts in models.items()},
        {},
    )
    truth = {name: [[float(t.count("a")) for t in own] for own in prompts] for name, prompts in models.items()}
    report = against_judge(judge(len), found, truth, [0, 1])
    # base: prompt 0 wrong (a 1 letter, bbb 3), prompt 1 right; ppo: prompt 0 right, prompt 1 wrong
    assert report["by_model"]["base"]["accuracy"] == 0.5
    assert report["by_model"]["ppo"]["accuracy"] == 0.5
    # prompt 0, all four: a 1/1, bbb 0/3, aaa 3/3, b 0/1 (truth/letters); untied pairs: a>bbb wrong, aaa>a right,
    # a>b half, aaa>bbb half, aaa>b right -> 3/5; prompt 1: aa 2/2, a 1/1, bbbb 0/4, a 1/1: aa>a right twice,
    # aa>bbbb wrong, a>bbbb wrong twice -> 2/5
    assert report["by_kind"]["fact"]["accuracy"] == pytest.approx(3 / 5)
    assert report["by_kind"]["sum"]["accuracy"] == pytest.approx(2 / 5)
    assert report["accuracy"] == pytest.approx(0.5)
    # the judge's gaps of the ten untied pairs: six of 1, two of 2 and two of 3
    assert [row["pairs"] for row in report["by_margin"]] == [2, 3, 2, 3]
    assert [(row["from"], row["to"]) for row in report["by_margin"]] == [(1, 1), (1, 1), (1, 2), (2, 3)]
    # best of two by letters: base bbb (0 a's) and aa (2), so 1.0 on average, where one sample is worth (0.5 + 1.5) / 2
    curve = report["best_of_n"]["base"]
    assert [(row["n"], row["truth"]) for row in curve] == [(1, pytest.approx(1.0)), (2, pytest.approx(1.0))]
    assert [row["truth"] for row in report["best_of_n"]["ppo"]] == pytest.approx([1.0, 1.5])  # aaa and bbbb


def test_agreement_with_people(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say\n", "completions": ["long answer", "no"], "ranks": [0, 1], "kind": "fact"},
        {"prompt": "Tell\n", "completions": ["long answer", "no"], "ranks": [1, 0], "kind": "sum"},
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = FunctionJudge(lambda prompts, completions, **_: [float(len(c)) for c in completions], name="length")
    report = against_labels(model, tmp_path / "labels.jsonl")
    assert (report["accuracy"], report["always_longest"]) == (0.5, 0.5)
    assert {kind: row["accuracy"] for kind, row in report["by_kind"].items()} == {"fact": 1.0, "sum": 0.0}
    assert [row["pairs"] for row in report["by_source"].values()] == [2]
