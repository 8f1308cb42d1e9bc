"""Settings of online preference learning; a method is a set of them, see `RECIPES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from goodheart.stages.settings.policy_gradient import PolicyGradientSettings
from goodheart.train.lineage import same_place

DEMONSTRATION: Final = "demonstration"  # as a judge: the answer in the data is better than any that a model gives

# What each recipe sets; docs/online.md says where a number is not the paper's.
RECIPES: dict[str, dict[str, Any]] = {
    "online-dpo": {},
    "xpo": {"opponent": "reference", "bonus": 1e-5},
    "nash-md": {"opponent": "mixture", "loss": "nash-md"},
    "spin": {"reward": DEMONSTRATION, "pairs": "all", "sync_every": "epoch"},
}


class OnlineConfig(PolicyGradientSettings):
    """Settings of online preference learning. `model` is the policy to start from and, unless `reference` is given, the
    reference.

    `reward` may also name an object with a method `compare` (judges/compare.py), or be `demonstration`: `prompts` then
    holds demonstrations, and each is better than what the policy says to its prompt.
    """

    recipe: Literal["online-dpo", "xpo", "nash-md", "spin"] = "online-dpo"
    num_generations: int = 2  # K, answers to a prompt, the opponent's and a demonstration included
    # self, reference, previous (a reference that follows the policy), mixture (of both), or a model
    opponent: str = "self"
    mixture_coef: float = Field(0.5, gt=0, lt=1)  # mixture: weight of the reference's logits
    sync_every: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = None  # steps after which the reference follows

    loss: Literal["sigmoid", "hinge", "ipo", "nash-md"] = "sigmoid"
    beta: float = Field(0.1, gt=0)  # reward per nat; nash-md: price of a nat
    pairs: Literal["best-worst", "all"] = "best-worst"  # of K > 2 answers
    # nash-md: probability to beat another answer, by the sigmoid of the difference of scores, or 1, 1/2 and 0; auto =
    # soft for a reward model, whose differences are log-odds, else hard
    preference: Literal["auto", "soft", "hard"] = "auto"
    bonus: float = Field(0.0, ge=0)  # times the log-probability of the reference's answers, which is lowered (XPO)

    learning_rate: float = Field(1e-6, gt=0)
    normalize_reward: bool = False  # nash-md reads differences of a reward model's own scores as log-odds

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What the recipe says, for everything that was not given."""
        if not isinstance(values, Mapping):
            return values
        return {**RECIPES.get(values.get("recipe", "online-dpo"), {}), **values}

    @model_validator(mode="after")
    def _comparable(self) -> OnlineConfig:
        size = self.num_generations
        if size < 2:
            raise ValueError(f"num_generations {size}: an answer alone is compared with nothing; give 2 or more")
        if self.batch_size % size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of num_generations {size}")
        if self.mini_batches > self.prompts_per_step:
            raise ValueError(
                f"mini_batches {self.mini_batches} is more than the {self.prompts_per_step} prompts a step"
            )
        if self.curriculum is not None and self.curriculum.order == "adaptive":
            raise ValueError(
                "curriculum.order adaptive goes by the spread of scores, in grpo and ppo: give another here"
            )
        if self.target_kl is not None:
            raise ValueError("target_kl ends further passes over a batch, and this stage makes one: leave it out")
        return self

    @model_validator(mode="after")
    def _opponents(self) -> OnlineConfig:
        if not self.opponent.strip():
            raise ValueError("opponent is empty: self, reference, previous, mixture, or a model")
        if self.opponent == "self" and (self.loss == "nash-md" or self.recipe == "nash-md"):
            raise ValueError(
                "loss nash-md plays against somebody else: opponent mixture, reference, previous or a model"
            )
        if self.opponent != "self" and self.num_generations % 2:
            raise ValueError(f"num_generations {self.num_generations} is odd: half of the answers are the opponent's")
        if same_place(self.opponent, self.model):
            raise ValueError("opponent is the model itself: use reference (its start) or self")
        if self.bonus and self.opponent != "reference":
            raise ValueError(f"bonus is on the reference's answers, which nobody asks for: opponent is {self.opponent}")
        if self.bonus and self.loss == "nash-md":
            raise ValueError("bonus belongs to the pairwise losses, not to nash-md")
        if self.opponent != "mixture" and self._given("mixture_coef"):
            raise ValueError(f"mixture_coef is not read with opponent {self.opponent}")
        if self.loss == "nash-md" and self._given("pairs"):
            raise ValueError("pairs is not read with loss nash-md: each own answer meets each of the opponent's")
        if self.loss != "nash-md" and self._given("preference"):
            raise ValueError(f"preference is not read with loss {self.loss}, which asks only which answer is better")
        return self

    @model_validator(mode="after")
    def _references(self) -> OnlineConfig:
        if self.opponent == "previous" and self.sync_every is None:
            raise ValueError("opponent previous needs sync_every: steps after which the reference follows, or epoch")
        if self.opponent == "reference" and self.sync_every is not None:
            raise ValueError("a reference that follows the policy is opponent previous; else leave sync_every out")
        if self.reference is not None and self.sync_every is not None:
            raise ValueError("sync_every puts the policy in the place of the reference: leave `reference` out")
        if self.recipe == "spin" and not self.from_demonstrations:
            raise ValueError(f"recipe spin learns from demonstrations: reward must be `{DEMONSTRATION}`, or left out")
        if self.from_demonstrations and (self.opponent != "self" or self.loss == "nash-md"):
            raise ValueError(
                "demonstrations are compared with the policy's own answers: opponent self, a pairwise loss"
            )
        if self.from_demonstrations and self.penalised:
            raise ValueError("demonstrations have no score: leave out missing_eos_penalty and overlong_zone")
        return self

    def _given(self, name: str) -> bool:
        """Whether a setting has another value than its default; a resolved config.yaml names them all."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def from_demonstrations(self) -> bool:
        return self.reward == DEMONSTRATION

    @property
    def penalised(self) -> bool:
        """Whether something is taken off scores."""
        return bool(self.missing_eos_penalty or self.overlong_zone)

    @property
    def prompts_per_step(self) -> int:
        return self.batch_size // self.num_generations

    def follows(self, step: int, prompts: int) -> bool:
        """Whether the reference becomes the policy before step `step` (from 0). prompts: all there are."""
        if self.sync_every is None or step == 0:
            return False
        every = self.sync_every if isinstance(self.sync_every, int) else -(-prompts // self.prompts_per_step)
        return step % every == 0

    def parents(self) -> dict[str, str]:
        known = super().parents()
        if self.from_demonstrations:
            del known["reward"]
        named = self.opponent in ("self", "reference", "previous", "mixture")
        return known if named else known | {"opponent": self.opponent}
