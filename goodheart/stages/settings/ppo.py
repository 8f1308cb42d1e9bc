"""Settings of PPO."""

from __future__ import annotations

from pydantic import Field, model_validator

from goodheart.stages.settings.policy_gradient import PolicyGradientSettings


class PPOConfig(PolicyGradientSettings):
    """Settings of PPO beside those of `PolicyGradientSettings`."""

    mini_batches: int = Field(4, ge=1)  # optimizer steps per pass over the batch
    ppo_epochs: int = Field(4, ge=1)  # passes over the batch

    value_learning_rate: float | None = Field(None, gt=0)  # None = learning_rate
    value_model: str = "auto"  # auto (the reward model where it fits, else the policy), reward, policy, or a folder
    shared_trunk: bool = False  # value head on the policy's own hidden states; one model less in memory
    value_warmup: int = Field(0, ge=0)  # PPO steps that train the value model alone

    kl_coef: float = Field(0.05, ge=0)  # beta: reward lost per nat of KL
    kl_target: float | None = Field(None, gt=0)  # nats per answer; adapts kl_coef to hold the KL there
    kl_horizon: float = Field(10_000, gt=0)  # answers over which the coefficient adapts
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    cliprange: float = Field(0.2, gt=0)
    # in bfloat16 a token's loss is weighed by p_trainer / p_sampler, at most this much; None = not at all
    importance_cap: float | None = Field(2.0, ge=1)
    cliprange_value: float | None = Field(0.2, gt=0)  # None = values are not clipped
    vf_coef: float = Field(0.1, ge=0)
    entropy_coef: float = Field(0.0, ge=0)
    whiten_rewards: bool = False
    whiten_advantages: bool = True

    @model_validator(mode="after")
    def _possible(self) -> PPOConfig:
        if self.shared_trunk and self.value_model not in {"auto", "policy"}:
            raise ValueError("shared_trunk puts the value head on the policy; leave value_model at auto")
        if self.value_model == "reward" and not isinstance(self.reward, str):
            raise ValueError("value_model: reward needs a single reward model to start from; use value_model: policy")
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError(
                "kl_target adapts kl_coef by a factor, and 0 stays 0: set kl_coef to the price to begin with"
            )
        if self.kl_target is None and self.given("kl_horizon"):
            raise ValueError(f"kl_horizon {self.kl_horizon:g} says how fast kl_coef adapts: set kl_target")
        return self

    def parents(self) -> dict[str, str]:
        known = self.value_model in {"auto", "reward", "policy"}
        return super().parents() | ({} if known else {"value": self.value_model})
