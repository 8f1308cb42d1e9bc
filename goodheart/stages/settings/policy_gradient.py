"""What the stages that learn from their own answers have (ppo, grpo, online)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from goodheart.judges.settings import CombinedReward, RewardSetting, judge_names
from goodheart.stages.settings.audit import AuditSettings
from goodheart.stages.settings.curriculum import CurriculumSettings
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.train.config import TrainingSettings, listed
from goodheart.train.lineage import same_place


class PolicyGradientSettings(TrainingSettings):
    """What ppo and grpo both have. `model` is the policy to start from and, unless `reference` is given, the
    reference.
    """

    reward: RewardSetting  # run folder, sequence-classification folder, package.module:function, or several of them
    prompts: str | list[str]
    curriculum: CurriculumSettings | None = None  # which prompts are asked when; None = all in turn
    reference: str | None = None  # model the KL is measured against; None = the start of the policy

    steps: int | None = Field(None, ge=1)  # rounds of answering and learning; None = `epochs` over the prompts
    batch_size: int = Field(64, ge=1)  # answers per step
    mini_batches: int = Field(1, ge=1)  # optimizer steps per pass over the batch
    sampling: SamplingSettings = SamplingSettings()
    slots: int = Field(64, ge=1)  # answers generated side by side

    checkpoint_every: int = Field(10, ge=1)  # steps
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "constant"

    normalize_reward: bool = True  # scores of a reward model on the scale of its training answers (mean 0, std 1)
    missing_eos_penalty: float | None = Field(None, ge=0)  # taken off the score of an answer that was cut off
    # Answers lose up to `overlong_penalty` over the last part of the room they have (DAPO); share of max_new_tokens
    overlong_zone: float = Field(0.0, ge=0, le=1)  # 0 = off
    overlong_penalty: float = Field(1.0, ge=0)
    # ends the passes of a step when the policy moved further (k2, nats/token)
    target_kl: float | None = Field(None, gt=0)
    max_kl: float | None = Field(None, gt=0)  # ends the run when objective/kl (nats per answer) goes over
    audit: AuditSettings = AuditSettings()
    sample_every: int = Field(10, ge=1)  # steps between looks at what the model says (samples.jsonl)

    @model_validator(mode="after")
    def _can_learn_from_own_answers(self) -> Self:
        sampling = self.sampling
        if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
            raise ValueError("sampling: top_p, top_k and min_p must be off while training (the ratio would be wrong)")
        if sampling.temperature == 0:
            raise ValueError("sampling.temperature must be over 0 while training")
        if self.mini_batches > self.batch_size:
            raise ValueError(f"mini_batches {self.mini_batches} is more than batch_size {self.batch_size}")
        if self.parallel == "fsdp":
            raise ValueError("every process generates on its own and needs whole weights: use parallel ddp")
        trained_on = judge_names(self.reward).values()
        if self.audit.judge is not None and any(same_place(self.audit.judge, judge) for judge in trained_on):
            raise ValueError("audit.judge is a reward that is trained on: it cannot tell when it stops being a measure")
        normally = type(self).model_fields["normalize_reward"].default  # `online` takes raw scores unless told
        if isinstance(self.reward, CombinedReward) and normally and not self.normalize_reward:
            raise ValueError(
                "normalize_reward: false is not read with several rewards, each of which has a scale of its own; to "
                "take one as it is, give its term mean: 0 and std: 1"
            )
        if self.max_steps is not None:
            raise ValueError("this stage counts `steps` (answers are batch_size * steps); leave max_steps out")
        if self.overlong_zone and not self.overlong_tokens:
            raise ValueError(
                f"overlong_zone {self.overlong_zone:g} of max_new_tokens {sampling.max_new_tokens} is not one token: "
                "make it larger, or 0 to have none"
            )
        if not self.overlong_zone and self.given("overlong_penalty"):
            raise ValueError(f"overlong_penalty {self.overlong_penalty:g} needs an overlong_zone to be taken in")
        return self

    def given(self, name: str) -> bool:
        """Whether a setting has another value than its default; a resolved config.yaml names them all."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def overlong_tokens(self) -> int:
        """`overlong_zone` in tokens."""
        return round(self.overlong_zone * self.sampling.max_new_tokens)

    def data(self) -> list[str]:
        """Where the prompts come from."""
        return [*listed(self.prompts), *listed(self.audit.prompts)]

    def parents(self) -> dict[str, str]:
        """role -> the model or judge that plays it."""
        roles = {
            "model": self.model,
            **judge_names(self.reward),
            "reference": self.reference,
            "audit": self.audit.judge,
        }
        return {role: name for role, name in roles.items() if name is not None}
