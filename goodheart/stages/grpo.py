"""Policy gradients without a critic: answers are compared with other answers to the same prompt, or with the batch.

    1 generate   several answers to each prompt, with the weights being trained (again, where all are equally good)
    2 score      by the judge; the reference passes over the answers where its log-probabilities are needed
    3 advantage  reward minus baseline, scaled
    4 update     mini-batches on the clipped surrogate, with the KL in the loss or already in the reward
    5 audit      at intervals by a judge that is not trained on (audit.py)
    6 log

A method is a set of settings; `recipe` fills in those that were not given:

    grpo                  Shao et al. arXiv:2402.03300        dr-grpo          Liu et al. arXiv:2503.20783
    dapo                  Yu et al. arXiv:2503.14476          gspo             Zheng et al. arXiv:2507.18071
    rloo                  Ahmadian et al. arXiv:2402.14740    remax            Li et al. arXiv:2310.10505
    reinforce++, reinforce++-baseline                         Hu et al. arXiv:2501.03262
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from goodheart.stages import policy_gradient
from goodheart.stages.actors import load_actors
from goodheart.stages.groups import collect_groups
from goodheart.stages.grpo_update import advantages, update
from goodheart.stages.policy_gradient import PolicyGradientSettings
from goodheart.stages.prompt_stream import prompt_stream
from goodheart.stages.writer import Writer
from goodheart.train.optimizer import lr_at, optimizer_for
from goodheart.train.run import Run
from goodheart.train.session import open_session

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


def train(config: GRPOConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    with open_session("grpo", config, parents=config.parents(), data=config.data()) as session:
        if session.finished:
            return session.run

        # 0. models, judge and prompts
        world = session.world
        judge = policy_gradient.reward_judge(config, session)
        audited = config.audit.judge is not None
        actors = load_actors(config, session, with_reference=config.needs_kl or audited)
        prepared = policy_gradient.usable_prompts(config, config.prompts, judge, actors)
        session.report_skipped(prepared.skipped)
        asked = [(prompt, ids) for _, prompt, ids in prepared.items]
        per_step = config.batch_size // config.num_generations
        total, warmup = policy_gradient.steps_and_warmup(config, len(asked), per_step)
        writer = Writer(actors.policy, actors.template, slots=config.slots).recorded(session.run)
        stream = prompt_stream(prepared, config.curriculum, steps=total, per_step=per_step, seed=config.seed)
        optimizer = optimizer_for(actors.policy.named_parameters(), config)
        session.state.add("policy", actors.policy)
        session.state.add("optimizer", optimizer)
        session.state.add("prompts", stream)

        audit = policy_gradient.guard(config, session, judge, actors, writer, asked)
        if not config.needs_kl:
            actors = replace(actors, reference=None)  # the audit alone asks it
        most = policy_gradient.most_of(config, actors, asked, world)
        for step in session.steps(total, "grpo", checkpoint_every=config.checkpoint_every, most=most):
            if audit is not None and step == 0:
                audit.look(0)
            # 1-2. generate and score
            batch, groups, timing = collect_groups(
                stream, asked, actors, writer, judge, config, world=world, seed=config.seed + 7919 * step, step=step
            )
            # 3. advantages
            metrics = advantages(batch, groups, config, world) | stream.metrics()
            # 4. update
            begun = time.perf_counter()
            rate = optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule)
            metrics |= update(session, actors, optimizer, batch, config, step, rate)
            timing["update"] = time.perf_counter() - begun
            metrics["episodes"] = float((step + 1) * config.batch_size)
            # 5. audit
            if audit is not None and audit.due(step + 1, total):
                begun = time.perf_counter()
                metrics |= audit.look(step + 1)
                timing["audit"] = time.perf_counter() - begun
            # 6. log
            policy_gradient.log_step(
                session,
                config,
                batch,
                judge,
                metrics,
                timing,
                step=step,
                total=total,
                shown=("reward", "objective/kl", "objective/entropy"),
                terms=groups.terms,
            )

        counts: dict[str, Any] = {"prompts": len(asked), "skipped": prepared.skipped.total}
        return policy_gradient.finish(session, actors, audit, counts, ("objective/", "reward"))
