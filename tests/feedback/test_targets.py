"""From labels to what is trained on: scores of answers as regression targets."""

from __future__ import annotations

import math
from typing import Any

import pytest

from goodheart.data.records import Answer, Judgement, Prompt, Rating, Thumb
from goodheart.errors import ConfigError
from goodheart.feedback.targets import scored, through

PROMPT, OTHER = Prompt(text="p"), Prompt(text="q")
A, B, C = Answer("a"), Answer("b"), Answer("c")


def scores(records: list[Any], **options: Any) -> dict[str, float]:
    return {rating.answer.text: rating.score for rating in scored(records, **options) if isinstance(rating, Rating)}


def test_by_hand() -> None:
    # a over b three times, b over a once: the difference of scores is the log odds, log 3 (without a prior)
    votes = [Judgement(PROMPT, (A, B), (0, 1), rater=str(n)) for n in range(3)] + [Judgement(PROMPT, (B, A), (0, 1))]
    found = scores(votes, prior=0)
    assert found["a"] == pytest.approx(math.log(3) / 2, abs=1e-6)
    assert found["b"] == pytest.approx(-math.log(3) / 2, abs=1e-6)
    # the same as one soft label of 3/4, and as two labels trusted 3 and 1
    soft = [Judgement(PROMPT, (A, B), (0, 1), probability=0.75)]
    assert scores(soft, prior=0) == pytest.approx(found)
    trusted = [Judgement(PROMPT, (A, B), (0, 1), rater="ann"), Judgement(PROMPT, (A, B), (1, 0), rater="bob")]
    assert scores(trusted, prior=0, weights={"ann": 3, "bob": 1}) == pytest.approx(found)


def test_a_prior_keeps_a_single_vote_from_being_certain() -> None:
    """Maximum of log s(d) + 1/2 [log s(x) + log s(-x)] at x = d/2 and -d/2: slopes 1 - s(d) = 1/2 (2 s(d/2) - 1)."""
    found = scores([Judgement(PROMPT, (A, B), (0, 1))])
    d = found["a"] - found["b"]
    s = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert 0 < d < 5
    assert 1 - s(d) == pytest.approx((2 * s(d / 2) - 1) / 2, abs=1e-6)


def test_rankings_ties_and_prompts() -> None:
    votes: list[Any] = [
        Judgement(PROMPT, (A, B, C), (0, 1, 1)),
        Judgement(PROMPT, (C, B), (0, 0)),
        Judgement(OTHER, (B, A), (0, 1)),
        Thumb(OTHER, A, True),
    ]
    made = list(scored(votes))
    assert isinstance(made[0], Thumb)
    first = {r.answer.text: r.score for r in made[1:4] if isinstance(r, Rating)}
    assert first["a"] > first["b"] == pytest.approx(first["c"])
    assert sum(first.values()) == pytest.approx(0, abs=1e-9)
    second = {r.answer.text: r.score for r in made[4:] if isinstance(r, Rating)}
    assert second["b"] > second["a"]  # another prompt is another scale


def test_an_adjudication_is_the_last_word() -> None:
    votes = [Judgement(PROMPT, (A, B), (0, 1)) for _ in range(3)] + [
        Judgement(PROMPT, (A, B), (1, 0), kind="adjudication")
    ]
    found = scores(votes)
    assert found["b"] > found["a"]
    # of what it decided: what was said of another two answers to the same prompt stands
    more = scores([*votes, Judgement(PROMPT, (A, C), (0, 1))])
    assert more["b"] > more["a"] > more["c"]


def test_names() -> None:
    assert through("each") is None
    for labels in ("each", "majority", "soft", "scores"):
        made = through(labels, {"*": 1.0})
        assert made is not None
        assert len(list(made([Judgement(PROMPT, (A, B), (0, 1))]))) == (2 if labels == "scores" else 1)
    with pytest.raises(ConfigError, match="unknown labels 'some'; known are each, majority, soft, trusted, scores"):
        through("some")
