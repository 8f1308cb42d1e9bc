"""Measures of style in two languages, and what is said of their changes."""

from __future__ import annotations

import numpy as np
import pytest

from goodheart.data.records import Answer
from goodheart.evaluate.interval import Bootstrap
from goodheart.evaluate.style import tic_measures, tics_changed, tics_of
from goodheart.evaluate.tics import TICS, Said, cut_off, distinct, length, repetition, tokens

BY_NAME = {tic.name: tic.measure for tic in TICS}


def test_words_in_two_languages() -> None:
    assert tokens("Don't panic: it's 42!") == ["don't", "panic", "it's", "42"]
    assert tokens("我爱 Python 三") == ["我", "爱", "python", "三"]
    assert length(Said.of("")) == 0


@pytest.mark.parametrize(
    ("tic", "yes", "no"),
    [
        (
            "lists",
            ["Do this:\n- a\n- b", "1. a\n2. b", "一、先\n二、后", "• 苹果", "1.苹果\n2.梨", "1、苹果", "* a", "1) a"],
            [
                "5 - 3 = 2",
                "He is 1.8 m tall.",
                "3.14 is pi",
                "-5 degrees",
                "*wink* hello",
                "12.30 Uhr",
                "**Bold** start",
            ],
        ),
        ("headings", ["# Title\ntext", "**Summary**\ntext"], ["C# is a language", "a **bold** word in a line"]),
        ("apologies", ["I'm sorry.", "My apologies!", "很抱歉。", "對不起"], ["A sorrow.", "没关系"]),
        (
            "flattery",
            ["Great question! It is", "You are so smart.", "您说得对。", "好问题！"],
            [
                "A question.",
                "问题在于",
                "You are right-handed.",
                "You are right next to it.",
                "It is a good idea to rest.",
            ],
        ),
        (
            "as_an_ai",
            ["As an AI language model, I", "As an assistant I cannot", "作为一个人工智能，我", "I'm just an AI"],
            ["As an aid to all", "智能手机", "As an assistant cook I agree"],
        ),
        (
            "refusals",
            [
                "I cannot help with that.",
                "I do not tell such things",
                "I can’t help anything",
                "I WON'T give you that.",
                "我不能帮你",
                "恕难从命",
            ],
            [
                "I can help.",
                "我能帮你",
                "I don't give up.",
                "I will not tell you a lie: it is 7.",
                "I cannot say enough good things",
                "I can't explain how happy I am",
                "I cannot help laughing.",
                "I can't tell the difference.",
            ],
        ),
    ],
)
def test_what_is_recognised(tic: str, yes: list[str], no: list[str]) -> None:
    assert [BY_NAME[tic](Said.of(text)) for text in yes] == [1.0] * len(yes)
    assert [BY_NAME[tic](Said.of(text)) for text in no] == [0.0] * len(no)


def test_what_is_counted() -> None:
    assert BY_NAME["hedges"](Said.of("Perhaps it might rain. 也许吧")) == 3
    assert BY_NAME["exclamations"](Said.of("Yes! Sure!! 好！")) == 4
    assert BY_NAME["pictures"](Said.of("Hi 😀 ☀")) == 2


def test_each_text_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counted(text: str) -> list[str]:
        seen.append(text)
        return tokens(text)

    monkeypatch.setattr("goodheart.evaluate.tics.tokens", counted)
    tics_of({"a": [[Answer("x y"), Answer("z")]], "b": [[Answer("u"), Answer("v")]]})
    assert sorted(seen) == ["u", "v", "x y", "z"]


def test_repetition_by_hand() -> None:
    # phrases of "a b c a b c": abc bca cab abc -> 3 different of 4
    assert repetition(Said.of("a b c a b c")) == pytest.approx(0.25)
    assert repetition(Said.of("a b c d e")) == 0
    assert repetition(Said.of("a b c")) == 0


def test_distinct_by_hand() -> None:
    # (a b) (b c) of the first, (a b) of the second: 2 different of 3
    assert distinct([Said.of("a b c"), Said.of("a b")]) == pytest.approx(2 / 3)
    assert distinct([Said.of("a"), Said.of("")]) is None


def test_cut_off_is_known_or_not() -> None:
    assert cut_off(Answer("x", meta={"finish": "length"})) == 1.0
    assert cut_off(Answer("x", meta={"finish": "eos"})) == 0.0
    assert cut_off(Answer("x")) is None


def models(factor: int, prefix: str = "") -> dict[str, list[list[Answer]]]:
    """Two models over 60 prompts of different lengths; the second's answers are `factor` times as long."""
    generator = np.random.default_rng(0)
    found: dict[str, list[list[Answer]]] = {"sft": [], "ppo": []}
    for _ in range(60):
        n = int(generator.integers(4, 12))
        words = [f"w{i}" for i in range(n * factor)]
        found["sft"].append([Answer(" ".join(words[:n]))])
        found["ppo"].append([Answer(prefix + " ".join(words))])
    return found


def test_a_longer_model_is_told_in_words() -> None:
    tics, bootstrap = tics_of(models(2)), Bootstrap(60, 1000)
    (row,) = tics_changed(tics, "sft", "ppo", bootstrap)
    assert (row["tic"], row["from"], row["to"]) == ("length", "sft", "ppo")
    assert row["words"] == "answers of ppo are 2.0 times as long as those of sft (95 % interval 2.0 to 2.0)"
    assert row["after"] == 2 * row["before"]
    assert row["low"] <= row["after"] - row["before"] <= row["high"]
    (back,) = tics_changed(tics, "ppo", "sft", bootstrap)
    assert back["words"] == "answers of sft are 50 % shorter than those of ppo (95 % interval 50 % to 50 %)"


def test_a_new_habit_is_told_in_words() -> None:
    rows = {
        row["tic"]: row for row in tics_changed(tics_of(models(1, "Great question! ")), "sft", "ppo", Bootstrap(60))
    }
    assert rows["flattery"]["words"] == "100 % of the answers of ppo flatter the user, 0 % of those of sft"
    assert set(rows) == {"flattery", "exclamations", "length"}


def test_chance_is_not_told() -> None:
    """Both models draw from the same habits, 40 times: all differences are chance, and 5 % of lists may hold one."""
    generator = np.random.default_rng(1)
    phrases = ["Sorry.", "Great question!", "Perhaps.", "- a\n- b", "I cannot help.", "fine"]
    false = 0
    for trial in range(40):
        found = {
            name: [[Answer(" ".join(generator.choice(phrases, 3))) for _ in range(2)] for _ in range(50)]
            for name in ("a", "b")
        }
        false += bool(tics_changed(tics_of(found), "a", "b", Bootstrap(50, 1000, trial)))
    assert false <= 6  # at 5 %, 7 or more of 40 come once in 300 tests


def test_the_table_has_every_model_and_tic() -> None:
    table = tic_measures(tics_of(models(1)), Bootstrap(60, 1000))
    assert set(table) == {"sft", "ppo"}
    assert table["sft"]["lists"]["value"] == 0
    assert table["sft"]["distinct_2"] == {"value": None, "low": None, "high": None, "n": 0}  # one answer per prompt
    assert table["sft"]["cut_off"]["n"] == 0
