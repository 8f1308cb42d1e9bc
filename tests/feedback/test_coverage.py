"""What prompts cover: counted by hand, and topics that are there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from goodheart.errors import DataError
from goodheart.feedback.coverage import UNKNOWN, cells, terms, topics
from tests.feedback import real

ROWS = [
    {"kind": "fact", "language": "en"},
    {"kind": "fact", "language": "en"},
    {"kind": "fact", "language": "zh"},
    {"kind": "harmful", "language": "en"},
    {"kind": "harmful"},
]


def test_cells_by_hand() -> None:
    found = cells(ROWS, ["kind", "language"], wanted=2)
    assert {cell.values: (cell.prompts, cell.missing) for cell in found.cells} == {
        ("fact", "en"): (2, 0),
        ("fact", "zh"): (1, 1),
        ("fact", UNKNOWN): (0, 2),
        ("harmful", "en"): (1, 1),
        ("harmful", "zh"): (0, 2),
        ("harmful", UNKNOWN): (1, 1),
    }
    assert [cell.prompts for cell in found.cells] == [0, 0, 1, 1, 1, 2]
    assert len(found.gaps) == 5
    assert found.prompts == 5


def test_what_should_occur_and_does_not() -> None:
    found = cells(ROWS, ["kind"], wanted=1, values={"kind": ["fact", "harmful", "care"]})
    assert [cell.values for cell in found.gaps] == [("care",)]


def test_words_of_all_scripts() -> None:
    assert terms("Don't SHOUT, 3 x ünïcode!") == ["don't", "shout", "ünïcode"]
    assert terms("水 苹果汁") == ["水", "苹果", "果汁"]


def test_topics_are_found_in_two_languages() -> None:
    draw = random.Random(0)
    subjects = {
        "cooking": ["soup", "bread", "oven", "salt", "pepper", "butter", "flour", "recipe"],
        "weather": ["rain", "cloud", "storm", "wind", "sunshine", "forecast", "snow", "thunder"],
        "古诗": ["古代诗歌", "诗歌意境", "唐代诗人", "宋代词人"],
    }
    texts = [" ".join(draw.choices(words, k=6)) for words in subjects.values() for _ in range(40)]
    found = topics(texts, 3)
    assert [topic.prompts for topic in found.topics] == [40, 40, 40]
    for start in (0, 40, 80):
        assert len(set(found.topic_P[start : start + 40])) == 1
    said = {word for topic in found.topics for word in topic.words}
    assert "soup" in said
    assert "诗歌" in said
    assert topics(texts, 3).topics == found.topics


def test_topics_of_real_prompts(shared: Path) -> None:
    """Debates of real people: arguments of one debate use its words; 16 debates, of which clusters find most."""
    sides = [(row["title"], row["a1"]) for row in real.ukp(shared)[::8]]
    found = topics([text for _, text in sides], 16)
    titles = [title for title, _ in sides]
    right = 0
    for k in range(len(found.topics)):
        inside = [title for title, topic in zip(titles, found.topic_P, strict=True) if topic == k]
        right += max(inside.count(title) for title in set(inside))
    assert right / len(titles) > 0.5  # the commonest debate alone is a tenth


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(DataError, match="no prompt has a column `topic`"):
        cells(ROWS, ["topic"], wanted=1)
    with pytest.raises(DataError, match="at least one column"):
        cells(ROWS, [], wanted=1)
    with pytest.raises(DataError, match="no words in common"):
        topics(["1", "2 3", "?"], 2)
    with pytest.raises(DataError, match="combinations of a, b"):
        cells([{"a": i, "b": i} for i in range(200)], ["a", "b"], wanted=1)
