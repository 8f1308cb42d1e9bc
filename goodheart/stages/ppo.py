"""Proximal policy optimisation against a reward model or function.

    1 generate   answers to a batch of prompts, with the weights being trained
    2 score      by the judge; pass the policy, its reference and the value model over the answers once
    3 advantage  per-token KL in the reward, GAE, whitening
    4 update     epochs of mini-batches on the clipped surrogate and the clipped value loss
    5 log        and adapt the KL coefficient
    6 audit      at intervals by a judge that is not trained on (audit.py)

Sources: Schulman et al. arXiv:1707.06347 (PPO), arXiv:1506.02438 (GAE); Ziegler et al. arXiv:1909.08593 (KL in the
reward, adaptive coefficient); Stiennon et al. arXiv:2009.01325; Ouyang et al. arXiv:2203.02155.

Letters: B rows (answers), T time (tokens).
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field, model_validator

from goodheart.losses.kl import AdaptiveKL, FixedKL
from goodheart.stages import policy_gradient
from goodheart.stages.actors import load_actor_critic
from goodheart.stages.policy_gradient import PolicyGradientSettings
from goodheart.stages.ppo_update import advantages, update
from goodheart.stages.prompt_stream import prompt_stream, scores_of_rows
from goodheart.stages.rollouts import collect
from goodheart.stages.writer import Writer
from goodheart.train.optimizer import lr_at, optimizer_for
from goodheart.train.run import Run
from goodheart.train.session import open_session


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


def train(config: PPOConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    with open_session("ppo", config, parents=config.parents(), data=config.data()) as session:
        if session.finished:
            return session.run

        # 0. models, judge and prompts
        world = session.world
        judge = policy_gradient.reward_judge(config, session)
        actors = load_actor_critic(config, session, judge)
        prepared = policy_gradient.usable_prompts(config, config.prompts, judge, actors)
        session.report_skipped(prepared.skipped)
        asked = [(prompt, ids) for _, prompt, ids in prepared.items]
        total, warmup = policy_gradient.steps_and_warmup(config, len(asked), config.batch_size)
        writer = Writer(actors.policy, actors.template, slots=config.slots).recorded(session.run)
        stream = prompt_stream(prepared, config.curriculum, steps=total, per_step=config.batch_size, seed=config.seed)
        kl = FixedKL(config.kl_coef) if config.kl_target is None else _adaptive(config)
        optimizer = optimizer_for(
            actors.named_parameters(), config, {"value.": config.value_learning_rate or config.learning_rate}
        )
        session.state.add("policy", actors.policy)
        session.state.add("value", actors.value)
        session.state.add("optimizer", optimizer)
        session.state.add("kl", kl)
        if config.curriculum is not None:
            session.state.add("prompts", stream)

        audit = policy_gradient.guard(config, session, judge, actors, writer, asked)
        most = policy_gradient.most_of(config, actors, asked, world)
        for step in session.steps(total, "ppo", checkpoint_every=config.checkpoint_every, most=most):
            if audit is not None and step == 0:
                audit.look(0)
            # 1-2. generate and score
            places = stream.draw(config.batch_size, step)
            batch, timing = collect(
                [asked[i] for i in places], actors, writer, judge, config, world=world, seed=config.seed + 7919 * step
            )
            stream.learn(scores_of_rows(batch, world, places))
            # 3. rewards and advantages
            metrics = advantages(batch, kl.coef, config, world) | stream.metrics()
            # 4. update
            begun = time.perf_counter()
            rate = optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule)
            metrics |= update(session, actors, optimizer, batch, config, step, rate)
            timing["update"] = time.perf_counter() - begun
            # 5. log, look, adapt
            metrics |= {"kl_coef": kl.coef, "episodes": float((step + 1) * config.batch_size)}
            kl.update(metrics["objective/kl"], config.batch_size)
            # 6. audit
            if audit is not None and audit.due(step + 1, total):
                begun = time.perf_counter()
                metrics |= audit.look(step + 1)
                timing["audit"] = time.perf_counter() - begun
            policy_gradient.log_step(
                session,
                config,
                batch,
                judge,
                metrics,
                timing,
                step=step,
                total=total,
                shown=("objective/scores", "objective/kl", "objective/entropy"),
            )

        counts: dict[str, Any] = {"prompts": len(asked), "skipped": prepared.skipped.total}
        return policy_gradient.finish(session, actors, audit, counts, ("objective/",))


def _adaptive(config: PPOConfig) -> AdaptiveKL:
    assert config.kl_target is not None
    return AdaptiveKL(config.kl_coef, target=config.kl_target, horizon=config.kl_horizon)
