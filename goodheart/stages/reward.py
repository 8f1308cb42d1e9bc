"""Reward model: learn a score from what people preferred.

Pairs and K-way rankings: every untied pair of a prompt's answers, weighted so that each prompt counts once and kept in
one batch element (Ouyang et al., arXiv:2203.02155, eq. 1), or Plackett-Luce; ratings: regression; thumbs: logistic.
Held-out data are split by prompt. Letters: P prompts, N heads or members of an ensemble.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from goodheart.data.examples import Compared, comparisons, require
from goodheart.data.formats import BadRow, Kind, Loaded, kind_of, read_records
from goodheart.data.template import Template
from goodheart.errors import DataError
from goodheart.judges.reward import RewardJudge
from goodheart.losses.metrics import MetricSums
from goodheart.models.heads import RewardEnsemble, RewardModel
from goodheart.models.load import new_reward, resolve, save_reward
from goodheart.stages.curriculum import row_order
from goodheart.stages.labels import (
    HeadLoss,
    LabelBatch,
    StepSize,
    loss_over_heads,
    objective,
    pieces,
    step_size,
    trust,
)
from goodheart.stages.offline import most_of
from goodheart.stages.settings.reward import RewardConfig
from goodheart.stages.unseen import read_parts
from goodheart.train.config import listed
from goodheart.train.language_model import total_steps
from goodheart.train.memory import looked_at
from goodheart.train.optimizer import lr_at, optimizer_for, resolve_dtype
from goodheart.train.policy import ready, row_length
from goodheart.train.run import Run
from goodheart.train.session import Session, open_session
from goodheart.train.step import train_step

__all__ = ["RewardConfig", "train"]

_LABELS = ("preference", "rating", "thumb")
_MEASURED = 2000  # training items whose scores tell the scale


def train(config: RewardConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    sources = listed(config.data)
    with open_session("reward", config, parents={"model": config.model}, data=config.files()) as session:
        if session.finished:
            return session.run

        # 1. model and labels
        model = _new_model(config, session)
        template = Template.load(resolve(config.model), plain_prompts=config.plain_prompts)
        max_length = row_length(config, model.max_length)
        loaded, kind = _read(sources, config.kind)
        parts = read_parts(session, config, kind, loaded)
        skipped = parts.skipped
        prepared = comparisons(session.watched(parts.kept, "making tokens"), template, max_length, skipped)
        unseen = comparisons(parts.aside, template, max_length, skipped).items
        session.report_skipped(skipped)
        items = prepared.items
        require(items, skipped, "label", sources)
        head_loss, report = objective(kind, items, config)

        # 2. train
        total = total_steps(len(items), config)
        order = row_order(prepared, config.curriculum, config, steps=total)
        optimizer = optimizer_for(model.named_parameters(), config)
        session.state.add("model", model)
        session.state.add("optimizer", optimizer)
        trust_PN = trust(items, model.num_scores, config)
        warmup = round(config.warmup_ratio * total)
        most = most_of(session, items, looked_at(order, total, [item.tokens for item in items]), config)
        for step in session.steps(total, "reward model", checkpoint_every=config.checkpoint_every, most=most):
            rows = order[step]
            size = step_size(trust_PN, rows)
            mine = session.world.shard(rows)
            metrics = train_step(
                session.world,
                optimizer,
                [[mine[i] for i in piece] for piece in pieces([items[i] for i in mine], config.max_tokens)],
                partial(_rows_loss, session, model, items, trust_PN, template.pad_id, head_loss, size),
                max_grad_norm=config.max_grad_norm,
                lr=optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule),
                step=step + 1,
                name_rows=lambda piece: [prepared.where(i) for i in piece],
            )
            metrics |= order.metrics(step)
            if unseen and config.eval_every and (step + 1) % config.eval_every == 0:
                found = report(unseen, score_all(model, unseen, template, config.max_tokens))
                metrics |= {f"eval/{k}": v for k, v in found.items() if isinstance(v, float)}
            if (step + 1) % config.log_every == 0 or step + 1 == total:
                session.log(step, metrics, shown=("loss", "rewards/accuracies", "eval/accuracy"))

        # 3. scale, measure, save
        some = items[:: -(-len(items) // _MEASURED)]  # spread over all files
        own = torch.tensor([x for s in score_all(model, some, template, config.max_tokens) for x in s])
        results = report(unseen, score_all(model, unseen, template, config.max_tokens)) if unseen else {}
        extra = {
            "score_mean": own.mean().item(),
            "score_std": own.std().item() if len(own) > 1 else 1.0,
            "calibration_temperature": results.get("calibration_temperature"),
        }
        with session.model_folder() as target, session.world.whole(model) as state:
            if session.world.is_main:
                whole = state if session.world.size > 1 else None
                pad_id = _padding(template)
                save_reward(model, target, extra, state=whole, pad_token_id=pad_id)
                template.save(target)
        counts = {
            "kind": kind,
            "trained_on": len(items),
            "held_out": len(unseen),
            "truncated": prepared.cut,
            "skipped": skipped.total,
        }
        return session.finish(counts | extra | results)


def _rows_loss(
    session: Session,
    model: RewardModel | RewardEnsemble,
    items: Sequence[Compared],
    trust_PN: Tensor,
    pad_id: int,
    head_loss: HeadLoss,
    size: StepSize,
    rows: list[int],
) -> tuple[Tensor, MetricSums]:
    batch = LabelBatch([items[i] for i in rows], trust_PN[rows], pad_id, session.device)
    return loss_over_heads(model, batch, size, head_loss)


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
    for member in members:
        member.backbone.checkpoint_activations = config.activation_checkpointing  # type: ignore[assignment]
    ready_members = [ready(member, config, session) for member in members]
    return ready_members[0] if config.members == 1 else RewardEnsemble(ready_members)


def _read(sources: list[str], kind: Kind | Literal["auto"]) -> tuple[Loaded, Kind]:
    """The labels and which kind they are: as asked for, or the one kind that there is.

    Raises:
        DataError: no row is a label, or the rows are of several kinds.
    """
    if kind != "auto":
        return read_records(sources, kind), kind
    loaded = read_records(sources, "any")
    kinds = Counter(kind_of(record) for record in loaded.records)
    labels = [k for k in _LABELS if kinds[k]]
    counted = ", ".join(f"{n} of {k}" for k, n in kinds.items())
    if len(labels) != 1:
        found = "labels of several kinds in one run" if labels else "no labels"
        remedy = "a reward model learns from preference, rating or thumb rows"
        if labels:
            remedy = f"choose one with --set kind={labels[0]}: rows that cannot be turned into it are then set aside"
        raise DataError(f"{', '.join(sources)}: {found} (rows: {counted}); {remedy}")
    only = Loaded(bad=list(loaded.bad), counts=loaded.counts, shapes=loaded.shapes)
    for record, place in zip(loaded.records, loaded.places, strict=True):
        if kind_of(record) == labels[0]:
            only.records.append(record)
            only.places.append(place)
        else:
            only.bad.append(BadRow(*place, f"a {kind_of(record)}, not a {labels[0]}"))
    return only, cast(Kind, labels[0])


def _padding(template: Template) -> int:
    """The padding id of the saved model.

    transformers reads a decoder's score at the last token that is not padding; with the end token as padding, as many
    tokenizers have it, it would read the one before. Another special token is then padding, in the tokenizer too.
    """
    if template.pad_id not in template.eos_ids:
        return template.pad_id
    special = {i: t.content for i, t in template.tokenizer.added_tokens_decoder.items() if t.special}
    free = [i for i in special if i not in template.eos_ids]
    if not free:
        return template.pad_id
    chosen = min(free, key=lambda i: ("pad" not in special[i].lower(), i))
    template.tokenizer.pad_token = special[chosen]
    template.pad_id = chosen
    return chosen
