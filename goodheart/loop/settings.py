"""Settings of the stages that the loop brings itself: playground, simulate and export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from goodheart.data.writing import unwritable
from goodheart.errors import ConfigError
from goodheart.judges.settings import Columns
from goodheart.loop.campaign_place import Place, holds_password
from goodheart.playground.population import Crowd
from goodheart.train.config import Settings, listed, nearest


class PlaygroundConfig(Settings):
    """Settings of the world."""

    out: Path  # folder to write: corpus, demonstrations, prompts; world.json last
    seed: int = 0
    language: list[Literal["en", "zh"]] = Field(default=["en"], min_length=1)
    documents: int | None = Field(None, ge=1)  # of the corpus; None = the world's own choice
    demonstrations: int | None = Field(None, ge=1)


class SimulateConfig(Settings):
    """Settings of simulated labelling."""

    answers: str | list[str]  # files of `goodheart sample`: rows with prompt and completions
    out: Path  # .jsonl (or another kind of file that goodheart writes)
    aspects: str = "goodheart.playground.truth:aspects"  # package.module:function that scores answers aspect by aspect
    truth: str | None = None  # function of one total score to hold labels against; None = the people's common taste
    population: Crowd = Field(default_factory=lambda: Crowd.model_validate("crowd"))  # preset, or a block
    guideline: str | None = None  # which version of population.guidelines is in force
    overlap: int = Field(1, ge=1)  # people per comparison
    at_once: int | None = Field(None, ge=2)  # answers compared at a time; None = all that a row has
    margin: float = Field(0.0, ge=0)  # pairs: `margin` of "much better", in units of reward; 0 = none is written
    only: Columns | None = None  # prompts whose columns say so: {kind: [harmful]}
    limit: int | None = Field(None, ge=1)  # only the first so many rows of answers
    seed: int = 0
    quiet: bool = False

    @model_validator(mode="after")
    def _possible(self) -> SimulateConfig:
        if why := unwritable(self.out, listed(self.answers)):
            raise ValueError(f"`out`: {why}")
        if self.margin and self.at_once != 2:
            raise ValueError("margin says how far the two answers of a pair are apart: set at_once to 2 with it")
        return self


class ExportConfig(Settings):
    """Settings of an export of a campaign's labels."""

    campaign: str  # STORE/CAMPAIGN: goodheart.db/helpful, postgresql://user@host/labels/helpful
    out: Path  # .jsonl (or another kind of file that goodheart writes)
    to: str = "ranked"  # layout of the rows, see docs/formats.md
    labels: Literal["each", "majority", "soft", "trusted", "scores"] = "each"  # what several labels become
    weights: Path | None = None  # file of rater and weight; None = all weigh the same
    trust: bool = False  # weigh each rater by how reliable their labels show them to be
    phases: list[Literal["work", "gold", "training", "qualification"]] = Field(default=["work"], min_length=1)
    quiet: bool = False

    @model_validator(mode="after")
    def _possible(self) -> ExportConfig:
        if why := unwritable(self.out, []):
            raise ValueError(f"`out`: {why}")
        from goodheart.data.layouts import LAYOUTS  # and with it every format: only for an export

        if self.to not in LAYOUTS:
            raise ValueError(f"`to`: unknown layout {self.to!r}{nearest(self.to, list(LAYOUTS))}")
        if self.weights is not None and (self.trust or self.labels == "trusted"):
            raise ValueError("weights say how far each rater is trusted, and so does trust: give one of them")
        if holds_password(self.campaign):
            said = "it would be written into files; leave it out and set PGPASSWORD, or write it into ~/.pgpass"
            raise ValueError(f"`campaign` holds a password: {said}")
        try:
            Place.of(self.campaign)
        except ConfigError as error:
            raise ValueError(f"`campaign`: {error}") from error
        return self
