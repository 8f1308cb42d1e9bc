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
from goodheart.evaluate.phrases import APOLOGY, AS_AN_AI, FLATTERY, HEDGE, REFUSAL, Phrases

# A word in a script that puts spaces between words, or one sign of a script that does not.
_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+(?:['’-][^\W_]+)*")
# A marker needs space after it ("-5 degrees" and "1.8 m" are no lists), but for those that Chinese writes without.
_LIST_ITEM = re.compile(
    r"^\s*(?:(?:[-*+•·]|\d{1,3}[.)])[ \t\u3000]+|(?:[•·]|\d{1,3}[.)])(?=[\u3400-\u9fff])|\d{1,3}、|"
    r"[（(]?[一二三四五六七八九十]{1,3}[)）、.])[ \t]*\S",
    re.M,
)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+\S|^\s*\*\*[^*\n]+\*\*:?\s*$", re.M)
_PICTURE = re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]")
_GRAM = 3  # words of a repeated phrase


def tokens(text: str) -> list[str]:
    """Words, and single signs of Chinese, in lower case."""
    found: list[str] = _WORD.findall(text.lower())
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """A text with what all measures of it need, so that it is taken apart once."""

    text: str
    lower: str
    words: list[str]

    @classmethod
    def of(cls, text: str) -> Said:
        return cls(text, text.lower(), tokens(text))


def length(said: Said) -> float:
    """Words, where one sign of Chinese counts as one."""
    return float(len(said.words))


def repetition(said: Said) -> float:
    """Share of the three-word phrases that stood before in the same text; 0 for texts of under four words."""
    grams = list(zip(*(said.words[i:] for i in range(_GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def distinct(answers: Sequence[Said]) -> float | None:
    """Share of different two-word phrases among those of all answers to one prompt; low where all say the same.

    Source: Li et al. arXiv:1510.03055 (distinct-2, there over a whole corpus).
    """
    grams = [pair for said in answers for pair in pairwise(said.words)]
    return len(set(grams)) / len(grams) if grams else None


def _has(pattern: re.Pattern[str]) -> Callable[[Said], float]:
    return lambda said: float(bool(pattern.search(said.text)))


def _says(phrases: Phrases) -> Callable[[Said], float]:
    return lambda said: float(phrases.found_in(said.lower) > 0)


def _hedges(said: Said) -> float:
    return float(HEDGE.found_in(said.lower))


def _exclamations(said: Said) -> float:
    return float(said.text.count("!") + said.text.count("！"))


def _pictures(said: Said) -> float:
    return 0.0 if said.text.isascii() else float(len(_PICTURE.findall(said.text)))


@dataclass(frozen=True, slots=True)
class Tic:
    """A habit: how it is measured in one answer, and how a difference is told.

    `words` has places for {after}, {before} (values as shown) and {to}, {start} (names of the models).
    """

    name: str
    measure: Callable[[Said], float]
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
    Tic("apologies", _says(APOLOGY), _ANSWERS + "contain an apology" + _THOSE, True),
    Tic("hedges", _hedges, _ON_AVERAGE + "hedges (“perhaps”, “it seems”)" + _AVERAGE, False),
    Tic("flattery", _says(FLATTERY), _ANSWERS + "flatter the user" + _THOSE, True),
    Tic("as_an_ai", _says(AS_AN_AI), _ANSWERS + "say “as an AI” or the like" + _THOSE, True),
    Tic("refusals", _says(REFUSAL), _ANSWERS + "refuse" + _THOSE, True),
    Tic("exclamations", _exclamations, _ON_AVERAGE + "exclamation marks" + _AVERAGE, False),
    Tic("pictures", _pictures, _ON_AVERAGE + "emoji" + _AVERAGE, False),
    Tic("repetition", repetition, "{after} of the phrases of an answer of {to} are repeated" + _THOSE, True),
)
DISTINCT = Tic(
    "distinct_2",
    lambda said: 0.0,  # measured over all answers to a prompt, see `distinct`
    "{after} of the two-word phrases in the answers of {to} to one prompt are different, {before} with {start}",
    True,
)
CUT_OFF = Tic(
    "cut_off",
    lambda said: 0.0,  # known from how sampling ended, see `cut_off`
    _ANSWERS + "are cut off at the length limit" + _THOSE,
    True,
)
ALL = (*TICS, DISTINCT, CUT_OFF)


def cut_off(answer: Answer) -> float | None:
    """1 where the answer ran into the length limit; None where the file does not say."""
    finish = answer.meta.get("finish")
    return None if finish is None else float(finish == "length")
