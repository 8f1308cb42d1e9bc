"""Settings of rejection sampling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from goodheart.judges.settings import Columns, CombinedReward, RewardSetting
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.train.config import TrainingSettings


class RejectionConfig(TrainingSettings):
    """Settings of rejection sampling. `model` draws the answers and is then fine-tuned on the best of them."""

    reward: RewardSetting  # run folder, sequence-classification folder, package.module:function, or several of them
    prompts: str | list[str]
    num_generations: int = Field(8, ge=1)  # n, answers per prompt
    keep: Literal["best", "top", "threshold"] = "best"  # per prompt the best; the best share of all; all that reach it
    top_share: float = Field(0.1, gt=0, le=1)  # top: share of the distinct answers that is kept
    threshold: float | None = None  # score (on the reward's own scale) that an answer must reach, with any `keep`
    history: list[str] = Field(default_factory=list)  # earlier runs of this stage, whose answers compete too
    preprompt: str | None = None  # system turn (first words of it) to draw behind; not there when scored or learned
    only: Columns | None = None  # prompts whose columns say so: {kind: [harmful]}
    sampling: SamplingSettings = SamplingSettings()
    slots: int = Field(64, ge=1)  # answers generated side by side
    pack: bool = False  # several answers in a row, each seeing only itself; pays on GPUs

    @model_validator(mode="after")
    def _possible(self) -> RejectionConfig:
        n = self.num_generations
        if n > 1 and self.sampling.temperature == 0:
            raise ValueError(f"sampling.temperature 0 draws the same answer {n} times; set it over 0")
        if n == 1 and self.keep == "best" and self.threshold is None and not self.history:
            raise ValueError("num_generations 1 with keep: best rejects nothing; draw more, or set a threshold")
        if self.keep == "threshold" and self.threshold is None:
            raise ValueError("keep: threshold needs `threshold`")
        if self.keep != "top" and self.top_share != RejectionConfig.model_fields["top_share"].default:
            raise ValueError(f"top_share is not read with keep: {self.keep}")
        if self.keep == "top" and self.top_share == 1 and self.threshold is None:
            raise ValueError("keep: top with top_share 1 rejects nothing")
        if self.parallel == "fsdp":
            raise ValueError("rejection generates with every process on its own and needs whole weights: use ddp")
        if isinstance(self.reward, CombinedReward) and self.reward.combine == "constrained":
            raise ValueError("combine: constrained moves with training steps, which there are none of here; use a gate")
        return self
