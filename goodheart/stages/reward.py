"""Reward model: learn a score from what people preferred (MISSION T2).

Pairs and K-way rankings: every untied pair of a prompt's answers, weighted so that each prompt counts once and kept in
one batch element (Ouyang et al., arXiv:2203.02155, eq. 1), or Plackett-Luce; ratings: regression; thumbs: logistic.
Held-out data are split by prompt. Letters: B answers, P prompts, K answers per prompt, N heads or members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from goodheart.data.batches import micro_batches, pad
from goodheart.data.examples import Compared, comparisons, require
from goodheart.data.formats import Kind, Loaded, kind_of, read_records, split_by_prompt
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import DataError
from goodheart.judges.reliability import pair_report, score_report, thumb_report
from goodheart.judges.reward import RewardJudge
from goodheart.losses.metrics import MetricSums
from goodheart.losses.preference import centring_loss, plackett_luce_loss, ranked_pairs_loss
from goodheart.losses.reward import class_weights, score_regression_loss, thumbs_loss
from goodheart.models.heads import RewardEnsemble, RewardModel
from goodheart.models.load import new_reward, resolve, save_reward
from goodheart.train.config import TrainingSettings
from goodheart.train.language_model import Order, total_steps
from goodheart.train.optimizer import build_optimizer, lr_at, resolve_dtype
from goodheart.train.policy import ready, row_length
from goodheart.train.run import Run
from goodheart.train.session import Session, open_session
from goodheart.train.step import train_step


class RewardConfig(TrainingSettings):
    """Settings of reward-model training."""

    data: str | list[str]  # pairs, rankings, ratings or thumbs (one kind per run)
    kind: Literal["auto", "preference", "rating", "thumb"] = "auto"
    eval_data: str | list[str] | None = None  # None = `held_out` of the data, split by prompt
    held_out: float = Field(0.1, ge=0, lt=1)
    eval_every: int | None = Field(None, ge=1)  # steps; None = at the end only
    learning_rate: float = Field(1e-5, gt=0)
    ranking: Literal["pairs", "plackett-luce"] = "pairs"
    center_coefficient: float = Field(0.01, ge=0)  # pulls the mean score of a prompt's answers to 0; 0 = off
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # share of labels taken to be wrong
    heads: int = Field(1, ge=1)  # an ensemble on one trunk
    members: int = Field(1, ge=1)  # an ensemble of whole models
    tie_margin: float | None = Field(
        None, gt=0
    )  # difference in score people notice, for ties; None = ties teach nothing
    bootstrap: bool = True  # heads and members of an ensemble see resampled labels, so that they differ


def train(config: RewardConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    sources = [config.data] if isinstance(config.data, str) else config.data
    eval_sources = [config.eval_data] if isinstance(config.eval_data, str) else config.eval_data or []
    with open_session("reward", config, parents={"model": config.model}, data=[*sources, *eval_sources]) as session:
        if session.finished:
            return session.run

        # 1. model and labels
        model = _new_model(config, session)
        template = Template(load_tokenizer(resolve(config.model)), plain_prompts=config.plain_prompts)
        max_length = row_length(config, model.max_length)
        loaded, kind = _read(sources, config.kind)
        if eval_sources:
            kept, aside = loaded.records, read_records(eval_sources, kind).records
        else:
            kept, aside = split_by_prompt(loaded.records, config.held_out, config.seed)
        prepared = comparisons(kept, template, max_length, loaded.bad)
        session.report_skipped(prepared.skipped)
        items = prepared.items
        require(items, prepared.skipped, "label", sources)
        unseen = comparisons(aside, template, max_length).items
        loss_fn, report = _objective(kind, items, config)

        # 2. train
        total = total_steps(len(items), config)
        order = Order([item.tokens for item in items], config.batch_size, config.seed)
        optimizer = build_optimizer(
            model.named_parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.adam_betas,
            eps=config.adam_eps,
        )
        session.state.add("model", model)
        session.state.add("optimizer", optimizer)
        trust_PN = _trust(items, model.num_scores, config)
        warmup = round(config.warmup_ratio * total)
        for step in session.steps(total, "reward model", checkpoint_every=config.checkpoint_every):
            rows = order[step]
            weight = max(float(trust_PN[rows].sum(0).mean()), 1e-6)  # of the step, over all processes, per head
            mine = session.world.shard(rows)
            metrics = train_step(
                session.world,
                optimizer,
                [[mine[i] for i in piece] for piece in _pieces([items[i] for i in mine], config.max_tokens)],
                partial(_rows_loss, session, model, items, trust_PN, template.pad_id, loss_fn, weight),
                max_grad_norm=config.max_grad_norm,
                lr=optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule),
                step=step + 1,
            )
            metrics["epoch"] = (step + 1) / order.per_epoch
            if unseen and config.eval_every and (step + 1) % config.eval_every == 0:
                found = report(unseen, score_all(model, unseen, template, config.max_tokens))
                metrics |= {f"eval/{k}": v for k, v in found.items() if isinstance(v, float)}
            if (step + 1) % config.log_every == 0 or step + 1 == total:
                session.log(step, metrics, shown=("loss", "rewards/accuracies", "eval/accuracy"))

        # 3. scale, measure, save
        own = [x for scores in score_all(model, items[:2000], template, config.max_tokens) for x in scores]
        spread = torch.tensor(own).std().item() if len(own) > 1 else 1.0
        results = report(unseen, score_all(model, unseen, template, config.max_tokens)) if unseen else {}
        extra = {
            "score_mean": sum(own) / len(own),
            "score_std": spread,
            "calibration_temperature": results.get("calibration_temperature"),
        }
        with session.model_folder() as target, session.world.whole(model) as state:
            if session.world.is_main:
                save_reward(model, target, extra, state=state, pad_token_id=template.pad_id)
                template.save(target)
        return session.finish(
            {"trained_on": len(items), "held_out": len(unseen), "skipped": prepared.skipped.total} | extra | results
        )


def _rows_loss(
    session: Session,
    model: RewardModel | RewardEnsemble,
    items: Sequence[Compared],
    trust_PN: Tensor,
    pad_id: int,
    loss_fn: LossFn,
    weight: float,
    rows: list[int],
) -> tuple[Tensor, MetricSums]:
    batch = _Batch.of([items[i] for i in rows], trust_PN[rows], pad_id, session.device)
    return loss_fn(model, batch, weight)


class _Batch:
    """Labels of a micro-batch laid out for the loss: ragged K filled up and marked as not valid."""

    def __init__(self, ids_BT: Tensor, lengths_B: Tensor, items: Sequence[Compared], trust_PN: Tensor) -> None:
        device = ids_BT.device
        P, K = len(items), max(len(i.answers) for i in items)
        self.ids_BT, self.lengths_B, self.trust_PN = ids_BT, lengths_B, trust_PN.to(device)
        self.valid_PK = torch.zeros(P, K, dtype=torch.bool)
        self.ranks_PK = torch.zeros(P, K, dtype=torch.long)
        for p, item in enumerate(items):
            self.valid_PK[p, : len(item.answers)] = True
            self.ranks_PK[p, : len(item.answers)] = torch.tensor(item.ranks)
        self.valid_PK, self.ranks_PK = self.valid_PK.to(device), self.ranks_PK.to(device)
        self.margin_P = torch.tensor([i.margin or 0.0 for i in items], device=device)
        self.target_P = torch.tensor([i.target or 0.0 for i in items], device=device)

    @classmethod
    def of(cls, items: Sequence[Compared], trust_PN: Tensor, pad_id: int, device: torch.device) -> _Batch:
        batch = pad([e for item in items for e in item.answers], pad_id).to(device)
        return cls(batch.ids_BT, batch.lengths_B, items, trust_PN)

    def scores(self, model: RewardModel | RewardEnsemble) -> Tensor:
        """(N, P, K) scores; entries that are not valid are 0."""
        scores_BN = model(self.ids_BT, self.lengths_B).float()
        laid_PKN = scores_BN.new_zeros(*self.valid_PK.shape, scores_BN.shape[1])
        laid_PKN[self.valid_PK] = scores_BN
        return laid_PKN.permute(2, 0, 1)


LossFn = Callable[[RewardModel | RewardEnsemble, _Batch, float], tuple[Tensor, MetricSums]]
Report = Callable[[Sequence[Compared], Sequence[Sequence[float]]], dict[str, Any]]


def _objective(kind: Kind, items: Sequence[Compared], config: RewardConfig) -> tuple[LossFn, Report]:
    """Loss and held-out report of a kind of label."""
    if kind == "rating":
        targets = torch.tensor([i.target or 0.0 for i in items])
        mean, std = targets.mean().item(), (targets.std().item() if len(items) > 1 else 0.0) or 1.0

        def rating_loss(scores_P: Tensor, batch: _Batch, head: int, weight: float) -> tuple[Tensor, MetricSums]:
            return score_regression_loss(
                scores_P, batch.target_P, num_ratings=weight, mean=mean, std=std, weight_N=batch.trust_PN[:, head]
            )

        return _single(rating_loss), lambda rows, scores: score_report(
            [((r.target or 0.0) - mean) / std for r in rows], [s[0] for s in scores]
        )
    if kind == "thumb":
        up, down = class_weights(sum(i.target == 1 for i in items), sum(i.target == 0 for i in items))

        def thumb_loss(scores_P: Tensor, batch: _Batch, head: int, weight: float) -> tuple[Tensor, MetricSums]:
            return thumbs_loss(
                scores_P,
                batch.target_P == 1,
                num_thumbs=weight,
                up_weight=up,
                down_weight=down,
                weight_N=batch.trust_PN[:, head],
            )

        return _single(thumb_loss), lambda rows, scores: thumb_report(
            [r.target or 0.0 for r in rows], [s[0] for s in scores]
        )
    return partial(_ranking_loss, config=config), pair_report


def _ranking_loss(
    model: RewardModel | RewardEnsemble, batch: _Batch, weight: float, *, config: RewardConfig
) -> tuple[Tensor, MetricSums]:
    """Mean over heads of the ranking loss, each with its own trust in the labels."""
    scores_NPK = batch.scores(model)
    sums = MetricSums()
    total = scores_NPK.new_zeros(())
    for head, scores_PK in enumerate(scores_NPK):
        trust_P = batch.trust_PN[:, head]
        if config.ranking == "pairs":
            loss, metrics = ranked_pairs_loss(
                scores_PK,
                batch.ranks_PK,
                batch.valid_PK,
                num_prompts=weight,
                tie_margin=config.tie_margin,
                margin_P=batch.margin_P,
                label_smoothing=config.label_smoothing,
                weight_P=trust_P,
            )
        else:
            loss, metrics = plackett_luce_loss(
                scores_PK, batch.ranks_PK, batch.valid_PK, num_prompts=weight, weight_P=trust_P
            )
        if config.center_coefficient:
            loss = loss + config.center_coefficient * centring_loss(scores_PK, batch.valid_PK, num_prompts=weight)
        total, sums = total + loss / len(scores_NPK), sums | metrics
    return total, sums


def _single(one: Callable[[Tensor, _Batch, int, float], tuple[Tensor, MetricSums]]) -> LossFn:
    """The loss of labels that stand on one answer each, averaged over heads."""

    def loss_fn(model: RewardModel | RewardEnsemble, batch: _Batch, weight: float) -> tuple[Tensor, MetricSums]:
        scores_NPK = batch.scores(model)
        sums = MetricSums()
        total = scores_NPK.new_zeros(())
        for head, scores_PK in enumerate(scores_NPK):
            loss, metrics = one(scores_PK[:, 0], batch, head, weight)
            total, sums = total + loss / len(scores_NPK), sums | metrics
        return total, sums

    return loss_fn


def _trust(items: Sequence[Compared], heads: int, config: RewardConfig) -> Tensor:
    """(P, N) weight of each label for each head: the label's own, times how often a bootstrap sample drew it."""
    ties_teach = config.tie_margin is not None or config.ranking == "plackett-luce"
    teaches = [ties_teach or i.target is not None or len(set(i.ranks)) > 1 for i in items]
    # what compares nothing must leave the denominator too
    own_P1 = torch.tensor([i.weight * t for i, t in zip(items, teaches, strict=True)])[:, None]
    if heads == 1 or not config.bootstrap:
        return own_P1.expand(-1, heads).clone()
    generator = torch.Generator().manual_seed(config.seed)
    draws_NP = torch.randint(len(items), (heads, len(items)), generator=generator)
    counts_NP = torch.zeros(heads, len(items)).scatter_add_(1, draws_NP, torch.ones(heads, len(items)))
    return own_P1 * counts_NP.T


def _pieces(items: Sequence[Compared], max_tokens: int) -> list[list[int]]:
    """Micro-batches under a token budget; all answers to a prompt stay together."""
    return micro_batches([item.tokens * len(item.answers) for item in items], max_tokens)


@torch.no_grad()
def score_all(
    model: RewardModel | RewardEnsemble, items: Sequence[Compared], template: Template, max_tokens: int
) -> list[list[float]]:
    """For each item one score per answer, the mean over heads and members."""
    flat = [answer for item in items for answer in item.answers]
    scores = RewardJudge(model, template, max_tokens=max_tokens).score_tokens([a.ids for a in flat]).mean(1).tolist()
    place = iter(scores)
    return [[next(place) for _ in item.answers] for item in items]


def _new_model(config: RewardConfig, session: Session) -> RewardModel | RewardEnsemble:
    """Fresh heads on the trunk that `model` names; members differ by the seed of their heads (and their bootstrap)."""
    dtype = resolve_dtype(config.dtype, session.device)
    members = [
        new_reward(config.model, config.heads, seed=config.seed + m, dtype=dtype, device=session.device)
        for m in range(config.members)
    ]
    ready_members = [ready(member, config, session) for member in members]
    return ready_members[0] if config.members == 1 else RewardEnsemble(ready_members)


def _read(sources: list[str], kind: Kind | Literal["auto"]) -> tuple[Loaded, Kind]:
    """The labels, and which kind they are: as asked for, or the kind that the first rows have."""
    if kind != "auto":
        return read_records(sources, kind), kind
    found = cast(Kind, kind_of(read_records(sources, "any", limit=1).records[0]))
    if found not in {"preference", "rating", "thumb"}:
        raise DataError(
            f"{', '.join(sources)}: rows of kind {found}; a reward model learns from preference, rating or thumb rows"
        )
    return read_records(sources, found), found
