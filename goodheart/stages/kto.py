"""Learning from thumbs up and down, without pairs and without a reward model: KTO and BCO.

    1 records    thumbs (of pairs and rankings: the best up, the worst down); some prompts are held out
    2 reference  log-probabilities of all answers before the first step, or from the cache; kept in the run folder
    3 baseline   what the policy gains on average: KTO asks answers meant for other prompts, BCO remembers
    4 train      ups are to be over the baseline, downs under it
    5 measure    whether held-out ups gained on held-out downs

Letters: N answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from goodheart.data.batches import micro_batches, pad
from goodheart.data.examples import NOTHING_WANTED, SAME, Compared, Prepared, require
from goodheart.errors import DataError
from goodheart.judges.reliability import pair_report, thumb_report
from goodheart.losses.metrics import MetricSums
from goodheart.losses.thumbs import LastKL, RewardShift, balanced_weights, bco_loss, kl_baseline, kto_loss
from goodheart.models.causal import CausalLM
from goodheart.stages.curriculum import row_order
from goodheart.stages.mismatched import Mismatched
from goodheart.stages.offline import begin, most_of
from goodheart.stages.references import answer_logps, logps_of, reference_logps
from goodheart.stages.settings.kto import KTOConfig
from goodheart.train.config import listed
from goodheart.train.language_model import total_steps
from goodheart.train.memory import looked_at
from goodheart.train.optimizer import lr_at
from goodheart.train.run import Run
from goodheart.train.session import Session, open_session
from goodheart.train.step import train_step

__all__ = ["KTOConfig", "train"]

_LOSSES = {"kto": kto_loss, "bco": bco_loss}
_NO_ENDS = "all answers tie or are the same: none is up or down"
_LEAST_WEIGHT = 1e-6  # a step that trusts no thumb divides a sum of zeros by it


@dataclass(frozen=True)
class Thumbs:
    """What is judged, with what the loss needs to know of each, on the CPU."""

    items: list[Compared]  # of one answer each
    ref_logps_N: Tensor
    up_N: Tensor
    trust_N: Tensor


def train(config: KTOConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    with open_session("kto", config, parents=config.parents(), data=config.files()) as session:
        if session.finished:
            return session.run

        # 1. model and records
        work = begin(session, config, "thumb")
        model, template, optimizer, prepared = work.model, work.template, work.optimizer, work.prepared
        if ties := work.skipped.counts.pop(NOTHING_WANTED, 0):
            work.skipped.counts[_NO_ENDS] = ties
        for part in (prepared, work.measured):
            part.set_aside(_same_after_the_cut(part), SAME)
        session.report_skipped(work.skipped)
        items, unseen = prepared.items, work.measured.items
        require(items, work.skipped, "thumb", listed(config.data))
        weights = _class_weights(items, config)
        total = total_steps(len(items), config)
        order = row_order(prepared, config.curriculum, config, steps=total)

        # 2. reference: of the answers where they stand, and, for KTO, behind other prompts of their step
        steps = [order[s] for s in range(total)] if config.loss == "kto" else []
        mixed = Mismatched(items, steps, work.max_length)
        answers = [item.answers[0] for item in [*items, *unseen]]
        refs = reference_logps(session, model, [*answers, *mixed.examples], template, config)
        own_N, unseen_N, mixed_N = refs.logps_N.split([len(items), len(unseen), len(mixed.examples)])
        known = Thumbs(
            items, own_N, torch.tensor([i.target == 1 for i in items]), torch.tensor([i.weight for i in items])
        )
        report = partial(_report, session, model, unseen, unseen_N, template.pad_id, config)

        shift, last_kl = RewardShift(), LastKL()
        session.state.add("shift", shift)
        session.state.add("last_kl", last_kl)
        warmup = round(config.warmup_ratio * total)
        most = most_of(session, items, looked_at(order, total, [item.tokens for item in items]), config)
        for step in session.steps(total, config.loss, checkpoint_every=config.checkpoint_every, most=most):
            # 3. baseline
            measured_now: dict[str, float] = {}
            if config.loss == "bco":
                measured_now["delta"] = baseline = shift.value
            else:
                kl = _kl(session, model, mixed, mixed_N, step, template.pad_id, config.max_tokens)
                if kl is not None:
                    measured_now["kl"] = last_kl.value = kl
                baseline = last_kl.value
            # 4. train
            rows = order[step]
            weight = max(float(known.trust_N[rows].sum()), _LEAST_WEIGHT)
            mine = session.world.shard(rows)
            own = micro_batches([items[i].tokens for i in mine], config.max_tokens)
            metrics = train_step(
                session.world,
                optimizer,
                [[mine[i] for i in piece] for piece in own],
                partial(_rows_loss, model, known, template.pad_id, session, config, weights, baseline, weight),
                max_grad_norm=config.max_grad_norm,
                lr=optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule),
                step=step + 1,
                name_rows=lambda piece: [prepared.where(i) for i in piece],
            )
            shift.update(metrics)
            metrics |= measured_now | order.metrics(step)
            if {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
                metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
            # 5. measure
            if unseen and config.eval_every and (step + 1) % config.eval_every == 0:
                found = report(_held_out_baseline(config, shift, last_kl))
                metrics |= {f"eval/{k}": v for k, v in found.items() if isinstance(v, float)}
            if (step + 1) % config.log_every == 0 or step + 1 == total:
                session.log(step, metrics, shown=("loss", "rewards/margins", "kl", "eval/auc"))

        results = report(_held_out_baseline(config, shift, last_kl)) if unseen else {}
        told = {"desirable_weight": weights[0], "undesirable_weight": weights[1], "reference_from_cache": refs.shared}
        return work.finish(told | results)


def _kl(
    session: Session, model: CausalLM, mixed: Mismatched, refs_N: Tensor, step: int, pad_id: int, max_tokens: int
) -> float | None:
    own = mixed.steps[step]
    if not own:
        return None
    logps_N = logps_of(session, model, [mixed.examples[i] for i in own], pad_id, max_tokens, "baseline")
    return kl_baseline(float((logps_N - refs_N[own]).double().sum()), len(own))


def _rows_loss(
    model: CausalLM,
    known: Thumbs,
    pad_id: int,
    session: Session,
    config: KTOConfig,
    weights: tuple[float, float],
    baseline: float,
    weight: float,
    rows: list[int],
) -> tuple[Tensor, MetricSums]:
    batch = pad([known.items[i].answers[0] for i in rows], pad_id).to(session.device)
    logps_N, _ = answer_logps(model, batch)
    return _LOSSES[config.loss](
        logps_N,
        known.ref_logps_N[rows].to(session.device),
        known.up_N[rows].to(session.device),
        baseline=baseline,
        beta=config.beta,
        num_thumbs=weight,
        up_weight=weights[0],
        down_weight=weights[1],
        weight_N=known.trust_N[rows].to(session.device),
    )


def _class_weights(items: Sequence[Compared], config: KTOConfig) -> tuple[float, float]:
    """Weights of ups and downs.

    Raises:
        DataError: all thumbs are of one kind.
    """
    up = sum(i.weight for i in items if i.target == 1)
    down = sum(i.weight for i in items if i.target == 0)
    if not up or not down:
        there = "up" if up else "down"
        raise DataError(
            f"{', '.join(listed(config.data))}: every thumb is {there}: nothing tells good from bad. "
            "Add rows of the other kind" + ("; ups alone are demonstrations: use sft" if up else "")
        )
    return balanced_weights(up, down, up_weight=config.desirable_weight, down_weight=config.undesirable_weight)


def _same_after_the_cut(prepared: Prepared[Compared]) -> set[int]:
    """Thumbs up and down whose different answers to one prompt have become the same tokens: only noise to learn from.

    An answer that is the same as written may well have a thumb of each kind: people disagree.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for n, item in enumerate(prepared.items):
        groups[item.prompt_key, tuple(item.answers[0].ids)].append(n)
    found: set[int] = set()
    for own in groups.values():
        written = {prepared.records[n].answer.words for n in own}
        if len(written) > 1 and len({prepared.items[n].target for n in own}) > 1:
            found.update(own)
    return found


def _held_out_baseline(config: KTOConfig, shift: RewardShift, last_kl: LastKL) -> float:
    """The reward at which an answer is neither up nor down, as the loss has it."""
    return shift.value if config.loss == "bco" else config.beta * last_kl.value


def _report(
    session: Session,
    model: CausalLM,
    items: Sequence[Compared],
    refs_N: Tensor,
    pad_id: int,
    config: KTOConfig,
    baseline: float,
) -> dict[str, Any]:
    """Agreement of implicit rewards with held-out thumbs, and, where a prompt has ups and downs, with their order.

    baseline: the reward at which an answer counts as neither.
    """
    logps_N = logps_of(session, model, [i.answers[0] for i in items], pad_id, config.max_tokens, "measuring")
    scores = (config.beta * (logps_N - refs_N) - baseline).tolist()
    report = thumb_report([i.target or 0.0 for i in items], scores)
    rankings, own = ranked_within_prompts(items, scores)
    if rankings:
        report["pairs"] = pair_report(rankings, own)
        report["pairs_accuracy"] = report["pairs"]["accuracy"]
    return report


def ranked_within_prompts(
    items: Sequence[Compared], scores: Sequence[float]
) -> tuple[list[Compared], list[list[float]]]:
    """Thumbs of one prompt as a ranking, ups before downs, with their scores; prompts of one kind are left out."""
    members: dict[str, list[int]] = defaultdict(list)
    for n, item in enumerate(items):
        members[item.prompt_key].append(n)
    mixed = [own for own in members.values() if len({items[n].target for n in own}) == 2]
    rankings = [
        Compared(
            tuple(items[n].answers[0] for n in own),
            tuple(0 if items[n].target == 1 else 1 for n in own),
            prompt_key=items[own[0]].prompt_key,
            sizes=tuple(items[n].sizes[0] for n in own),
        )
        for own in mixed
    ]
    return rankings, [[scores[n] for n in own] for own in mixed]
