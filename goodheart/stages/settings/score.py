"""Settings of scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from goodheart.data.writing import unwritable
from goodheart.judges.settings import RewardSetting
from goodheart.train.config import Settings, listed


class ScoreConfig(Settings):
    """Settings of scoring."""

    reward: RewardSetting  # run folder, sequence-classification folder, package.module:function, or several of them
    data: str | list[str]
    out: Path
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = Field(16384, ge=1)
    quiet: bool = False

    @model_validator(mode="after")
    def _writable(self) -> ScoreConfig:
        if why := unwritable(self.out, listed(self.data)):
            raise ValueError(f"`out`: {why}")
        return self
