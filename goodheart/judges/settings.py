"""What the settings say of several rewards and how they become one.

    combine: sum
    rewards:
      helpful: {judge: runs/reward-helpful}
      safe:    {judge: runs/reward-safe, weight: 0.5}
      json:    {judge: goodheart.judges.shape:valid_json, only: {kind: [json]}}

Such a block stands under `reward:` in a stage's settings, or in a YAML file that `reward` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, WrapValidator, model_validator

from goodheart.train.config import Settings, load_yaml, validate
from goodheart.train.lineage import is_function

Columns = dict[str, list[Any]]  # column of the prompts -> values that count


class Term(Settings):
    """One reward of several."""

    judge: str  # run folder, sequence-classification folder, or package.module:function
    weight: float = 1.0  # may be negative; 0 = the term is logged and may gate, but adds nothing
    mean: float | None = None  # None = as the reward folder recorded; 0 for a function
    std: float | None = Field(None, gt=0)  # None = as the reward folder recorded; 1 for a function
    heads: Literal["mean", "worst", "lower-bound"] = "mean"  # how the heads or members of an ensemble become one score
    k: float = Field(1.0, ge=0)  # lower-bound: standard deviations taken off the mean of the heads
    at_least: float | None = None  # on the judge's own scale; a gate, or with `constrained` a bound on the mean
    at_most: float | None = None
    only: Columns | None = None  # has an opinion only on prompts whose columns say so: {kind: [json, list]}
    options: dict[str, Any] = Field(default_factory=dict)  # further arguments of a function

    @model_validator(mode="after")
    def _possible(self) -> Term:
        if self.at_least is not None and self.at_most is not None:
            raise ValueError("give at_least or at_most, not both; name the judge twice for a band")
        if self.k != 1 and self.heads != "lower-bound":
            raise ValueError("k belongs to heads: lower-bound")
        return self

    @property
    def bounded(self) -> bool:
        return self.at_least is not None or self.at_most is not None


class CombinedReward(Settings):
    """Several rewards and how they become one."""

    combine: Literal["sum", "worst", "lower-bound", "llama2", "constrained"] = "sum"
    rewards: dict[str, Term] = Field(min_length=1)
    otherwise: float | None = None  # sum: what an answer gets that a gate stops
    k: float = Field(1.0, ge=0)  # lower-bound: standard deviations over the terms taken off their mean
    # llama2: terms `helpful` and `safe`
    threshold: float = Field(0.15, gt=0, lt=1)  # probability that an answer is safe, under which `safe` rules
    safety_prompts: Columns | None = None  # prompts where `safe` rules whatever it says: {kind: [harmful]}
    clip: float = Field(1e-4, gt=0, lt=0.5)  # probabilities are kept so far from 0 and 1, for the logit
    # constrained: the terms with a bound
    multiplier: float = Field(1.0, ge=0)  # price of a constraint at the start
    multiplier_rate: float = Field(0.05, ge=0)  # per step and standard deviation of excess; 0 = the price stays
    multiplier_damping: float = Field(10.0, ge=0)  # times the rate: what the last step's excess adds; 0 = it swings
    multiplier_most: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> CombinedReward:
        bounds = [name for name, term in self.rewards.items() if term.bounded]
        if "by_safety" in self.rewards or "stopped" in self.rewards:
            raise ValueError("`by_safety` and `stopped` are names of what is logged; call the term something else")
        if self.combine not in ("sum", "constrained") and bounds:
            raise ValueError(f"at_least and at_most ({', '.join(bounds)}) belong to combine: sum or constrained")
        if self.combine == "sum" and (bounds != []) != (self.otherwise is not None):
            raise ValueError("a gate (at_least or at_most) and `otherwise`, what it gives when it stops, go together")
        if self.combine == "constrained" and not 0 < len(bounds) < len(self.rewards):
            raise ValueError("constrained needs a term with at_least or at_most, and one without that is maximised")
        for name in bounds if self.combine == "constrained" else ():
            if is_function(self.rewards[name].judge) and self.rewards[name].std is None:
                raise ValueError(
                    f"`{name}` is a function, of which nobody knows how far its scores spread: give its std, the unit "
                    "in which it may be over or under its bound"
                )
        if self.multiplier > self.multiplier_most:
            raise ValueError(f"multiplier {self.multiplier:g} is over multiplier_most {self.multiplier_most:g}")
        if self.combine == "llama2" and set(self.rewards) != {"helpful", "safe"}:
            raise ValueError("llama2 needs two rewards named `helpful` and `safe`")
        if self.combine in ("worst", "lower-bound") and sum(t.weight != 0 for t in self.rewards.values()) < 2:
            raise ValueError(
                f"{self.combine} needs two rewards or more whose weight is not 0 (for one ensemble, set its `heads`)"
            )
        self._refuse_unread()
        return self

    def _given(self, name: str) -> bool:
        """Whether a setting has another value than its default; a resolved config.yaml names them all."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def _refuse_unread(self) -> None:
        """Settings that the chosen combination never reads are mistakes."""
        read_by = {
            "otherwise": ("sum",),
            "k": ("lower-bound",),
            **dict.fromkeys(("threshold", "safety_prompts", "clip"), ("llama2",)),
            **dict.fromkeys(
                ("multiplier", "multiplier_rate", "multiplier_damping", "multiplier_most"), ("constrained",)
            ),
        }
        wrong = [n for n in read_by if self._given(n) and self.combine not in read_by[n]]
        if wrong:
            raise ValueError(f"{', '.join(sorted(wrong))}: not read with combine: {self.combine}")
        if self.combine == "llama2" and any(t.weight != 1 for t in self.rewards.values()):
            raise ValueError("llama2 chooses between its rewards: weights mean nothing there")


def read_reward(path: str | Path) -> CombinedReward:
    """Several rewards from a YAML file.

    Raises:
        ConfigError: what is wrong with it, by file and line.
    """
    values, lines = load_yaml(Path(path))
    return validate(CombinedReward, values if isinstance(values, dict) else {"rewards": values}, lines, path)


def is_reward_file(spec: str) -> bool:
    """Whether the setting names a YAML file with several rewards."""
    return spec.endswith((".yaml", ".yml"))


def _block_or_name(value: Any, handler: Callable[[Any], Any]) -> Any:
    """A block is checked as one, so that an error names its own place; a file is read into a block at once, so that a
    run's config and lineage hold every reward in it.
    """
    if isinstance(value, Mapping):
        return CombinedReward.model_validate(value)
    if isinstance(value, str) and is_reward_file(value):
        return read_reward(value)
    return handler(value)


# A setting `reward:`: one judge by name, a YAML file with several, or a block of several.
RewardSetting = Annotated[str | CombinedReward, WrapValidator(_block_or_name)]


def moves_with_training(reward: str | CombinedReward | None) -> bool:
    """Whether scores depend on training steps taken so far, so that nothing else can choose answers by them."""
    return isinstance(reward, CombinedReward) and reward.combine == "constrained"


def judge_names(reward: str | CombinedReward, role: str = "reward") -> dict[str, str]:
    """role -> judge, for the lineage of a run: `reward`, or `reward.helpful` and `reward.safe`."""
    if isinstance(reward, str):
        return {role: reward}
    return {f"{role}.{name}": term.judge for name, term in reward.rewards.items()}
