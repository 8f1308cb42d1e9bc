"""Settings of measuring difficulty."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from goodheart.data.writing import unwritable
from goodheart.train.config import Settings, listed


class DifficultyConfig(Settings):
    """Settings of measuring difficulty."""

    data: str | list[str]  # scored answers, or scored pairs and rankings
    out: Path  # .jsonl, .json, .csv, .parquet
    bar: float | None = None  # an answer passes with a score over it; None = over the mean score of all answers
    min_answers: int = Field(2, ge=1)  # with a score; prompts with fewer are set aside
    kind: str | None = None  # column whose values are reported apart, `task` say
    quiet: bool = False

    @model_validator(mode="after")
    def _writable(self) -> DifficultyConfig:
        if why := unwritable(self.out, listed(self.data)):
            raise ValueError(f"`out`: {why}")
        return self
