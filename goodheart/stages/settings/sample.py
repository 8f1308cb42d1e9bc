"""Settings of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from goodheart.data.writing import unwritable
from goodheart.judges.settings import RewardSetting, moves_with_training
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.train.config import Settings, listed


class SampleConfig(Settings):
    """Settings of sampling."""

    model: str | list[str]  # run folders, Hugging Face folders or Hub ids; several models take the K answers in turn
    prompts: str | list[str]
    out: Path  # .jsonl, .json, .csv, .parquet; rows {"prompt", "completions": [...], ...}
    answers: int = Field(4, ge=1)  # K per prompt
    best_of: int = Field(1, ge=1)  # n draws for each of the K, of which `reward` chooses; 1 = off
    reward: RewardSetting | None = None  # run folder, package.module:function, or several (docs/rewards.md)
    limit: int | None = Field(None, ge=1)  # only the first so many prompts
    sampling: SamplingSettings = SamplingSettings()
    slots: int = Field(64, ge=1)  # answers generated side by side
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    plain_prompts: Literal["raw", "user"] | None = None  # None = as the model was trained, else raw
    quiet: bool = False

    @model_validator(mode="after")
    def _possible(self) -> SampleConfig:
        if why := unwritable(self.out, listed(self.prompts)):
            raise ValueError(f"`out`: {why}")
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("best_of over 1 and reward go together: the reward chooses the best")
        if self.best_of > 1 and self.sampling.temperature == 0:
            raise ValueError("best_of with temperature 0: all the answers would be the same")
        if moves_with_training(self.reward):
            raise ValueError("combine: constrained moves with training steps, which there are none of here; use a gate")
        return self
