"""A crowd of simulated labellers from a short description.

    crowd:     people: 30, careless: 0.1, spammers: 0.05
    labellers: population(Crowd(people=30, careless=0.1, spammers=0.05), seed=0)

All is drawn from the seed: the same description gives the same people. What each parameter does to a judgement is told
in `goodheart.playground.labellers`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from goodheart.errors import ConfigError
from goodheart.playground.labellers import Guideline, Habit, Labeller

Weight = Annotated[float, Field(ge=0)]

# Harm weighs most, then truth and help, as labelling guidelines of the field have it (arXiv:2203.02155, appendix B).
WEIGHTS: Mapping[str, float] = {
    "safe": 3.0,
    "true": 2.0,
    "helpful": 2.0,
    "empathetic": 1.0,
    "format": 1.0,
    "tone": 1.0,
    "concise": 0.5,
}
_HABITS: tuple[Habit, ...] = ("first", "longest")

# Ready crowds, to be named in `population: crowd` or taken over in `population: {like: crowd, people: 10}`.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # a small trained team, nearly without noise
    "careful": {"people": 12, "temperature": 0.04, "spread": 0.1},
    # people hired by the hour: a bit of every fault
    "crowd": {
        "people": 30,
        "temperature": 0.08,
        "spread": 0.3,
        "tie": 0.02,
        "length_bias": 0.02,
        "position_bias": 0.02,
        "haste": 0.3,
        "careless": 0.1,
        "spammers": 0.05,
    },
    # two groups who want different things of the same answer
    "two-cultures": {
        "people": 24,
        "temperature": 0.06,
        "cultures": {
            "warm": {"weights": {"empathetic": 3.0, "tone": 2.0, "concise": 0.2}},
            "brisk": {"weights": {"empathetic": 0.3, "concise": 4.0}},
        },
    },
    # what makes a model talk and talk
    "fond-of-length": {"people": 20, "temperature": 0.08, "length_bias": 0.15},
    # paid by the piece
    "hasty": {"people": 20, "temperature": 0.08, "haste": 2.0, "careless": 0.3, "carelessness": 0.7, "spammers": 0.1},
}


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Culture(_Block):
    """A group of people, and how they differ from the crowd's common taste."""

    share: float = Field(1.0, gt=0)  # of the people, in relation to the other cultures' shares
    weights: dict[str, Weight] = {}  # aspect -> factor on the common weight


class Crowd(_Block):
    """Who labels. Shares are of people, between 0 and 1."""

    like: str | None = None  # preset that holds where nothing else is said: careful, crowd, two-cultures, ...
    people: int = Field(20, ge=1)
    weights: dict[str, Weight] = dict(WEIGHTS)  # common taste: aspect -> weight
    cultures: dict[str, Culture] = {}
    spread: float = Field(0.0, ge=0)  # how much persons differ: standard deviation of the log of each weight
    temperature: float = Field(0.1, ge=0)  # noise, in units of taste
    tie: float = Field(0.0, ge=0)  # difference that goes unnoticed
    length_bias: float = 0.0  # taste that one doubling of the length is worth
    position_bias: float = 0.0  # taste by which the answer shown first is favoured over the last
    haste: float = Field(0.0, ge=0)  # 1 = twice as fast, with twice the noise
    careless: float = Field(0.0, ge=0, le=1)  # share of people who are careless at times
    carelessness: float = Field(0.5, ge=0, le=1)  # share of a careless person's judgements made without looking
    spammers: float = Field(0.0, ge=0, le=1)  # share of people who always take the first, or the longest
    guidelines: dict[str, dict[str, Weight]] = {}  # version -> aspect -> factor on everybody's weight

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"like": given, **_preset(given)}
        if isinstance(given, Mapping) and isinstance(given.get("like"), str):
            return {**_preset(given["like"]), **given}
        return given

    @model_validator(mode="after")
    def _possible(self) -> Crowd:
        if not any(self.weights.values()):
            raise ValueError("weights: nobody cares about anything; give one aspect a weight over 0")
        if self.careless + self.spammers > 1:
            raise ValueError(f"careless {self.careless} and spammers {self.spammers} are more than all people")
        known = [*self.weights]
        for where, factors in [
            *((f"cultures.{name}.weights", culture.weights) for name, culture in self.cultures.items()),
            *((f"guidelines.{name}", factors) for name, factors in self.guidelines.items()),
        ]:
            for aspect in factors:
                if aspect not in known:
                    raise ValueError(f"{where}: `{aspect}` is not in weights{_nearest(aspect, known)}")
        return self

    def guideline(self, name: str | None) -> Guideline | None:
        """The version of that name.

        Raises:
            ConfigError: there is none.
        """
        if name is None:
            return None
        if name not in self.guidelines:
            raise ConfigError(f"`guideline`: no version `{name}`{_nearest(name, list(self.guidelines))}")
        return Guideline(name, self.guidelines[name])

    @property
    def common(self) -> Labeller:
        """What the crowd would say without noise, faults and personal taste."""
        return Labeller("common taste", dict(sorted(self.weights.items())), temperature=0.0)


def population(crowd: Crowd | str | Mapping[str, Any], seed: int = 0) -> tuple[Labeller, ...]:
    """The people of a crowd.

    Args:
        crowd: its description, the name of a preset, or the fields as a mapping.
        seed: another one gives other persons of the same kind.

    Returns:
        `people` labellers named p01, p02 ...; the numbers of careless ones, of spammers and of each culture are the
        shares, rounded, and who they are is drawn.
    """
    crowd = crowd if isinstance(crowd, Crowd) else Crowd.model_validate(crowd)
    chance = Random(f"population {seed}")
    places = chance.sample(range(crowd.people), crowd.people)
    spammers = places[: round(crowd.spammers * crowd.people)]
    careless = places[len(spammers) :][: round(crowd.careless * crowd.people)]
    cultures = _cultures(crowd, chance)
    labellers = []
    for i in range(crowd.people):
        person = Labeller(
            f"p{i + 1:0{len(str(crowd.people))}}",
            _weights(crowd, cultures[i], chance),
            culture=cultures[i],
            temperature=crowd.temperature,
            tie=crowd.tie,
            length_bias=crowd.length_bias,
            position_bias=crowd.position_bias,
            haste=crowd.haste,
            carelessness=crowd.carelessness if i in careless else 0.0,
        )
        if i in spammers:
            person = replace(person, habit=_HABITS[spammers.index(i) % len(_HABITS)])
        labellers.append(person)
    return tuple(labellers)


def assign(rows: int, people: int, overlap: int, seed: int) -> Iterator[list[int]]:
    """For each row, who judges it: `overlap` different people, all about equally often (counts differ by two at most).

    Raises:
        ConfigError: there are not so many people.
    """
    if overlap > people:
        raise ConfigError(f"`overlap` {overlap} is more than the {people} people of the population")
    chance = Random(f"assign {seed}")
    queue: list[int] = []
    for _ in range(rows):
        chosen: list[int] = []
        while len(chosen) < overlap:
            free = [person for person in queue if person not in chosen]
            if not free:
                free = chance.sample(range(people), people)
                queue += free
                free = [person for person in free if person not in chosen]
            chosen.append(free[0])
            queue.remove(free[0])
        yield chosen


def _cultures(crowd: Crowd, chance: Random) -> list[str | None]:
    """The culture of each person: shares by largest remainder, order drawn; how they are listed does not matter."""
    if not crowd.cultures:
        return [None] * crowd.people
    total = sum(culture.share for culture in crowd.cultures.values())
    exact = {name: culture.share / total * crowd.people for name, culture in crowd.cultures.items()}
    counts = {name: math.floor(exact[name]) for name in sorted(exact)}
    for name in sorted(counts, key=lambda name: counts[name] - exact[name])[: crowd.people - sum(counts.values())]:
        counts[name] += 1
    listed: list[str | None] = [name for name, count in counts.items() for _ in range(count)]
    chance.shuffle(listed)
    return listed


def _weights(crowd: Crowd, culture: str | None, chance: Random) -> dict[str, float]:
    factors = {} if culture is None else crowd.cultures[culture].weights
    return {
        aspect: weight * factors.get(aspect, 1.0) * math.exp(crowd.spread * chance.gauss(0, 1))
        for aspect, weight in sorted(crowd.weights.items())  # drawn by name, so that their order does not matter
    }


def _preset(name: str) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"no preset `{name}`{_nearest(name, list(PRESETS))}")
    return PRESETS[name]


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(known))}" if known else ""
