"""What travels between the parts of the loop: small frozen records, standard library only.

A preference is kept as it was given (K answers, tiers with ties, who, when, in which shown order); every file format
is a lossy view of it.

    Judgement(
        prompt=Prompt(messages=(Message("user", "How do magnets work?"),)),
        answers=(Answer("They pull on iron."), Answer("No idea."), Answer("Magic!")),
        ranks=(0, 1, 1),          # 0 is best; equal numbers are a tie
    )
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STRENGTHS = (1, 2, 3, 4)  # of a preference: negligibly, slightly, better, significantly


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is system, user, assistant or tool."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)  # tool calls, thinking, names: passed to the chat template

    def as_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked: either raw `text` to continue or chat `messages` (exactly one of the two)."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)  # other columns of the row, passed on to reward functions

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.messages):
            raise ValueError("a Prompt has either text or messages")

    @property
    def is_chat(self) -> bool:
        return self.text is None

    @property
    def key(self) -> str:
        """Identity for splits and duplicates: hash of the normalised text (case, width and spacing do not matter)."""
        parts = [self.text or ""] if not self.messages else [f"{m.role}\x1f{m.content}" for m in self.messages]
        joined = " ".join(unicodedata.normalize("NFKC", "\x1e".join(parts)).casefold().split())
        return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def as_column(self) -> str | list[dict[str, Any]]:
        """The value of a TRL `prompt` column."""
        return self.text if self.text is not None else [m.as_dict() for m in self.messages]


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply to a prompt: text for a raw prompt, or the assistant's turns (usually one) for a chat."""

    text: str = ""
    messages: tuple[Message, ...] = ()  # set where the answer is more than one assistant message of plain text
    model: str | None = None
    # How it came about and what is known of it. Names that are read here: `sampling` (settings it was drawn with),
    # `logprob` (of the whole answer, in nats), `finish` (eos, stop or length), `score` (what somebody gave it).
    meta: Mapping[str, Any] = field(default_factory=dict)

    def turns(self) -> tuple[Message, ...]:
        return self.messages or (Message("assistant", self.text),)

    @property
    def words(self) -> str:
        """The text a reader sees, turns joined by blank lines."""
        return self.text if not self.messages else "\n\n".join(m.content for m in self.messages)


@dataclass(frozen=True, slots=True)
class Text:
    """A document for pre-training."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the answer to imitate."""

    prompt: Prompt
    answer: Answer


@dataclass(frozen=True, slots=True)
class Judgement:
    """Somebody's order over K answers to one prompt."""

    prompt: Prompt
    answers: tuple[Answer, ...]
    ranks: tuple[int, ...]  # one per answer, 0 is best, equal numbers tie
    margin: float | None = None  # strength of preference of a pair, in units of reward
    weight: float = 1.0  # trust in this label
    rater: str | None = None
    rater_attributes: Mapping[str, Any] = field(default_factory=dict)  # culture, language, age group, ...
    guideline: str | None = None  # version of the guidelines it was given under
    shown_order: tuple[int, ...] | None = None  # answer indices from left to right as shown
    seconds: float | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)  # harmful, wrong, off-topic, both bad ...
    gold: bool = False
    batch: str | None = None
    strength: int | None = None  # how much better, as said: 1 negligibly, 2 slightly, 3 better, 4 significantly
    probability: float | None = None  # that the order of this pair is right: a soft label, 0 to 1
    ratings: Mapping[str, Any] = field(default_factory=dict)  # rubric -> one score per answer
    comment: str | None = None
    source: str | None = None  # person, ai, simulated or import; None = not recorded
    kind: str = "label"  # or adjudication: the last word on labels that disagree
    created_at: str | None = None  # as written down, ISO 8601 where we wrote it
    item_id: str | None = None  # the task; all who judged the same one share it
    group_id: str | None = None  # pairs cut from one ranking share it

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.answers) or len(self.answers) < 2:
            raise ValueError("a Judgement needs at least two answers and one rank for each")
        if self.strength is not None and self.strength not in STRENGTHS:
            raise ValueError(f"strength must be 1, 2, 3 or 4, found {self.strength!r}")
        if self.probability is not None and not (len(self.answers) == 2 and 0 <= self.probability <= 1):
            raise ValueError("probability is that of the order of a pair, 0 to 1")


@dataclass(frozen=True, slots=True)
class Rating:
    """A number somebody gave one answer."""

    prompt: Prompt
    answer: Answer
    score: float
    rater: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Thumb:
    """Thumbs up (True) or down for one answer."""

    prompt: Prompt
    answer: Answer
    label: bool
    weight: float = 1.0
    rater: str | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer with what training needs to know about how it was sampled.

    All per-token tuples have the length of `ids` (completion tokens only, the end token included where emitted).
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logps: tuple[float, ...]  # sampler's log-probability of each token
    sampled: tuple[bool, ...]  # False where a token was forced (tool output, prefix)
    policy_version: int
    finish: str  # "eos", "stop" or "length"
