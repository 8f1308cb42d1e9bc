"""Proximal policy optimisation against a reward model or function.

    1 generate   answers to a batch of prompts, with the weights being trained
    2 score      by the judge; pass the policy, its reference and the value model over the answers once
    3 advantage  per-token KL in the reward, GAE, whitening
    4 update     epochs of mini-batches on the clipped surrogate and the clipped value loss
    5 log        and adapt the KL coefficient

Sources: Schulman et al. arXiv:1707.06347 (PPO), arXiv:1506.02438 (GAE); Ziegler et al. arXiv:1909.08593 (KL in the
reward, adaptive coefficient); Stiennon et al. arXiv:2009.01325; Ouyang et al. arXiv:2203.02155.

Letters: B rows (answers), T time (tokens).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator

from goodheart.data.batches import micro_batches
from goodheart.data.examples import Prepared, Skipped, require
from goodheart.data.examples import prompts as prepare_prompts
from goodheart.data.formats import read_records
from goodheart.data.records import Prompt
from goodheart.errors import ConfigError, HealthError
from goodheart.judges.load import Judge, load_judge
from goodheart.judges.reward import RewardJudge
from goodheart.losses.advantages import gae, rewards_with_kl, whiten
from goodheart.losses.kl import AdaptiveKL, FixedKL
from goodheart.losses.metrics import MetricSums
from goodheart.losses.policy import ppo_policy_loss, value_loss
from goodheart.models.causal import completion_logprobs
from goodheart.stages.actors import Actors, load_actors
from goodheart.stages.rollouts import Rollouts, collect, draw_prompts
from goodheart.stages.writer import SamplingSettings, Writer
from goodheart.train.config import TrainingSettings
from goodheart.train.optimizer import AdamW, build_optimizer, lr_at, resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.policy import row_length, save_policy
from goodheart.train.run import Run
from goodheart.train.session import Session, open_session
from goodheart.train.step import train_step

# How far the probability ratio of the first update may be from 1: rounding of the compute dtype, no more.
_RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
# Mean difference of log-probabilities between sampler and trainer over which a run is not to be trusted.
_SAMPLER_ALARM = 0.01


class PPOConfig(TrainingSettings):
    """Settings of PPO. `model` is the policy to start from and, unless `reference` is given, the reference."""

    reward: str  # run folder, sequence-classification folder, or package.module:function
    prompts: str | list[str]
    reference: str | None = None  # model the KL is measured against; None = the start of the policy

    steps: int | None = Field(None, ge=1)  # PPO steps; None = `epochs` over the prompts
    batch_size: int = Field(64, ge=1)  # answers per PPO step
    mini_batches: int = Field(4, ge=1)  # optimizer steps per pass over the batch
    ppo_epochs: int = Field(4, ge=1)  # passes over the batch
    sampling: SamplingSettings = SamplingSettings()
    slots: int = Field(64, ge=1)  # answers generated side by side

    checkpoint_every: int = Field(10, ge=1)  # PPO steps
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "constant"
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
    normalize_reward: bool = True  # scores of a reward model on the scale of its training answers (mean 0, std 1)
    missing_eos_penalty: float | None = Field(None, ge=0)  # taken off the score of an answer that was cut off
    target_kl: float | None = Field(
        None, gt=0
    )  # ends the passes of a step when the policy moved further (k2, nats/token)
    max_kl: float | None = Field(None, gt=0)  # ends the run when objective/kl (nats per answer) goes over
    sample_every: int = Field(10, ge=1)  # PPO steps between looks at what the model says (samples.jsonl)

    @model_validator(mode="after")
    def _possible(self) -> PPOConfig:
        sampling = self.sampling
        if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
            raise ValueError("sampling: top_p, top_k and min_p must be off while training (the ratio would be wrong)")
        if sampling.temperature == 0:
            raise ValueError("sampling.temperature must be over 0 while training")
        if self.mini_batches > self.batch_size:
            raise ValueError(f"mini_batches {self.mini_batches} is more than batch_size {self.batch_size}")
        if self.shared_trunk and self.value_model not in {"auto", "policy"}:
            raise ValueError("shared_trunk puts the value head on the policy; leave value_model at auto")
        if self.parallel == "fsdp":
            raise ValueError("ppo generates with every process on its own and needs whole weights: use parallel ddp")
        if self.max_steps is not None:
            raise ValueError("ppo counts `steps` (answers are batch_size * steps); leave max_steps out")
        return self


def train(config: PPOConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    sources = [config.prompts] if isinstance(config.prompts, str) else config.prompts
    roles = {"model": config.model, "reward": config.reward, "reference": config.reference, "value": config.value_model}
    parents = {role: name for role, name in roles.items() if name not in {None, "auto", "reward", "policy"}}
    with open_session("ppo", config, parents=parents, data=sources) as session:
        if session.finished:
            return session.run

        # 0. models, judge and prompts
        world = session.world
        if config.batch_size < world.size:
            raise ConfigError(f"batch_size {config.batch_size} is less than the {world.size} processes")
        dtype = resolve_dtype(config.dtype, session.device)
        judge = load_judge(config.reward, dtype=dtype, device=session.device, max_tokens=config.max_tokens)
        actors = load_actors(config, session, judge)
        policy, template = actors.policy, actors.template
        prepared = _prompts(config, sources, judge, actors)
        session.report_skipped(prepared.skipped)
        asked = [(prompt, ids) for _, prompt, ids in prepared.items]
        total = config.steps or math.ceil(config.epochs * len(asked) / config.batch_size)

        warmup = math.ceil(config.warmup_ratio * total)

        writer = Writer(policy, template, slots=config.slots)
        kl = FixedKL(config.kl_coef) if config.kl_target is None else _adaptive(config)
        optimizer = build_optimizer(
            actors.named_parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.adam_betas,
            eps=config.adam_eps,
            learning_rates={"value.": config.value_learning_rate or config.learning_rate},
        )
        session.state.add("policy", policy)
        session.state.add("value", actors.value)
        session.state.add("optimizer", optimizer)
        session.state.add("kl", kl)

        for step in session.steps(total, "ppo", checkpoint_every=config.checkpoint_every):
            # 1-2. generate and score
            rows = draw_prompts(len(asked), config.batch_size, config.seed, step)
            batch, timing = collect(
                [asked[i] for i in rows], actors, writer, judge, config, world=world, seed=config.seed + 7919 * step
            )
            # 3. rewards and advantages
            metrics = _advantages(batch, kl.coef, config, world)
            # 4. update
            begun = time.perf_counter()
            rate = optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule)
            metrics |= _update(session, actors, optimizer, batch, config, step, rate)
            timing["update"] = time.perf_counter() - begun
            # 5. log, look, adapt
            metrics |= {"kl_coef": kl.coef, "episodes": float((step + 1) * config.batch_size)}
            kl.update(metrics["objective/kl"], config.batch_size)
            session.log(step, metrics, shown=("objective/scores", "objective/kl", "objective/entropy"), timing=timing)
            _warn_of_sampler(session, metrics["sampler/logprob_diff_mean"], step)
            if step % config.sample_every == 0 or step + 1 == total:
                for row in batch.shown(template, 4):
                    session.run.sample(step + 1, row)
            if config.max_kl is not None and metrics["objective/kl"] > config.max_kl:
                session.end(f"objective/kl {metrics['objective/kl']:.1f} went over max_kl {config.max_kl:g}")

        with session.model_folder() as folder:
            save_policy(policy, template, folder, session)
        return session.finish(
            session.last_metrics("objective/") | {"prompts": len(asked), "skipped": prepared.skipped.total}
        )


def _warn_of_sampler(session: Session, difference: float, step: int) -> None:
    if difference > _SAMPLER_ALARM:
        session.run.note(
            f"step {step + 1}: sampler and trainer differ by {difference:.3f} nats per token (0.005 is normal, over "
            f"{_SAMPLER_ALARM:g} is broken); in bfloat16 try dtype float32"
        )


def _prompts(
    config: PPOConfig, sources: Sequence[str], judge: Judge, actors: Actors
) -> Prepared[tuple[int, Prompt, list[int]]]:
    """The prompts that leave room for an answer."""
    room, wanted = row_length(config, actors.policy.max_length), config.sampling.max_new_tokens
    if room <= wanted:
        raise ConfigError(f"sampling.max_new_tokens {wanted} leaves no room for a prompt in {room} tokens")
    if isinstance(judge, RewardJudge) and judge.max_length < room:
        raise ConfigError(
            f"prompt and answer may have {room} tokens, but the reward model reads {judge.max_length}: "
            f"set max_length to {judge.max_length} or less"
        )
    loaded = read_records(sources, "prompt")
    prepared = prepare_prompts(loaded.records, actors.template, room - wanted, skipped=Skipped.of(loaded))
    require(prepared.items, prepared.skipped, "prompt", sources)
    return prepared


def _adaptive(config: PPOConfig) -> AdaptiveKL:
    assert config.kl_target is not None
    return AdaptiveKL(config.kl_coef, target=config.kl_target, horizon=config.kl_horizon)


def _advantages(batch: Rollouts, kl_coef: float, config: PPOConfig, world: World) -> dict[str, float]:
    """Fills `batch.advantages_BT` and `batch.returns_BT`; returns the objective's metrics over all processes."""
    mask_BT = batch.mask_BT
    kl_BT = (batch.old_logps_BT - batch.ref_logps_BT) * mask_BT
    rewards_BT = rewards_with_kl(batch.scores_B, kl_BT, mask_BT, kl_coef)
    if config.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False, reduce=world.sum)
    advantages_BT, batch.returns_BT = gae(rewards_BT, batch.values_BT, mask_BT, gamma=config.gamma, lam=config.lam)
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT, reduce=world.sum)
    batch.advantages_BT = advantages_BT

    sums = MetricSums()
    rows = mask_BT.any(1).float()  # an answer the judge had no opinion on does not count
    kl_B, tokens = kl_BT.sum(1), mask_BT.sum()
    sums.add("objective/kl", kl_B.sum(), rows.sum())
    sums.add("objective/scores", (batch.scores_B * rows).sum(), rows.sum())
    sums.add("objective/raw_scores", (batch.raw_scores_B * rows).sum(), rows.sum())
    sums.add("objective/non_score_reward", -kl_coef * kl_B.sum(), rows.sum())
    sums.add("objective/rlhf_reward", ((batch.scores_B - kl_coef * kl_B) * rows).sum(), rows.sum())
    sums.add("objective/entropy", -(batch.old_logps_BT * mask_BT).sum(), rows.sum())
    sums.add("policy/entropy_avg", -(batch.old_logps_BT * mask_BT).sum(), tokens)
    sums.add("completions/mean_length", mask_BT.sum(), rows.sum())
    sums.add("completions/ended", (batch.ended_B * rows).sum(), rows.sum())
    metrics = sums.means(world.sum)
    error = (batch.returns_BT - batch.values_BT) * mask_BT
    metrics["critic/vf_explained_var"] = 1 - _variance(error, mask_BT, world) / max(
        _variance(batch.returns_BT, mask_BT, world), 1e-8
    )
    return metrics


def _update(
    session: Session, actors: Actors, optimizer: AdamW, batch: Rollouts, config: PPOConfig, step: int, rate: float
) -> dict[str, float]:
    """All passes over one batch of rollouts; the metrics are means over its optimizer steps."""
    world = session.world
    collected: list[dict[str, float]] = []
    for epoch in range(config.ppo_epochs):
        for rows in _mini_batches(batch.rows, config, step, epoch):
            mine = batch.local(rows)
            num_tokens = int(world.sum(float(batch.mask_BT[mine].sum())))
            if num_tokens == 0:
                continue  # the judge had no opinion on any of these answers
            pieces = micro_batches([int(batch.lengths_B[i]) for i in mine], config.max_tokens)
            metrics = train_step(
                world,
                optimizer,
                [[mine[i] for i in piece] for piece in pieces],
                partial(ppo_losses, actors, batch, config, num_tokens, step >= config.value_warmup),
                max_grad_norm=config.max_grad_norm,
                lr=rate,
                step=step + 1,
            )
            if not collected:
                _check_first_ratio(metrics, actors.dtype, step)
            collected.append(metrics)
            if config.target_kl is not None and metrics["policy/approxkl_avg"] > config.target_kl:
                return _summary(collected, stopped=True)
    return _summary(collected, stopped=False)


def ppo_losses(
    actors: Actors, batch: Rollouts, config: PPOConfig, num_tokens: int, policy_on: bool, places: list[int]
) -> Iterator[tuple[torch.Tensor, MetricSums]]:
    """Policy loss, then value loss of some rows (both at once on a shared trunk), over the mini-batch's token count."""
    rows = batch.select(places)
    with nullcontext() if policy_on else torch.no_grad():
        loss, sums, hidden_ND = _policy_part(actors, rows, config, num_tokens)
    if policy_on and actors.separate:
        yield loss, sums
        del loss, hidden_ND
        yield _value_part(actors, rows, None, config, num_tokens)
    else:
        critic, critic_sums = _value_part(actors, rows, hidden_ND, config, num_tokens)
        yield loss + critic, sums | critic_sums


def _policy_part(
    actors: Actors, rows: Rollouts, config: PPOConfig, num_tokens: int
) -> tuple[torch.Tensor, MetricSums, torch.Tensor]:
    """Clipped surrogate minus entropy bonus; and the policy's hidden states."""
    out = completion_logprobs(
        actors.policy,
        rows.ids_BT,
        rows.mask_BT,
        lengths_B=rows.lengths_B,
        temperature=config.sampling.temperature,
        with_entropy=config.entropy_coef > 0,
    )
    loss, sums = ppo_policy_loss(
        out.logps_BT,
        rows.old_logps_BT,
        rows.advantages_BT,
        rows.mask_BT,
        cliprange=config.cliprange,
        num_tokens=num_tokens,
    )
    apart_BT = (out.logps_BT.detach() - rows.sampler_logps_BT).abs() * rows.mask_BT
    sums.add("sampler/logprob_diff_mean", apart_BT.sum(), rows.mask_BT.sum())
    if out.entropy_BT is not None:
        loss = loss - config.entropy_coef * out.entropy_BT.sum() / num_tokens
    return loss, sums, out.hidden_ND


def _value_part(
    actors: Actors, rows: Rollouts, hidden_ND: torch.Tensor | None, config: PPOConfig, num_tokens: int
) -> tuple[torch.Tensor, MetricSums]:
    loss, sums = value_loss(
        actors.values(rows.ids_BT, rows.mask_BT, rows.lengths_B, hidden_ND),
        rows.values_BT,
        rows.returns_BT,
        rows.mask_BT,
        cliprange_value=config.cliprange_value,
        num_tokens=num_tokens,
    )
    return config.vf_coef * loss, sums


def _mini_batches(rows: int, config: PPOConfig, step: int, epoch: int) -> list[list[int]]:
    """Row numbers of the whole batch (all processes) in shuffled mini-batches of equal size, give or take one."""
    generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 101 + epoch)
    shuffled = torch.randperm(rows, generator=generator).tolist()
    return [shuffled[start :: config.mini_batches] for start in range(config.mini_batches)]


def _check_first_ratio(metrics: dict[str, float], dtype: torch.dtype, step: int) -> None:
    """Before the first update of a batch the policy is the one that was recorded: ratio 1, nothing clipped."""
    ratio, clipped = metrics["val/ratio"], metrics["policy/clipfrac_avg"]
    tolerance = _RATIO_TOLERANCE[dtype]
    if abs(ratio - 1) > tolerance or clipped > tolerance:
        raise HealthError(
            f"step {step + 1}: before the first update the probability ratio is {ratio:.4f} (must be 1) and the clip "
            f"fraction {clipped:.4f} (must be 0): log-probabilities differ between sampling or recording and the update; "
            "a model with dropout or other randomness in its forward pass does this"
        )


def _variance(x_BT: torch.Tensor, mask_BT: torch.Tensor, world: World) -> float:
    count = world.sum(float(mask_BT.sum()))
    mean = world.sum(float((x_BT * mask_BT).sum())) / count
    return world.sum(float((((x_BT - mean) ** 2) * mask_BT).sum())) / count


def _summary(updates: Sequence[dict[str, float]], *, stopped: bool) -> dict[str, float]:
    """Means over the updates of a step; the sampler is compared before the first, while both are one policy."""
    means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
    return means | {
        "sampler/logprob_diff_mean": updates[0]["sampler/logprob_diff_mean"],
        "policy/updates": float(len(updates)),
        "policy/stopped_early": float(stopped),
    }
