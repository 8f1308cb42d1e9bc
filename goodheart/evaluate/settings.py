"""Settings of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from goodheart.train.config import RunSettings

LOWER = ("harmful", "over_refusal", "wrong_fact", "flattery")  # what is usually measured and should be low


class EvaluateConfig(RunSettings):
    """Settings of an evaluation."""

    answers: dict[str, Path] = Field(min_length=1)  # name -> file of `goodheart sample`; the first is the base
    score: str  # decides who wins: run folder, sequence-classification folder, or package.module:function
    aspects: str | None = None  # package.module:function that gives one dict of name -> number or None per answer
    lower_is_better: tuple[str, ...] = LOWER  # of the aspects
    reward: str | None = None  # reward model to examine: run folder, sequence-classification folder, or function
    labels: str | list[str] | None = None  # comparisons by people that it was not trained on
    tie: float = Field(0.0, ge=0)  # scores that differ by no more count as equal
    changes: list[tuple[str, str]] | None = None  # pairs (from, to) whose tics are told; None = to the last model
    resamples: int = Field(2000, ge=1000)  # of the intervals
    examples: int = Field(16, ge=0)
    reward_prompts: int = Field(200, ge=1)  # prompts on which the reward model is examined
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = Field(16384, ge=1)  # padded tokens per forward pass of a reward model

    @model_validator(mode="after")
    def _known(self) -> EvaluateConfig:
        for pair in self.changes or []:
            for name in pair:
                if name not in self.answers:
                    raise ValueError(f"changes: no answers are named `{name}`; there are {', '.join(self.answers)}")
        if self.labels is not None and self.reward is None:
            raise ValueError("labels: they are for examining a reward model; name it as `reward`")
        return self
