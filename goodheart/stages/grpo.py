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
from dataclasses import replace
from typing import Any

from goodheart.stages import policy_gradient
from goodheart.stages.actors import load_actors
from goodheart.stages.groups import collect_groups
from goodheart.stages.grpo_update import advantages, update
from goodheart.stages.prompt_stream import prompt_stream
from goodheart.stages.settings.grpo import GRPOConfig
from goodheart.stages.writer import Writer
from goodheart.train.optimizer import lr_at, optimizer_for
from goodheart.train.run import Run
from goodheart.train.session import open_session

__all__ = ["GRPOConfig", "train"]


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
        most = policy_gradient.most_of(config, actors, asked, world, config.num_generations)
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
