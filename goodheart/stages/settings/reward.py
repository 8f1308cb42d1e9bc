"""Settings of reward-model training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from goodheart.stages.settings.curriculum import RowCurriculum
from goodheart.stages.settings.measured import MeasuredSettings


class RewardConfig(MeasuredSettings):
    """Settings of reward-model training; `data` are pairs, rankings, ratings or thumbs (one kind per run)."""

    kind: Literal["auto", "preference", "rating", "thumb"] = "auto"
    curriculum: RowCurriculum | None = None  # which rows come when; None = all in random order
    learning_rate: float = Field(1e-5, gt=0)
    ranking: Literal["pairs", "plackett-luce"] = "pairs"
    center_coefficient: float = Field(0.01, ge=0)  # pulls the mean score of a prompt's answers to 0; 0 = off
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # share of labels taken to be wrong
    heads: int = Field(1, ge=1)  # an ensemble on one trunk
    members: int = Field(1, ge=1)  # an ensemble of whole models
    tie_margin: float | None = Field(None, gt=0)  # difference in score people notice; None = ties teach nothing
    bootstrap: bool = True  # heads and members of an ensemble see resampled labels, so that they differ

    @model_validator(mode="after")
    def _pairs_only(self) -> RewardConfig:
        if self.ranking == "plackett-luce" and (self.tie_margin is not None or self.label_smoothing):
            raise ValueError("`tie_margin` and `label_smoothing` belong to `ranking: pairs`; Plackett-Luce has neither")
        return self
