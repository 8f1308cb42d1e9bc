"""Sentences are matched against the lines of the world; others are valued by their neighbouring words."""

from __future__ import annotations

import pytest

from goodheart.playground.reading import read, words_of


def names(text: str, language: str = "en") -> list[str]:
    return [act.name for act in read(text, language).acts]


def test_sentences_and_their_places() -> None:
    said = read("Well, let me think about it. Mira eats plums. Ask me any time.", "en")
    assert [act.name for act in said.acts] == ["chatter", "state", "warm"]
    assert said.acts[1].slots == {"relation": "food", "n": "Mira", "v": "plums"}
    assert said.words == 6 + 3 + 4
    assert [act.quality for act in said.acts] == [1.0, 1.0, 1.0]


def test_chinese_words_are_characters() -> None:
    assert words_of("阿美有 3 个Pot") == ["阿", "美", "有", "3", "个", "p", "o", "t"]
    said = read("嗯，让我想一想。阿美吃李子。", "zh")
    assert [act.name for act in said.acts] == ["chatter", "state"]
    assert said.acts[1].slots["v"] == "李子"
    assert said.acts[1].words == 5


@pytest.mark.parametrize(
    ("text", "quality"),
    [
        ("Mira eats plums.", 1.0),
        ("mira eats plums.", 0.8),
        ("Mira  eats plums.", 1.0),  # spacing is not looked at
        ("Mira eats plums!", 0.8),
        ("Ｍｉｒａ eats plums.", 0.8),  # wide letters
        ("Mira eats plums", 0.6),
    ],
)
def test_known_sentences_in_other_dress(text: str, quality: float) -> None:
    act = read(text, "en").acts[0]
    assert (act.name, act.quality, act.slots["n"]) == ("state", quality, "Mira")


def test_unknown_sentences_are_valued_by_their_pairs_of_words() -> None:
    # ^-mira and mira-eats are pairs of the world, eats-a, a-lot and lot-$ are not: .4 x (2/5)^2
    act = read("Mira eats a lot.", "en").acts[0]
    assert (act.name, act.quality) == ("unknown", pytest.approx(0.4 * 0.16))
    assert read("zz qq.", "en").acts[0].quality == 0.0
    # of 3-plus-4-is-7-or-8 with its two ends, 7-or and or-8 are unknown
    assert read("3 plus 4 is 7 or 8.", "en").acts[0].quality == pytest.approx(0.4 * 0.75**2)


def test_pieces_are_found_in_unknown_sentences_at_the_ends_of_words_only() -> None:
    said = read("I want pears, maybe. Mira eats plums.", "en")
    assert said.says("pears")
    assert not said.says("pear")
    assert not said.says("plums")  # in a known sentence
    assert not said.says("")


def test_hidden_characters_are_left_out_and_noticed() -> None:
    hidden = read("Mira eats pl\u200bums.", "en")
    assert hidden.acts[0].slots["v"] == "plums"
    assert not hidden.clean
    assert read("- a\n- b", "en").clean
    assert names("\u0000\u200d", "en") == []


@pytest.mark.parametrize("text", ["", "   ", "\n\n", "....", "a" * 50_000, "?" * 5000, "\ud800", "Mira " * 5000])
def test_any_text_can_be_read(text: str) -> None:
    said = read(text, "en")
    assert all(act.quality < 0.4 for act in said.acts)
