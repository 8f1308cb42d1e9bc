"""Reads any text as sentences of the world: what each one does, how well it is formed, and what it mentions.

A sentence that the world knows is matched against the lines that write answers; of any other it is told how much of it
is put together as in the world (share of known pairs of neighbouring words).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from goodheart.playground.language import Language
from goodheart.playground.tasks import DOMAINS, tables

_SENTENCE = re.compile(r"[^.!?。！？\n]*[.!?。！？]+|[^.!?。！？\n]+")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+", re.UNICODE)
_CHINESE = re.compile(r"[㐀-鿿]")
_ENDS = ".!?。！？"
_NUMBER = r"\d{1,6}"
_NUMBERS = 20  # those up to here have known neighbours
_SLOT = re.compile(r"\\\{(\w)\\\}")
_LOOSE = 0.8  # a known sentence in other case, spacing or punctuation
_UNFINISHED = 0.6  # a known sentence without its last mark
_UNKNOWN = 0.4  # the most that an unknown sentence can be worth


@dataclass(frozen=True)
class Act:
    """One sentence and what it does; `name` is "unknown" where the world has no such sentence."""

    name: str
    slots: Mapping[str, str]
    text: str  # normalised
    words: int
    quality: float  # 1 = as the world writes it, 0 = nothing of the world in it


@dataclass(frozen=True)
class Reading:
    """A text, sentence by sentence."""

    acts: tuple[Act, ...]
    words: int
    clean: bool  # no invisible or control characters
    mentions: frozenset[str] = field(default_factory=frozenset)  # words of sentences that the world does not know
    unknown: str = ""  # those sentences, normalised

    def of(self, *names: str) -> list[Act]:
        """The acts of these names, in the order of the text."""
        return [act for act in self.acts if act.name in names]

    def count(self, *names: str) -> int:
        return len(self.of(*names))

    def says(self, piece: str) -> bool:
        """Whether a sentence unknown to the world holds these words."""
        return bool(piece) and _spaced(piece) in self.unknown


def words_of(text: str) -> list[str]:
    """Words of a text in small letters; of Chinese, the characters."""
    found = []
    for word in _WORD.findall(text.casefold()):
        found += list(word) if _CHINESE.search(word) else [word]
    return found


def read(text: str, language: str) -> Reading:
    """Reads a text of whatever content in one of the world's languages."""
    visible, clean = _visible(text)
    reader = _reader(language)
    acts = tuple(reader.act(sentence) for piece in _SENTENCE.findall(visible) if (sentence := " ".join(piece.split())))
    strange = [act for act in acts if act.name == "unknown"]
    return Reading(
        acts,
        sum(act.words for act in acts),
        clean,
        frozenset(itertools.chain.from_iterable(words_of(act.text) for act in strange)),
        " ".join(_spaced(act.text) for act in strange),
    )


def _visible(text: str) -> tuple[str, bool]:
    """The text as it is seen, and whether that is all of it: hidden characters are left out."""
    kept = [c for c in text if c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Co", "Cs", "Cn"}]
    return "".join(kept), len(kept) == len(text)


def _plain(text: str) -> str:
    """Case, width and spacing made equal, the last mark taken off."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_ENDS + " ")


def _spaced(text: str) -> str:
    """Words between single spaces, so that a piece is only found at the ends of words."""
    return f" {' '.join(words_of(text))} "


@dataclass(frozen=True)
class _Line:
    act: str
    extra: Mapping[str, str]  # slots known from the line itself
    exact: re.Pattern[str]
    loose: re.Pattern[str]
    written: Mapping[str, str]  # what stands in its places: as it is found -> as the world writes it


class _Reader:
    """The lines and the neighbouring words of one language."""

    def __init__(self, language: str) -> None:
        domains = [tables(language, domain) for domain in DOMAINS]
        self.lines = [
            _Line(
                act,
                extra,
                _pattern(line, slots, str),
                _pattern(_plain(line), slots, _plain),
                {_plain(option): option for options in slots.values() for option in options},
            )
            for act, line, slots, extra in _lines(domains)
        ]
        self.pairs = set(itertools.chain.from_iterable(_pairs(line, slots) for _, line, slots, _ in _lines(domains)))

    def act(self, sentence: str) -> Act:
        """What a sentence does; unknown ones are valued by their pairs of neighbouring words."""
        plain, count = _plain(sentence), len(words_of(sentence))
        for line in self.lines:
            found = line.loose.fullmatch(plain)
            if found:
                exact = line.exact.fullmatch(sentence)
                quality = 1.0 if exact else _LOOSE if sentence[-1] in _ENDS else _UNFINISHED
                slots = {name: line.written.get(value, value) for name, value in found.groupdict().items()}
                return Act(line.act, {**line.extra, **slots}, plain, count, quality)
        return Act("unknown", {}, plain, max(count, 1), self._value(sentence))

    def _value(self, sentence: str) -> float:
        words = ["^", *words_of(sentence), "$"]
        known = sum(pair in self.pairs for pair in itertools.pairwise(words)) / (len(words) - 1)
        return _UNKNOWN * known**2


@lru_cache
def _reader(language: str) -> _Reader:
    return _Reader(language)


def _lines(domains: list[Language]) -> Iterator[tuple[str, str, dict[str, set[str]], dict[str, str]]]:
    """(act, line, what may stand in its places, slots known from the line) of every sentence the world has."""
    village = domains[0]
    names = set(village.names)
    moods = [mood for words in domains for mood in words.moods.values()]
    feelings = {f for mood in moods for f in mood.feelings}
    mirrored = {m for mood in moods for _, m in mood.causes}
    for key, relation in village.relations.items():
        yield "state", relation.statement, {"n": names, "v": set(relation.values)}, {"relation": key}
    yield "total", village.sum_statement, {"a": {_NUMBER}, "b": {_NUMBER}, "c": {_NUMBER}}, {}
    steps = {s for words in domains for _, first, then in words.tasks for s in (first, then)}
    yield "first", village.first, {"s": steps}, {}
    yield "then", village.then, {"s": steps}, {}
    deeds = [deed for words in domains for deed in words.deeds]
    things = {thing for deed in deeds for thing in deed.things} | {v for words in domains for v in words.victims}
    yield "method", village.method, {"t": {deed.tool for deed in deeds}, "o": things}, {}
    news = {w for words in domains for w in words.news}
    for key, register in village.registers.items():
        yield "tell", register.line, {"n": names, "w": news}, {"tone": key}
        yield "close", register.closing, {}, {"tone": key}
    for act, lines in village.lines.items():
        for line in lines:
            yield act, line, {"f": feelings, "m": mirrored}, {}


def _pattern(line: str, slots: Mapping[str, Iterable[str]], form: Callable[[str], str]) -> re.Pattern[str]:
    """The line as an expression with one named group per place."""

    def group(match: re.Match[str]) -> str:
        options = sorted(slots[match[1]], key=len, reverse=True)
        return f"(?P<{match[1]}>{'|'.join(o if o == _NUMBER else re.escape(form(o)) for o in options)})"

    return re.compile(_SLOT.sub(group, re.escape(line)))


def _pairs(line: str, slots: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str]]:
    """Pairs of neighbouring words in a line, for every way to fill its places, each place on its own."""
    sample = {
        name: sorted(map(str, range(_NUMBERS)) if _NUMBER in options else options)
        for name, options in slots.items()
        if "{" + name + "}" in line
    }
    firsts = {name: options[0] for name, options in sample.items()}
    for name, options in sample.items() if sample else [("", [""])]:
        for option in options:
            filled = line.format(**(firsts | ({name: option} if name else {})))
            yield from itertools.pairwise(["^", *words_of(filled), "$"])
