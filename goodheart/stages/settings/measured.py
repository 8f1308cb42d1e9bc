"""Settings of stages that learn from some records and are measured on others."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from goodheart.train.config import TrainingSettings, listed


class MeasuredSettings(TrainingSettings):
    """Settings of a stage that learns from some records and is measured on others."""

    data: str | list[str]
    eval_data: str | list[str] | None = None  # None = `held_out` of the data, split by prompt
    held_out: float = Field(0.1, ge=0, lt=1)  # with one seed all stages hold out the same conversations
    eval_every: int | None = Field(None, ge=1)  # steps; None = at the end only

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.eval_every and not (self.held_out or self.eval_data):
            raise ValueError("`eval_every` has nothing to measure on: give `eval_data`, or a `held_out` over 0")
        return self

    def files(self) -> list[str]:
        """All that is read."""
        return [*listed(self.data), *listed(self.eval_data)]
