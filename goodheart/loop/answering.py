"""Which models answer the prompts of a campaign, and how they are asked: the settings `models` of a campaign file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, field_validator, model_validator

from goodheart.feedback.items import MOST_ANSWERS
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.train.config import Settings


class AnsweringModel(Settings):
    """A model whose answers are compared."""

    model: str  # a run folder, a Hugging Face folder or a Hub id; with `url` its name there
    name: str | None = None  # under which it appears on the leaderboard; None: `model`
    url: str | None = None  # of a server that speaks OpenAI's protocol, with /v1
    key_env: str | None = None  # environment variable with its key
    samples: int = Field(1, ge=1, le=50)  # answers to each prompt
    sampling: SamplingSettings | None = None  # what differs from the campaign's
    at_once: int = Field(8, ge=1, le=1000)  # requests at a time
    timeout: float = Field(120.0, gt=0)  # seconds that one answer may take

    @field_validator("url")
    @classmethod
    def _without_slash(cls, url: str | None) -> str | None:
        return None if url is None else url.rstrip("/")  # with and without it is the same server, asked once

    @model_validator(mode="after")
    def _fits(self) -> AnsweringModel:
        if self.url is None and self.key_env is not None:
            raise ValueError("key_env is for a model behind a `url`")
        if self.url is not None and re.match(r"(https?://)?[^/?#]*@", self.url):
            raise ValueError(
                "url: a user or password in it would be written into files; leave it out, and name the environment "
                "variable that holds the key by `key_env`"
            )
        if self.url is not None and not re.match(r"https?://[^/]", self.url):
            raise ValueError(f"url {self.url!r}: expected http://... or https://..., up to and with /v1")
        return self

    def over(self, shared: SamplingSettings) -> SamplingSettings:
        """How it is sampled: what its own settings say, and the shared ones where they say nothing."""
        own = {} if self.sampling is None else self.sampling.model_dump(exclude_unset=True)
        return shared.model_copy(update=own)

    @property
    def title(self) -> str:
        return self.name or self.model


@dataclass(frozen=True)
class Asking:
    """What is asked of whom."""

    prompts: list[str]
    models: list[AnsweringModel]
    sampling: SamplingSettings
    seed: int
    at_once: int | None = None  # answers shown together

    def how(self, model: AnsweringModel) -> SamplingSettings:
        return model.over(self.sampling)


def problem(models: Sequence[AnsweringModel], sampling: SamplingSettings) -> str:
    """Why these models will not do, in words; empty where they will."""
    twice = [title for title, count in Counter(each.title for each in models).items() if count > 1]
    if twice:
        return f"two models are called {twice[0]!r}; give each a `name` of its own"
    for i, each in enumerate(models):
        for other in models[:i]:
            if (each.model, each.url, each.over(sampling)) == (other.model, other.url, other.over(sampling)):
                return f"{other.title} and {each.title} are asked alike; name it once, with `samples`"
    if not 2 <= sum(each.samples for each in models) <= MOST_ANSWERS:
        return f"2 to {MOST_ANSWERS} answers to a prompt can be compared; name models, or give one of them `samples`"
    for each in models:
        if each.samples > 1 and each.over(sampling).temperature == 0:
            return f"{each.title} with temperature 0 gives the same answer {each.samples} times; raise the temperature"
    return ""
