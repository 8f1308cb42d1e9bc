"""What the stages that learn from their own answers share (ppo, grpo): settings, prompts, guard, log, result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from goodheart.data.batches import Example, micro_batches
from goodheart.data.examples import Prepared, Skipped, require
from goodheart.data.examples import prompts as prepare_prompts
from goodheart.data.formats import read_records
from goodheart.data.records import Prompt
from goodheart.errors import ConfigError
from goodheart.generate.graphs import room
from goodheart.judges.combined import CombinedJudge
from goodheart.judges.judged import after_step
from goodheart.judges.load import Judge, load_judge
from goodheart.stages.actors import Actors
from goodheart.stages.audit import Audit
from goodheart.stages.rollouts import Asked, Rollouts, judge_scores
from goodheart.stages.settings.policy_gradient import PolicyGradientSettings
from goodheart.stages.updates import mini_batches
from goodheart.stages.writer import Writer, room_for_prompts
from goodheart.train.config import listed
from goodheart.train.memory import Most, cache_bytes
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.policy import save_policy
from goodheart.train.run import Run
from goodheart.train.session import Session

# Mean difference of log-probabilities between sampler and trainer over which a run is not to be trusted.
_SAMPLER_ALARM = 0.01
# Answers of a step that a reader is shown.
_SHOWN = 4


def reward_judge(config: PolicyGradientSettings, session: Session) -> Judge:
    """The judge that is optimised; what it learns on the way is part of the session's state.

    Raises:
        ConfigError: it cannot be loaded, or there are more processes than answers.
    """
    if config.batch_size < session.world.size:
        raise ConfigError(f"batch_size {config.batch_size} is less than the {session.world.size} processes")
    dtype = resolve_dtype(config.dtype, session.device)
    judge = load_judge(config.reward, dtype=dtype, device=session.device, max_tokens=config.max_tokens)
    if isinstance(judge, CombinedJudge):
        session.state.add("reward", judge)
    return judge


def usable_prompts(
    config: PolicyGradientSettings, prompts: str | list[str], judge: Judge, actors: Actors
) -> Prepared[tuple[int, Prompt, list[int]]]:
    """The prompts that leave room for an answer."""
    room = room_for_prompts(config, config.sampling, actors.policy, judge)
    sources = listed(prompts)
    loaded = read_records(sources, "prompt")
    prepared = prepare_prompts(loaded.records, actors.template, room, skipped=Skipped.of(loaded))
    require(prepared.items, prepared.skipped, "prompt", sources)
    return prepared


def guard(
    config: PolicyGradientSettings,
    session: Session,
    judge: Judge,
    actors: Actors,
    writer: Writer,
    asked: list[Asked],
) -> Audit | None:
    """The guard against overoptimisation, where there is a judge for it."""
    settings = config.audit
    if settings.judge is None:
        session.run.note("no audit.judge: nothing guards this run against overoptimising its reward (docs/goodhart.md)")
        return None
    if settings.prompts is not None:
        asked = [(prompt, ids) for _, prompt, ids in usable_prompts(config, settings.prompts, judge, actors).items]
    assert actors.reference is not None  # loaded for every audited run
    return Audit(
        settings,
        config,
        config.sampling,
        session,
        policy=actors.policy,
        reference=actors.reference,
        writer=writer,
        proxy=lambda prompts, answers, made: (
            judge_scores(prompts, answers, made, judge, actors.template, config).scores
        ),
        asked=asked,
    )


def most_of(
    config: PolicyGradientSettings,
    actors: Actors,
    asked: Sequence[Asked],
    world: World,
    group: int = 1,
    *,
    together: bool = False,
) -> Most:
    """What a step asks of this process at most: rows of a mini-batch, and the cache of answers.

    group: answers to each prompt. together: no micro-batch parts them.
    """
    new = config.sampling.max_new_tokens
    longest_first = sorted((ids for _, ids in asked), key=len, reverse=True)
    longest = len(longest_first[0]) + new
    rows = math.ceil(config.batch_size / config.mini_batches / world.size)
    parted = group if together else 1  # answers that one entry of a mini-batch stands for
    most = Most(
        rows, longest, together=parted, cache=cache_bytes(actors.policy, config.slots, room(longest, world.device))
    )
    # As if the longest prompts were asked together, no answer ended early, and nothing were alike but what answers to
    # one prompt begin with: -1 - row is a token of no other answer, and the first of a prompt one of no other prompt.
    answers = []
    for row in range(config.batch_size):
        ids = longest_first[row // group % len(asked)]
        begun = [-1 - config.batch_size - row // group, *ids[1:]]
        answers.append(Example([*begun, *[-1 - row] * new], [False] * len(ids) + [True] * new))
    entries = [answers[first : first + parted] for first in range(0, len(answers), parted)]
    mine = [i for i in mini_batches(len(entries), config, 0, 0)[0] if i % world.size == world.rank]
    pieces = micro_batches([sum(map(len, entries[i])) for i in mine], config.max_tokens)
    return most.over([each for i in piece for each in entries[mine[i]]] for piece in pieces)


def steps_and_warmup(config: PolicyGradientSettings, prompts: int, per_step: int) -> tuple[int, int]:
    """All steps of the run, and those over which the rate rises; `per_step` prompts are asked in each."""
    total = config.steps or math.ceil(config.epochs * prompts / per_step)
    return total, math.ceil(config.warmup_ratio * total)


def log_step(
    session: Session,
    config: PolicyGradientSettings,
    batch: Rollouts,
    judge: Judge,
    metrics: Mapping[str, float],
    timing: Mapping[str, float],
    *,
    step: int,
    total: int,
    shown: tuple[str, ...],
    terms: Mapping[str, Sequence[float | None]] | None = None,
) -> None:
    """Writes metrics, each reward of several apart, and some answers; warns of a sampler unlike the trainer, and ends a
    run that went too far.

    terms: what each of several rewards said of all that was answered in the step, where that is more than the batch.
    """
    apart = after_step(judge, batch.terms if terms is None else terms, session.world.sum)
    session.log(step, {**metrics, **apart}, shown=shown, timing=timing)
    difference = metrics.get("sampler/logprob_diff_mean", 0.0)
    if difference > _SAMPLER_ALARM:
        session.run.note(
            f"step {step + 1}: sampler and trainer differ by {difference:.3f} nats per token (0.005 is normal, over "
            f"{_SAMPLER_ALARM:g} is broken); in bfloat16 try dtype float32"
        )
    if step % config.sample_every == 0 or step + 1 == total:
        for row in batch.shown(_SHOWN):
            session.run.sample(step + 1, row)
    if config.max_kl is not None and metrics["objective/kl"] > config.max_kl:
        session.end(f"objective/kl {metrics['objective/kl']:.1f} went over max_kl {config.max_kl:g}")


def finish(
    session: Session, actors: Actors, audit: Audit | None, results: Mapping[str, Any], prefixes: tuple[str, ...]
) -> Run:
    """Writes the model (of the best look, where there was a guard) and the results.

    prefixes: of the metrics whose last values are results.
    """
    with session.model_folder() as folder:
        if audit is None or not audit.keep_best(folder):
            save_policy(actors.policy, actors.template, folder, session)
    last = {name: value for prefix in prefixes for name, value in session.last_metrics(prefix).items()}
    return session.finish(last | dict(results) | ({} if audit is None else {"goodhart": audit.summary()}))
