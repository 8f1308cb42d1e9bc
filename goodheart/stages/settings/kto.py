"""Settings of learning from thumbs up and down."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from goodheart.stages.settings.references import ReferenceSettings

ClassWeight = Literal["auto"] | float


class KTOConfig(ReferenceSettings):
    """Settings of learning from thumbs; of pairs in `data` one is up and one down."""

    loss: Literal["kto", "bco"] = "kto"
    beta: float = Field(0.1, gt=0)  # reward per nat; larger keeps the policy closer to the reference
    desirable_weight: ClassWeight = "auto"  # of a thumb up; auto = both classes weigh about the same
    undesirable_weight: ClassWeight = "auto"  # of a thumb down

    @model_validator(mode="after")
    def _possible(self) -> KTOConfig:
        if self.loss == "kto" and self.batch_size < 2:
            raise ValueError(
                "`loss: kto` needs `batch_size` of 2 or more: its baseline puts answers behind other prompts"
            )
        for name in ("desirable_weight", "undesirable_weight"):
            value = getattr(self, name)
            if value != "auto" and value <= 0:
                raise ValueError(f"`{name}` must be over 0, or auto")
        return self
