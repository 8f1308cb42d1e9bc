"""Settings of the Goodhart guard."""

from __future__ import annotations

from pydantic import Field, model_validator

from goodheart.judges.settings import is_reward_file
from goodheart.train.config import Settings


class AuditSettings(Settings):
    """When and by whom a run is audited. Without a judge there is no guard, and the run says so."""

    judge: str | None = None  # run folder, sequence-classification folder, or package.module:function; not `reward`
    every: int = Field(10, ge=1)  # steps between looks; also at the start and at the end
    prompts: str | list[str] | None = None  # None = some of the training prompts
    count: int = Field(64, ge=2)  # prompts asked at each look
    answers: int = Field(1, ge=1)  # answers to each
    stop: bool = True  # end the run when the audit has turned down
    keep: bool = True  # the result is the model of the best look, not the last one
    false_alarms: float = Field(0.05, gt=0, lt=1)  # probability of stopping a run that never got worse
    tolerance: float = Field(0.05, ge=0, lt=1)  # share of the audit's gain that may be lost again

    @model_validator(mode="after")
    def _has_a_judge(self) -> AuditSettings:
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.judge is None and changed:
            raise ValueError("audit.judge is missing: a judge that the policy is not trained on")
        if self.judge is not None and is_reward_file(self.judge):
            raise ValueError(
                f"audit.judge {self.judge} is a file of several rewards: name one judge, so that it can be told from "
                "those that are trained on"
            )
        return self
