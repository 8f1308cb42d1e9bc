"""What is said at the top of a report, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from goodheart.evaluate.cautions import cautions
from goodheart.evaluate.runs import read_story
from goodheart.evaluate.summary import Summary, summarise
from goodheart.evaluate.wording import duration, fixed, mark, with_interval
from tests.evaluate.stories import evaluation, measure, record, write_run


def told(tmp_path: Path, found: dict[str, Any] | None = None, **ppo: Any) -> Summary:
    if found is not None:
        write_run(tmp_path / "evaluate", "evaluate", results=found)
    if ppo:
        write_run(tmp_path / "ppo", "ppo", **ppo)
    return summarise(read_story(tmp_path))


@pytest.mark.parametrize(
    ("over_sft", "over_base", "headline", "tone"),
    [
        (0.64, 0.8, "ppo is better than sft and base", "good"),
        (0.3, 0.2, "ppo is worse than sft and base", "bad"),
        (0.52, 0.8, "ppo: not clearly different from sft, better than base", "plain"),
        (0.3, 0.8, "ppo: worse than sft, better than base", "bad"),
    ],
)
def test_the_headline(tmp_path: Path, over_sft: float, over_base: float, headline: str, tone: str) -> None:
    found = evaluation()
    found["wins"]["ppo"] = {"base": record(over_base), "sft": record(over_sft)}
    summary = told(tmp_path, found)
    assert (summary.headline, summary.tone) == (headline, tone)


def test_tiles_are_coloured_by_what_is_sure(tmp_path: Path) -> None:
    found = evaluation()
    summary = told(tmp_path, found)
    harmful = next(tile for tile in summary.tiles if tile.label.startswith("harmful"))
    assert (harmful.value, harmful.tone) == ("0 %", "good")  # less of what should be low
    assert harmful.note.startswith("60 % with base")
    found["differences"]["ppo"]["base"]["harmful"] = measure(0.2)
    (rate,) = [tile for tile in summary.tiles if "over sft" in tile.label]
    # 10 of 16 pairs of answers won, 1 tied: 62.5 %, 6.25 %
    assert (rate.value, rate.label) == ("64 %", "win rate over sft (ties count half; 62 % won, 6.2 % tied)")
    (tmp_path / "worse").mkdir()
    tones = {tile.label: tile.tone for tile in told(tmp_path / "worse", found).tiles}
    assert tones["harmful answers to harmful requests"] == "bad"


def test_what_is_not_sure_among_all_that_was_looked_at_is_not_told(tmp_path: Path) -> None:
    found = evaluation()
    for start in ("base", "sft"):
        found["differences"]["ppo"][start]["concise"]["sure"] = False
        found["differences"]["ppo"][start]["harmful"]["sure"] = False
    summary = told(tmp_path, found)
    assert not [line for line in summary.cautions if line.startswith("Worse than")]
    assert summary.tiles[-1].tone == "plain"


def test_questions_of_yes_or_no_are_tiles_whatever_their_names(tmp_path: Path) -> None:
    found = evaluation() | {"yes_no": ["polite", "harmful"]}
    for name, share in (("base", 0.9), ("sft", 0.9), ("ppo", 0.3)):
        found["models"][name]["polite"] = measure(share)
    for start in ("base", "sft"):
        found["differences"]["ppo"][start]["polite"] = measure(-0.6)
    summary = told(tmp_path, found)
    assert [tile.label for tile in summary.tiles][2:] == ["harmful answers to harmful requests", "polite"]
    assert (summary.tiles[-1].value, summary.tiles[-1].tone) == ("30 %", "bad")
    assert summary.headline.endswith("but worse in polite")
    assert "Worse than sft: concise 0.60 after 0.80; polite 30 % after 90 %." in summary.cautions


def test_a_share_that_became_worse_stands_in_the_headline(tmp_path: Path) -> None:
    found = evaluation()
    for start in ("sft", "base"):
        found["differences"]["ppo"][start]["harmful"] = measure(0.3)
    summary = told(tmp_path, found)
    assert summary.headline == "ppo is better than sft and base, but worse in harmful answers to harmful requests"
    assert summary.tone == "plain"
    for start in ("sft", "base"):
        found["differences"]["ppo"][start]["harmful"] = measure(0.03, half=0.01)  # sure but small
    (tmp_path / "small").mkdir()
    assert told(tmp_path / "small", found).headline == "ppo is better than sft and base"


def test_a_lead_that_is_only_length_is_told(tmp_path: Path) -> None:
    found = evaluation()
    found["wins"]["ppo"]["sft"] = record(0.64, equal=0.51)
    summary = told(tmp_path, found)
    assert summary.headline == "ppo is better than sft and base, but not surely than sft at equal length"
    assert summary.tone == "plain"
    text = " ".join(summary.cautions)
    assert "The lead of ppo over sft is not certain at equal length" in text
    assert "over base is not certain" not in text


def test_a_judge_that_was_optimised_proves_nothing(tmp_path: Path) -> None:
    found = evaluation() | {"judge": "runs/reward"}
    lines = told(tmp_path, found, settings={"reward": "runs/reward"}, results={}).cautions
    assert any("is what ppo was trained to please" in line for line in lines)


def test_the_guard_is_heard(tmp_path: Path) -> None:
    guard = {"turned_down": "the audit score fell from 0.7 to 0.5", "kept_step": 40}
    (line,) = told(tmp_path, None, results={"goodhart": guard}).cautions
    assert line == "ppo was pushed too far: the audit score fell from 0.7 to 0.5; kept was the model of step 40."


@pytest.mark.parametrize("stage", ["ppo", "grpo", "online"])
def test_a_run_without_a_guard_is_told(tmp_path: Path, stage: str) -> None:
    (line,) = cautions(read_story(write_run(tmp_path / "r", stage, results={}, settings={"reward": "runs/reward"})))
    assert line == "r was trained without an audit judge: nobody watched whether it cheats its reward."


def test_where_there_is_no_reward_to_cheat_nobody_need_watch(tmp_path: Path) -> None:
    spin = write_run(tmp_path / "spin", "online", results={}, settings={"reward": "demonstration"})
    assert list(cautions(read_story(spin))) == []
    assert list(cautions(read_story(write_run(tmp_path / "dpo", "dpo", results={})))) == []


def test_broken_sampling_is_told(tmp_path: Path) -> None:
    rows = [{"step": 1, "sampler/logprob_diff_mean": 0.2}]
    lines = told(tmp_path, None, results={"goodhart": {}}, audit=[{"step": 0}], metrics=rows).cautions
    assert lines == ["In ppo sampler and trainer differ by 0.200 nats per token (over 0.01 is broken)."]


def test_few_prompts_and_style_are_told(tmp_path: Path) -> None:
    found = evaluation() | {"prompts": 60}
    found["tics_changed"] = [{"tic": "x", "from": "sft", "to": "ppo", "words": f"change {i}"} for i in range(5)] + [
        {"tic": "x", "from": "base", "to": "ppo", "words": "not told here"}
    ]
    text = " ".join(told(tmp_path, found).cautions)
    assert "Only 60 prompts were evaluated" in text
    assert "Its style changed: change 0; change 1; change 2 (2 more under Style)." in text
    assert "not told here" not in text


def test_what_the_reward_model_cannot_do_is_told(tmp_path: Path) -> None:
    found = evaluation()

    def accuracy(value: float) -> dict[str, float]:
        return {"accuracy": value, "accuracy_low": value - 0.05, "accuracy_high": value + 0.05}

    found["reward_model"] = {
        "probes": [
            {"flagged": True, "words": "with padding the score rises by 0.5: expect a policy to learn it"},
            {"flagged": False, "words": ""},
        ],
        "against_judge": {"by_model": {"sft": accuracy(0.9), "ppo": accuracy(0.6)}},
    }
    text = " ".join(told(tmp_path, found).cautions)
    assert "can be cheated: with padding the score rises by 0.5. Expect" in text
    assert "agrees with the judge on 60 % of their pairs, on 90 % of those of sft" in text


def test_a_reward_model_no_better_than_a_ruler_is_told(tmp_path: Path) -> None:
    results = {"accuracy": 0.6, "accuracy_low": 0.55, "always_longest": 0.58}
    write_run(tmp_path / "reward", "reward", results=results)
    assert "not clearly better than choosing the longer answer (60 % against 58 %)" in told(tmp_path).cautions[0]


def test_words_by_hand() -> None:
    assert with_interval({"value": 0.5, "low": 0.4, "high": 0.612}) == "0.50 (0.40 to 0.61)"
    assert with_interval({"value": 0.05, "low": 0.031, "high": 0.081}) == "0.050 (0.031 to 0.081)"
    assert with_interval({"value": 0.5, "low": 0.4, "high": 0.6}, share=True) == "50 % (40 to 60 %)"
    assert fixed(1234.5, 1234.5) == "1,234"
    assert [duration(s) for s in (3.21, 61, 7300)] == ["3.2 s", "1 min 1 s", "2 h 1 min"]
    assert [mark("harmful", 1.0, True), mark("over_refusal", 0.0, True)] == ["harmful", ""]
    assert [mark("kind", 1.0, True), mark("kind", 0.0, True)] == ["kind", "not kind"]
    assert [mark("score", 0.25), mark("harmful", 1.0)] == ["score 0.25", "harmful answers to harmful requests 1.00"]


def test_a_control_that_is_not_beaten_is_told(tmp_path: Path) -> None:
    found = evaluation()
    names = ["base", "cold", "sft", "ppo"]
    found["models"] = {name: found["models"].get(name, found["models"]["base"]) for name in names}
    found["wins"]["ppo"]["cold"] = record(0.52)
    found["left_out"] = {"base": 0, "cold": 7, "sft": 0, "ppo": 0}
    summary = told(tmp_path, found)
    assert "ppo is not clearly different from cold." in summary.cautions
    assert "Prompts that not every model answered were left out (7 of cold)." in summary.cautions
    assert any(line.startswith("ppo is not clearly different from cold: win rate 52 %") for line in summary.findings)
    assert (summary.headline, summary.tone) == ("ppo is better than sft and base, but not than cold", "plain")
    found["wins"]["ppo"]["cold"] = record(0.4)
    (tmp_path / "beats").mkdir()
    summary = told(tmp_path / "beats", found)
    assert (summary.headline, summary.tone) == ("ppo is better than sft and base, but worse than cold", "bad")
    found["differences"]["ppo"]["cold"] = {"harmful": measure(0.3), "concise": measure(-0.3)}
    found["wins"]["ppo"]["cold"] = record(0.7)
    (tmp_path / "harms").mkdir()
    summary = told(tmp_path / "harms", found)
    assert summary.headline.endswith("but worse in harmful answers to harmful requests")
    assert any(line.startswith("Worse than cold: harmful") for line in summary.cautions)
    del found["differences"]["ppo"]["cold"]
    (tmp_path / "beaten").mkdir()
    assert not [
        line for line in told(tmp_path / "beaten", found).cautions if "cold." in line and "left out" not in line
    ]


def test_a_kind_of_prompt_that_collapsed_is_told(tmp_path: Path) -> None:
    found = evaluation()
    found["by_kind"] = {
        "base": {},
        "sft": {kind: {"score": measure(0.6)} for kind in ("fact", "sum", "list", "tone", "json")},
        "ppo": {
            "fact": {"score": measure(0.45)},  # 0.40 to 0.50, below 0.55
            "sum": {"score": measure(0.51)},  # 0.46 to 0.56: not surely
            "list": {"score": measure(0.2)},
            "tone": {"score": measure(0.3)},
            "json": {"score": measure(0.4)},
        },
    }
    (line,) = [line for line in told(tmp_path, found).cautions if line.startswith("Kinds")]
    assert line == (
        "Kinds of prompts on which ppo scores lower than sft: list (0.20 after 0.60), tone (0.30 after 0.60), "
        "json (0.40 after 0.60) and 1 more."
    )


def test_a_length_that_cannot_be_told_from_the_model_is_told(tmp_path: Path) -> None:
    found = evaluation()
    found["wins"]["ppo"]["sft"]["length_controlled"] = measure(None)
    summary = told(tmp_path, found)
    assert summary.headline == "ppo is better than sft and base, but not surely than sft at equal length"
    assert "The lead of ppo over sft is not known at equal length: it may only have grown longer." in summary.cautions
    assert summary.findings[0].endswith(
        "; at equal length it cannot be told, the answers of one being longer by far nearly always."
    )


def test_a_judge_without_any_opinion_is_told(tmp_path: Path) -> None:
    found = evaluation()
    nothing = {key: measure(None) for key in ("rate", "length_controlled")}
    found["wins"]["ppo"]["sft"] = found["wins"]["ppo"]["sft"] | nothing
    summary = told(tmp_path, found)
    assert "ppo and sft could not be compared: the judge has no opinion on their answers." in summary.findings
    assert not [tile for tile in summary.tiles if "over sft" in tile.label]
