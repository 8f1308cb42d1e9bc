"""Two texts side by side."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from goodheart.studio.differences import Part, difference, words


def changed(parts: list[Part]) -> list[str]:
    return [part.text for part in parts if part.kind == "changed"]


def test_by_word_and_by_chinese_character() -> None:
    left, right = difference("The cat sat on a mat.", "The dog sat on the mat.")
    assert (changed(left), changed(right)) == (["cat", "a"], ["dog", "the"])
    left, right = difference("我喜歡喝茶", "我喜歡喝咖啡")
    assert (changed(left), changed(right)) == (["茶"], ["咖啡"])


def test_words_cut_a_text_without_loss() -> None:
    assert words("Don't 用電腦 x2!") == ["Don", "'", "t", " ", "用", "電", "腦", " ", "x2", "!"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_parts_join_to_the_texts(a: str, b: str) -> None:
    left, right = difference(a, b)
    assert "".join(part.text for part in left) == a
    assert "".join(part.text for part in right) == b
    assert difference(a, a)[0] == ([Part("same", a)] if a else [])


def test_long_texts_take_no_time() -> None:
    start = time.process_time()
    difference("a b " * 2000, "b a c " * 1300)
    difference("word " * 400_000, "other " * 400_000)
    assert time.process_time() - start < 3.0
