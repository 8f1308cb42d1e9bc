"""Online preference learning: the policy answers, a judge compares the answers, and the policy learns at once.

    0 refresh  the reference, where it follows the policy
    1 answer   by the policy and its opponent, with the weights being trained
    2 judge    scores, or says which is better; the reference passes over the answers
    3 update   a pairwise loss of losses/direct.py, or Nash-MD's policy gradient
    4 audit    at intervals by a judge that is not trained on (audit.py)
    5 log

A method is a set of settings; `recipe` fills in those that were not given:

    online-dpo    Guo et al. arXiv:2402.04792           xpo     Xie et al. arXiv:2405.21046
    nash-md       Munos et al. arXiv:2312.00886         spin    Chen et al. arXiv:2401.01335
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from goodheart.stages import policy_gradient
from goodheart.stages.actors import load_actors
from goodheart.stages.online_answers import Task, answer_and_judge, load_opinion, measured, scores_of_prompts, tasks
from goodheart.stages.online_opponents import Snapshot, opponent, policy_player
from goodheart.stages.online_update import lesson, preference_of, update
from goodheart.stages.prompt_stream import prompt_stream
from goodheart.stages.settings.online import OnlineConfig
from goodheart.stages.writer import Writer
from goodheart.train.optimizer import lr_at, optimizer_for
from goodheart.train.run import Run
from goodheart.train.session import open_session

__all__ = ["OnlineConfig", "train"]


def train(config: OnlineConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    with open_session("online", config, parents=config.parents(), data=config.data()) as session:
        if session.finished:
            return session.run

        # models, judge and prompts
        judge = load_opinion(config, session)
        start = load_actors(config, session, with_reference=True)
        snapshot = None if config.sync_every is None else Snapshot(start.policy)
        actors = start if snapshot is None else replace(start, reference=snapshot)
        prepared = tasks(config, judge, actors)
        session.report_skipped(prepared.skipped)
        asked: list[Task] = prepared.items
        total, warmup = policy_gradient.steps_and_warmup(config, len(asked), config.prompts_per_step)
        per_step = config.prompts_per_step
        stream = prompt_stream(prepared, config.curriculum, steps=total, per_step=per_step, seed=config.seed)
        writer = Writer(actors.policy, actors.template, slots=config.slots).recorded(session.run)
        players = policy_player(writer), opponent(config, actors, writer, session)
        optimizer = optimizer_for(actors.policy.named_parameters(), config)
        session.state.add("policy", actors.policy)
        session.state.add("optimizer", optimizer)
        if config.curriculum is not None:
            session.state.add("prompts", stream)
        if snapshot is not None:
            session.state.add("snapshot", snapshot.model)

        # The audit measures from where the policy started, also where the reference has followed it.
        audit = policy_gradient.guard(
            config, session, judge, start, writer, [(task.prompt, task.ids) for task in asked]
        )
        pairs = [(task.prompt, task.ids) for task in asked]
        most = policy_gradient.most_of(config, actors, pairs, session.world, config.num_generations, together=True)
        for step in session.steps(total, "online", checkpoint_every=config.checkpoint_every, most=most):
            if audit is not None and step == 0:
                audit.look(0)
            # 0. refresh
            if snapshot is not None and config.follows(step, len(asked)):
                snapshot.refresh(actors.policy)
            # 1-2. answer and judge
            places = stream.draw(per_step, step)
            contest, timing = answer_and_judge(
                [asked[i] for i in places],
                players,
                actors,
                writer,
                judge,
                config,
                session,
                seed=config.seed + 7919 * step,
            )
            stream.learn(scores_of_prompts(contest, places, session.world))
            metrics = measured(contest, session) | stream.metrics()
            # 3. update
            begun = time.perf_counter()
            rate = optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule)
            learnt = lesson(contest, config, preference_of(judge, config))
            metrics |= update(session, actors, optimizer, contest, learnt, config, step, rate)
            timing["update"] = time.perf_counter() - begun
            metrics["episodes"] = float((step + 1) * config.batch_size)
            # 4. audit
            if audit is not None and audit.due(step + 1, total):
                begun = time.perf_counter()
                metrics |= audit.look(step + 1)
                timing["audit"] = time.perf_counter() - begun
            # 5. log
            policy_gradient.log_step(
                session,
                config,
                contest.own(),
                judge,
                metrics,
                timing,
                step=step,
                total=total,
                shown=("loss", "rewards/accuracies", "objective/scores", "objective/kl"),
            )

        counts: dict[str, Any] = {"prompts": len(asked), "skipped": prepared.skipped.total}
        return policy_gradient.finish(session, actors, audit, counts, ("objective/", "rewards/"))
