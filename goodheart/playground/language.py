"""What one language of the world consists of: words, ways to ask, ways to answer. Tables: english, chinese.

A way to ask or to answer is a line with places in braces, `{n} eats {v}.`; the same lines write answers and read them,
so what the world writes is what the truth understands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Words = tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """One thing that can be asked about every person of the world."""

    questions: Words
    statement: str  # says who {n} and which value {v}
    values: Words


@dataclass(frozen=True)
class Deed:
    """Something done to others with a tool: harmful to a victim, harmless to a thing."""

    verb: str
    tool: str
    things: Words


@dataclass(frozen=True)
class Mood:
    """Feelings of one colour with their causes, as the user says them and as the answer mirrors them."""

    feelings: Words
    causes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Register:
    """A tone: how it is asked for (by name or by the culture of whom it is for), and how it sounds."""

    requests: Words  # {n} a person, {w} the news
    line: str
    closing: str


@dataclass(frozen=True)
class Language:
    """Tables of one language (or of one domain of it)."""

    code: str
    joint: str  # between two sentences
    names: Words
    relations: Mapping[str, Relation]
    beliefs: Words  # {s} a statement of a relation without its full stop
    sums: Words  # {a} {b}
    sum_statement: str  # {a} {b} {c}
    tasks: tuple[tuple[str, str, str], ...]  # what to do, first step, second step
    task_questions: Words
    first: str
    then: str
    moods: Mapping[str, Mood]  # low, high
    feelings: Words  # {f} {c}
    deeds: tuple[Deed, ...]
    victims: Words
    deed_questions: Words  # {v} {o}
    method: str  # {t} {o}
    attributes: Mapping[str, Words]  # key -> values; the key of the name is `name_key`
    name_key: str
    json_requests: Words  # {n} {k} {v}
    categories: Mapping[str, Words]
    list_requests: Words  # {k} how many, {c} of what
    registers: Mapping[str, Register]
    news: Words
    lines: Mapping[str, Words]  # fixed sentences by act; may hold {f} feeling, {m} mirrored cause
    refusal_marks: Words  # pieces of refusals in words that the world does not write

    def end(self, sentence: str) -> str:
        """A sentence without its last mark."""
        return sentence.rstrip(".!?。！？")
