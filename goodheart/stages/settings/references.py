"""Settings of stages that learn from answers already there (dpo, kto)."""

from __future__ import annotations

from pydantic import Field

from goodheart.stages.settings.curriculum import RowCurriculum
from goodheart.stages.settings.measured import MeasuredSettings


class ReferenceSettings(MeasuredSettings):
    """Settings of a stage that learns from answers already there. `model` is the policy to start from and, unless
    `reference` is given, the reference.
    """

    reference: str | None = None  # model that rewards are measured against; None = the start of the policy
    curriculum: RowCurriculum | None = None  # which rows come when; None = all in random order
    learning_rate: float = Field(1e-6, gt=0)

    def parents(self) -> dict[str, str]:
        """role -> the model that plays it."""
        return {"model": self.model} | ({"reference": self.reference} if self.reference else {})
