"""Settings of policy gradients without a critic; a method is a set of them, see `RECIPES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from goodheart.stages.settings.policy_gradient import PolicyGradientSettings

# What each recipe sets; where a paper gives no number, docs/grpo.md says where ours comes from.
RECIPES: dict[str, dict[str, Any]] = {
    "grpo": {"baseline": "group", "scale": "group-std", "normalize": "answers", "beta": 0.04},
    "dr-grpo": {"baseline": "group", "scale": "none", "normalize": "length-constant"},
    "dapo": {
        "baseline": "group",
        "scale": "group-std",
        "normalize": "tokens",
        "epsilon_high": 0.28,
        "dynamic_sampling": 10,
        "overlong_zone": 0.2,
    },
    "gspo": {
        "baseline": "group",
        "scale": "group-std",
        "normalize": "answers",
        "ratio": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
    "rloo": {"baseline": "leave-one-out", "scale": "none", "normalize": "length-constant", "kl_coef": 0.05},
    "reinforce++": {
        "baseline": "batch",
        "scale": "batch-std",
        "normalize": "tokens",
        "kl_coef": 0.01,
        "kl_credit": "token",
        "num_generations": 1,
    },
    "reinforce++-baseline": {
        "baseline": "group",
        "scale": "batch-std",
        "normalize": "tokens",
        "beta": 0.001,
        "kl_estimator": "k2",
    },
    "remax": {
        "baseline": "greedy",
        "scale": "none",
        "normalize": "length-constant",
        "kl_coef": 0.05,
        "kl_credit": "token",
        "num_generations": 1,
    },
}


class GRPOConfig(PolicyGradientSettings):
    """Settings of grpo beside those of `PolicyGradientSettings`."""

    recipe: Literal["grpo", "dr-grpo", "dapo", "gspo", "rloo", "reinforce++", "reinforce++-baseline", "remax"] = "grpo"
    num_generations: int = Field(8, ge=1)  # answers to each prompt; divides batch_size
    num_iterations: int = Field(1, ge=1)  # passes over the batch

    baseline: Literal["group", "leave-one-out", "batch", "greedy", "none"] = "group"
    scale: Literal["group-std", "batch-std", "none"] = "none"  # what advantages are divided by; batch-std whitens them
    normalize: Literal["tokens", "answers", "length-constant"] = "tokens"  # what weighs the same in the loss
    ratio: Literal["token", "sequence"] = "token"
    epsilon: float = Field(0.2, gt=0)  # clip range of the ratio
    epsilon_high: float | None = Field(None, gt=0)  # of its upper side; None = epsilon
    # in bfloat16 a token's loss is weighed by p_trainer / p_sampler, at most this much; None = not at all
    importance_cap: float | None = Field(2.0, ge=1)

    beta: float = Field(0.0, ge=0)  # KL in the loss
    kl_estimator: Literal["k2", "k3+"] = "k3+"  # gradients are the same
    kl_coef: float = Field(0.0, ge=0)  # KL in the reward: lost per nat
    kl_credit: Literal["answer", "token"] = "answer"  # a token pays for its whole answer, or from itself on
    report_kl: bool = True  # also without a KL term; a pass of the reference per step

    dynamic_sampling: int = Field(0, ge=0)  # rounds of asking other prompts in place of groups without spread; 0 = off
    mask_truncated: bool = False  # answers that were cut off stay in the baseline but are not learnt from

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What the recipe says, for everything that was not given."""
        if not isinstance(values, Mapping):
            return values
        named = RECIPES.get(values.get("recipe", "grpo"), {})
        # One KL term takes the other's place; what belongs to one that is off goes with it.
        left_out: set[str] = set()
        for term, other, detail in (("beta", "kl_coef", "kl_estimator"), ("kl_coef", "beta", "kl_credit")):
            if values.get(other):
                left_out |= {term, detail}
            if term in values and not values[term]:
                left_out.add(detail)
        return {name: value for name, value in named.items() if name not in left_out} | dict(values)

    @model_validator(mode="after")
    def _comparable(self) -> GRPOConfig:
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of num_generations {self.num_generations}: a step holds "
                "whole groups"
            )
        if self.num_generations == 1 and (self.compares_groups or self.dynamic_sampling):
            raise ValueError(
                "num_generations 1 leaves an answer alone in its group, with nothing to be compared with (baseline "
                f"{self.baseline}, scale {self.scale}, dynamic_sampling {self.dynamic_sampling}): give 2 or more, or "
                "recipe reinforce++ or remax"
            )
        if self.batch_size == 1 and (self.baseline == "batch" or self.scale == "batch-std"):
            raise ValueError("batch_size 1 leaves nothing to compare with in the batch")
        if self.beta and self.kl_coef:
            raise ValueError("beta puts the KL in the loss, kl_coef in the reward: set one of them to 0")
        if not self.beta and self.given("kl_estimator"):
            raise ValueError(f"kl_estimator {self.kl_estimator} is of the KL in the loss: set beta, its price")
        if not self.kl_coef and self.given("kl_credit"):
            raise ValueError(f"kl_credit {self.kl_credit} is of the KL in the reward: set kl_coef, its price")
        if self.epsilon_high is not None and self.epsilon_high < self.epsilon:
            raise ValueError(
                f"epsilon_high {self.epsilon_high:g} is below epsilon {self.epsilon:g}: recipe {self.recipe} sets the "
                "one or the other; give both"
            )
        if self.ratio == "sequence" and self.kl_coef and self.kl_credit == "token":
            raise ValueError("ratio sequence moves an answer as one; kl_credit token needs ratio token")
        if self.max_kl is not None and not self.needs_kl:
            raise ValueError("max_kl needs the KL: set report_kl to true")
        return self

    @property
    def compares_groups(self) -> bool:
        """Whether an answer that is alone in its group has nothing to be compared with."""
        return self.baseline in {"group", "leave-one-out"} or self.scale == "group-std"

    @property
    def needs_kl(self) -> bool:
        """Whether the reference passes over the answers of every step."""
        return self.report_kl or self.beta > 0 or self.kl_coef > 0
