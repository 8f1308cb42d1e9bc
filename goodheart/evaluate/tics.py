"""Habits of style that training on preferences brings out, in English and Chinese, as plain measures of a text.

They say nothing about whether an answer is good; they tell what changed besides. Each is one small function of the
text, so that anybody can see what is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from goodheart.data.records import Answer
from goodheart.evaluate.phrases import APOLOGY, AS_AN_AI, FLATTERY, HEDGE, REFUSAL

# A word in a script that puts spaces between words, or one sign of a script that does not.
_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+(?:['’-][^\W_]+)*")
_LIST_ITEM = re.compile(r"^\s*(?:[-*+•·]|\d{1,3}[.)、]|[（(]?[一二三四五六七八九十]{1,3}[)）、.])\s*\S", re.M)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+\S|^\s*\*\*[^*\n]+\*\*:?\s*$", re.M)
_PICTURE = re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]")
_GRAM = 3  # words of a repeated phrase


def tokens(text: str) -> list[str]:
    """Words, and single signs of Chinese, in lower case."""
    return [match.group().lower() for match in _WORD.finditer(text)]


def length(text: str) -> float:
    """Words, where one sign of Chinese counts as one."""
    return float(len(tokens(text)))


def repetition(text: str) -> float:
    """Share of the three-word phrases that stood before in the same text; 0 for texts of under four words."""
    words = tokens(text)
    grams = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def distinct(texts: Sequence[str]) -> float | None:
    """Share of different two-word phrases among those of all answers to one prompt; low where all say the same.

    Source: Li et al. arXiv:1510.03055 (distinct-2, there over a whole corpus).
    """
    grams = [pair for words in map(tokens, texts) for pair in pairwise(words)]
    return len(set(grams)) / len(grams) if grams else None


def _has(pattern: re.Pattern[str]) -> Callable[[str], float]:
    return lambda text: float(bool(pattern.search(text)))


def _count(pattern: re.Pattern[str]) -> Callable[[str], float]:
    return lambda text: float(len(pattern.findall(text)))


def _exclamations(text: str) -> float:
    return float(text.count("!") + text.count("！"))


@dataclass(frozen=True, slots=True)
class Tic:
    """A habit: how it is measured in one answer, and how a difference is told.

    `words` has places for {after}, {before} (values as shown) and {to}, {start} (names of the models).
    """

    name: str
    measure: Callable[[str], float]
    words: str
    is_share: bool  # whether the mean is a share of the answers


_ANSWERS = "{after} of the answers of {to} "
_THOSE = ", {before} of those of {start}"
_ON_AVERAGE = "answers of {to} have {after} "
_AVERAGE = " on average, those of {start} {before}"

TICS = (
    Tic("length", length, "answers of {to} have {after} words on average, those of {start} {before}", False),
    Tic("lists", _has(_LIST_ITEM), _ANSWERS + "contain a list" + _THOSE, True),
    Tic("headings", _has(_HEADING), _ANSWERS + "contain a heading" + _THOSE, True),
    Tic("apologies", _has(APOLOGY), _ANSWERS + "contain an apology" + _THOSE, True),
    Tic("hedges", _count(HEDGE), _ON_AVERAGE + "hedges (“perhaps”, “it seems”)" + _AVERAGE, False),
    Tic("flattery", _has(FLATTERY), _ANSWERS + "flatter the user" + _THOSE, True),
    Tic("as_an_ai", _has(AS_AN_AI), _ANSWERS + "say “as an AI” or the like" + _THOSE, True),
    Tic("refusals", _has(REFUSAL), _ANSWERS + "refuse" + _THOSE, True),
    Tic("exclamations", _exclamations, _ON_AVERAGE + "exclamation marks" + _AVERAGE, False),
    Tic("pictures", _count(_PICTURE), _ON_AVERAGE + "emoji" + _AVERAGE, False),
    Tic("repetition", repetition, "{after} of the phrases of an answer of {to} are repeated" + _THOSE, True),
)
DISTINCT = Tic(
    "distinct_2",
    lambda text: 0.0,  # measured over all answers to a prompt, see `distinct`
    "{after} of the two-word phrases in the answers of {to} to one prompt are different, {before} with {start}",
    True,
)
CUT_OFF = Tic(
    "cut_off",
    lambda text: 0.0,  # known from how sampling ended, see `cut_off`
    _ANSWERS + "are cut off at the length limit" + _THOSE,
    True,
)
ALL = (*TICS, DISTINCT, CUT_OFF)


def cut_off(answer: Answer) -> float | None:
    """1 where the answer ran into the length limit; None where the file does not say."""
    finish = answer.meta.get("finish")
    return None if finish is None else float(finish == "length")
