"""Phrases by which tics are recognised, in English (whole words) and Chinese (simplified and traditional).

Each is a regular expression in lower case; phrases are separated by " | " or stand on lines of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrases:
    """What is looked for in each language. Apart, and in lower case, they are found several times as fast."""

    english: re.Pattern[str]
    chinese: re.Pattern[str]

    def found_in(self, lower: str) -> int:
        """How often any of them occurs in a text, which must be in lower case."""
        found = len(self.english.findall(lower))
        return found if lower.isascii() else found + len(self.chinese.findall(lower))


def _any(english: str, chinese: str) -> Phrases:
    whole = re.compile(rf"\b(?:{'|'.join(_phrases(english))})\b(?!-\w)")  # "you are right", not "you are right-handed"
    return Phrases(whole, re.compile("|".join(_phrases(chinese))))


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for line in text.splitlines() for phrase in line.split(" | ") if phrase.strip()]


APOLOGY = _any(
    "sorry | apolog(?:y|ies|i[sz]e|i[sz]ing) | my mistake | forgive me",
    "抱歉 | [对對]不起 | [对對]不住 | 不好意思 | 致歉 | 道歉 | [请請]原[谅諒]",
)
HEDGE = _any(
    """
    perhaps | maybe | possibly | probably | might | could be | it seems | seems to | i think | i believe | i guess
    arguably | in general | generally | it depends | not sure | as far as i know | to some extent
    """,
    """
    也[许許] | 或[许許] | 可能 | 大概 | 似乎 | 好像 | 看[来來] | 我想 | 我[觉覺]得 | 我[认認][为為]
    一般[来來][说說] | 不太[确確]定 | 某[种種]程度 | [据據]我所知
    """,
)
_GREAT = "(?:great|good|excellent|wonderful|fantastic|brilliant|amazing)"
_VERY = "(?:so |absolutely |completely |totally |quite |very )*"
_NO_PLACE = r"(?! (?:now|next|here|there|at|by|behind|beside|before|after)\b)"  # "you are right next to it"
FLATTERY = _any(
    rf"""
    {_GREAT} (?:question|point|idea|thinking)(?! (?:to|in|guard|of)\b)
    you(?:'re| are) {_VERY}(?:right{_NO_PLACE}|smart|clever|wise|brilliant|amazing)
    how (?:clever|wise|smart) | i (?:totally |completely |fully )?agree with you | well said
    as you (?:rightly|wisely) sa(?:y|id)
    """,
    """
    [问問]得(?:真|很|太)?好 | 好[问問][题題] | [说說]得(?:真|很|太)?(?:[对對]|好) | [您你][说說]得[对對] | 完全正[确確]
    [您你](?:真|太|很|非常)(?:[聪聰]明|[厉厲]害|棒|有智慧) | 高[见見] | 英明 | 同意[您你]
    """,
)
AS_AN_AI = _any(
    r"""
    as an? (?:large )?(?:ai|artificial intelligence|language model|chatbot|assistant(?=,| i\b))
    i(?:'m| am) (?:just |only )?an? (?:ai|language model)
    """,
    """
    作[为為](?:一[个個名])?(?:人工智[能慧]|ai|[语語]言模型|大?模型|助手)
    我(?:只)?是(?:一[个個名])?(?:人工智[能慧]|[语語]言模型|ai)
    """,
)
_CANNOT = r"can(?:no|['’])t|can not|do(?: no|n['’])t|won['’]t|will not|must not"
_NOT = rf"(?:{_CANNOT}|not able to|unable to|refuse to|not going to)"
# Not "I can't help laughing", "I can't tell the difference", "I don't give up", "I cannot say enough", and so on.
_TELL = (
    r"(?:help(?! (?:but|(?!any|every|some)\w+ing)\b)|tell(?! (?:(?:you )?(?:a |any )?lies?|(?:you )?the difference)\b)|"
    r"give(?! (?:up|in|way|a)\b)|say(?! (?:enough|no|for|whether|if)\b)|"
    r"explain(?! how \w+ (?:i|we) (?:am|are|was|were)\b)|"
    r"assist|do|provide|answer|discuss|share|support|comply|show|teach|write)"
)
REFUSAL = _any(
    rf"i(?: am|['’]m)? ?{_NOT} {_TELL} | i (?:must|have to) (?:decline|refuse)",
    """
    (?:不能|[无無]法|不可以|[没沒]法|不[会會])(?:[帮幫]|[协協]助|提供|告[诉訴]|回答|教|[说說]|解[释釋]|[满滿]足|支持|[这這]样?做)
    恕[难難] | 拒[绝絕](?:回答|提供|[帮幫]助)
    """,
)
