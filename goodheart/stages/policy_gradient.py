"""What the stages that learn from their own answers share (ppo, grpo): settings, prompts, guard, log, result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from goodheart.data.examples import Prepared, Skipped, require
from goodheart.data.examples import prompts as prepare_prompts
from goodheart.data.formats import read_records
from goodheart.data.records import Prompt
from goodheart.errors import ConfigError
from goodheart.judges.combined import CombinedJudge
from goodheart.judges.judged import after_step
from goodheart.judges.load import Judge, load_judge
from goodheart.judges.settings import CombinedReward, RewardSetting, judge_names
from goodheart.stages.actors import Actors
from goodheart.stages.audit import Audit, AuditSettings
from goodheart.stages.curriculum import CurriculumSettings
from goodheart.stages.rollouts import Asked, Rollouts, judge_scores
from goodheart.stages.writer import SamplingSettings, Writer, room_for_prompts
from goodheart.train.config import TrainingSettings, listed
from goodheart.train.lineage import same_place
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


class PolicyGradientSettings(TrainingSettings):
    """What ppo and grpo both have. `model` is the policy to start from and, unless `reference` is given, the
    reference.
    """

    reward: RewardSetting  # run folder, sequence-classification folder, package.module:function, or several of them
    prompts: str | list[str]
    curriculum: CurriculumSettings | None = None  # which prompts are asked when; None = all in turn
    reference: str | None = None  # model the KL is measured against; None = the start of the policy

    steps: int | None = Field(None, ge=1)  # rounds of answering and learning; None = `epochs` over the prompts
    batch_size: int = Field(64, ge=1)  # answers per step
    mini_batches: int = Field(1, ge=1)  # optimizer steps per pass over the batch
    sampling: SamplingSettings = SamplingSettings()
    slots: int = Field(64, ge=1)  # answers generated side by side

    checkpoint_every: int = Field(10, ge=1)  # steps
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "constant"

    normalize_reward: bool = True  # scores of a reward model on the scale of its training answers (mean 0, std 1)
    missing_eos_penalty: float | None = Field(None, ge=0)  # taken off the score of an answer that was cut off
    # Answers lose up to `overlong_penalty` over the last part of the room they have (DAPO); share of max_new_tokens
    overlong_zone: float = Field(0.0, ge=0, le=1)  # 0 = off
    overlong_penalty: float = Field(1.0, ge=0)
    # ends the passes of a step when the policy moved further (k2, nats/token)
    target_kl: float | None = Field(None, gt=0)
    max_kl: float | None = Field(None, gt=0)  # ends the run when objective/kl (nats per answer) goes over
    audit: AuditSettings = AuditSettings()
    sample_every: int = Field(10, ge=1)  # steps between looks at what the model says (samples.jsonl)

    @model_validator(mode="after")
    def _can_learn_from_own_answers(self) -> Self:
        sampling = self.sampling
        if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
            raise ValueError("sampling: top_p, top_k and min_p must be off while training (the ratio would be wrong)")
        if sampling.temperature == 0:
            raise ValueError("sampling.temperature must be over 0 while training")
        if self.mini_batches > self.batch_size:
            raise ValueError(f"mini_batches {self.mini_batches} is more than batch_size {self.batch_size}")
        if self.parallel == "fsdp":
            raise ValueError("every process generates on its own and needs whole weights: use parallel ddp")
        trained_on = judge_names(self.reward).values()
        if self.audit.judge is not None and any(same_place(self.audit.judge, judge) for judge in trained_on):
            raise ValueError("audit.judge is a reward that is trained on: it cannot tell when it stops being a measure")
        normally = type(self).model_fields["normalize_reward"].default  # `online` takes raw scores unless told
        if isinstance(self.reward, CombinedReward) and normally and not self.normalize_reward:
            raise ValueError(
                "normalize_reward: false is not read with several rewards, each of which has a scale of its own; to "
                "take one as it is, give its term mean: 0 and std: 1"
            )
        if self.max_steps is not None:
            raise ValueError("this stage counts `steps` (answers are batch_size * steps); leave max_steps out")
        if self.overlong_zone and not self.overlong_tokens:
            raise ValueError(
                f"overlong_zone {self.overlong_zone:g} of max_new_tokens {sampling.max_new_tokens} is not one token: "
                "make it larger, or 0 to have none"
            )
        if not self.overlong_zone and self.given("overlong_penalty"):
            raise ValueError(f"overlong_penalty {self.overlong_penalty:g} needs an overlong_zone to be taken in")
        return self

    def given(self, name: str) -> bool:
        """Whether a setting has another value than its default; a resolved config.yaml names them all."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def overlong_tokens(self) -> int:
        """`overlong_zone` in tokens."""
        return round(self.overlong_zone * self.sampling.max_new_tokens)

    def data(self) -> list[str]:
        """Where the prompts come from."""
        return [*listed(self.prompts), *listed(self.audit.prompts)]

    def parents(self) -> dict[str, str]:
        """role -> the model or judge that plays it."""
        roles = {
            "model": self.model,
            **judge_names(self.reward),
            "reference": self.reference,
            "audit": self.audit.judge,
        }
        return {role: name for role, name in roles.items() if name is not None}


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


def most_of(config: PolicyGradientSettings, actors: Actors, asked: Sequence[Asked], world: World) -> Most:
    """What a step asks of this process at most: rows of a mini-batch, and the cache of answers."""
    longest = max(len(ids) for _, ids in asked) + config.sampling.max_new_tokens
    rows = math.ceil(config.batch_size / config.mini_batches / world.size)
    return Most(rows, longest, cache=cache_bytes(actors.policy, config.slots, longest))


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
