"""Where two answers differ, word by word; Chinese, Japanese and Korean are compared by character.

>>> [(p.kind, p.text) for p in difference("a big cat", "a small cat")[0]]
[('same', 'a '), ('changed', 'big'), ('same', ' cat')]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

from goodheart.studio.marks import show

WORDS_MOST = 4000  # of each text; beyond it lines are compared, which stays fast for texts of any length
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]+|\s+|[^\w\s]"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one text; `changed` where the other text has something else or nothing."""

    kind: str  # "same" or "changed"
    text: str


def words(text: str) -> list[str]:
    """Words, runs of spaces and single signs; joined they are the text."""
    return _WORD.findall(text)


def difference(a: str, b: str) -> tuple[list[Part], list[Part]]:
    """Both texts cut into what they share and what they do not."""
    left, right = words(a), words(b)
    if max(len(left), len(right)) > WORDS_MOST:
        left, right = a.splitlines(keepends=True), b.splitlines(keepends=True)
    if max(len(left), len(right)) > WORDS_MOST:
        return [Part("changed", a)], [Part("changed", b)]
    same_a, same_b = [False] * len(left), [False] * len(right)
    for block in SequenceMatcher(None, left, right, autojunk=len(left) > 500).get_matching_blocks():
        same_a[block.a : block.a + block.size] = [True] * block.size
        same_b[block.b : block.b + block.size] = [True] * block.size
    return _parts(left, same_a), _parts(right, same_b)


def marked(a: str, b: str) -> list[str]:
    """HTML of both texts, with what differs in <mark>."""
    return [
        "".join(show(p.text) if p.kind == "same" else f"<mark>{show(p.text)}</mark>" for p in parts)
        for parts in difference(a, b)
    ]


def _parts(pieces: list[str], same: list[bool]) -> list[Part]:
    """Neighbours of one kind joined; a lone space between two changes counts as changed, so that it reads well."""
    kinds = list(same)
    for i in range(1, len(pieces) - 1):
        if same[i] and pieces[i].isspace() and not same[i - 1] and not same[i + 1]:
            kinds[i] = False
    runs = groupby(zip(pieces, kinds, strict=True), key=lambda pair: pair[1])
    return [Part("same" if kind else "changed", "".join(piece for piece, _ in run)) for kind, run in runs]
