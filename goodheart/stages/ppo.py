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

from goodheart.losses.kl import AdaptiveKL, FixedKL
from goodheart.stages import policy_gradient
from goodheart.stages.actors import load_actor_critic
from goodheart.stages.ppo_update import advantages, update
from goodheart.stages.prompt_stream import prompt_stream, scores_of_rows
from goodheart.stages.rollouts import collect
from goodheart.stages.settings.ppo import PPOConfig
from goodheart.stages.writer import Writer
from goodheart.train.optimizer import lr_at, optimizer_for
from goodheart.train.run import Run
from goodheart.train.session import open_session

__all__ = ["PPOConfig", "train"]


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
