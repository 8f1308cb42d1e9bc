"""Direct preference optimisation and its relatives: learn from what people preferred, without a reward model.

    1 records    pairs, or K ranked answers with ties; some prompts are held out
    2 reference  log-probabilities of all answers before the first step, or from the cache; kept in the run folder
    3 train      all answers of a prompt in one forward pass; the policy's own log-probabilities are the scores
    4 measure    whether held-out answers that people preferred gained on the others

Which loss is a row of `losses/direct.py`. Letters: B answers, P prompts, K answers per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from goodheart.data.examples import TIED, Compared, Prepared, require
from goodheart.errors import DataError
from goodheart.judges.reliability import pair_report
from goodheart.losses.direct import FAMILY, dpo_loss, implicit_rewards
from goodheart.losses.metrics import MetricSums
from goodheart.models.causal import CausalLM
from goodheart.stages.curriculum import row_order
from goodheart.stages.labels import LabelBatch, pieces
from goodheart.stages.offline import begin, most_of
from goodheart.stages.references import answer_logps, logps_of, reference_logps
from goodheart.stages.settings.dpo import DPOConfig
from goodheart.train.config import listed
from goodheart.train.language_model import total_steps
from goodheart.train.memory import looked_at
from goodheart.train.optimizer import lr_at
from goodheart.train.run import Run
from goodheart.train.session import Session, open_session
from goodheart.train.step import train_step

__all__ = ["DPOConfig", "train"]

_LEAST_WEIGHT = 1e-6  # a step that trusts no label divides a sum of zeros by it


@dataclass(frozen=True)
class Comparisons:
    """What is compared, with what the loss needs to know of each, on the CPU."""

    items: list[Compared]
    trust_P: Tensor  # weight of each item
    wrong_P: Tensor | None  # probability that its order is wrong
    margin_P: Tensor | None  # lead that its better answers have to reach
    ref_logps: tuple[Tensor, ...] | None = None  # of each item one per answer; None = no reference


def train(config: DPOConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    with open_session("dpo", config, parents=config.parents(), data=config.files()) as session:
        if session.finished:
            return session.run

        # 1. model and records
        work = begin(session, config, "preference")
        model, template, optimizer, prepared = work.model, work.template, work.optimizer, work.prepared
        ties = {i for i, item in enumerate(prepared.items) if len(set(item.ranks)) == 1}
        if config.ranking == "pairs":  # Plackett-Luce learns from them: their rewards are drawn together
            prepared.set_aside(ties, TIED)
        session.report_skipped(work.skipped)
        require(prepared.items, work.skipped, "preference", listed(config.data))

        known = _labelled(prepared, config)
        if config.soft_column is not None:
            _take_likelier_orders(work.measured, config.soft_column, needed=False)
        items, unseen = known.items, work.measured.items
        total = total_steps(len(items), config)
        order = row_order(prepared, config.curriculum, config, steps=total)

        # 2. reference
        unseen_refs = None
        told: dict[str, Any] = {"tied_rows": len(ties)}
        if config.traits.needs_reference:
            answers = [a for item in [*items, *unseen] for a in item.answers]
            found_refs = reference_logps(session, model, answers, template, config)
            told["reference_from_cache"] = found_refs.shared
            refs = found_refs.logps_N.split([len(item.answers) for item in [*items, *unseen]])
            known, unseen_refs = replace(known, ref_logps=refs[: len(items)]), refs[len(items) :]
        scores = partial(_scores, session, model, unseen, unseen_refs, template.pad_id, config)

        # 3. train
        warmup = round(config.warmup_ratio * total)
        most = most_of(session, items, looked_at(order, total, [item.tokens for item in items]), config)
        for step in session.steps(total, "dpo", checkpoint_every=config.checkpoint_every, most=most):
            rows = order[step]
            weight = max(float(known.trust_P[rows].sum()), _LEAST_WEIGHT)
            mine = session.world.shard(rows)
            metrics = train_step(
                session.world,
                optimizer,
                [[mine[i] for i in piece] for piece in pieces([items[i] for i in mine], config.max_tokens)],
                partial(_rows_loss, model, known, template.pad_id, session.device, config, weight),
                max_grad_norm=config.max_grad_norm,
                lr=optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule),
                step=step + 1,
                name_rows=lambda piece: [prepared.where(i) for i in piece],
            )
            metrics |= order.metrics(step)
            if unseen and config.eval_every and (step + 1) % config.eval_every == 0:
                found = pair_report(unseen, scores())
                metrics |= {f"eval/{k}": v for k, v in found.items() if isinstance(v, float)}
            if (step + 1) % config.log_every == 0 or step + 1 == total:
                session.log(step, metrics, shown=("loss", "rewards/accuracies", "rewards/margins", "eval/accuracy"))

        # 4. measure, save
        results = pair_report(unseen, scores()) if unseen else {}
        return work.finish(told | results)


def _rows_loss(
    model: CausalLM,
    known: Comparisons,
    pad_id: int,
    device: torch.device,
    config: DPOConfig,
    weight: float,
    rows: list[int],
) -> tuple[Tensor, MetricSums]:
    batch = LabelBatch([known.items[i] for i in rows], known.trust_P[rows, None], pad_id, device)
    logps_B, tokens_B = answer_logps(model, batch)
    ref_logps_PK = None
    if known.ref_logps is not None:
        ref_logps_PK = batch.laid(torch.cat([known.ref_logps[i] for i in rows]).to(device))
    return dpo_loss(
        batch.laid(logps_B),
        ref_logps_PK,
        batch.laid(tokens_B),
        batch.ranks_PK,
        batch.valid_PK,
        num_prompts=weight,
        member=FAMILY[config.loss],
        beta=config.own("beta"),
        per_token=config.per_token,
        wrong_P=None if known.wrong_P is None else known.wrong_P[rows].to(device),
        margin_P=None if known.margin_P is None else known.margin_P[rows].to(device),
        sft_coef=config.own("sft_coef"),
        weight_P=batch.trust_PN[:, 0],
        whole_ranking=config.ranking == "plackett-luce",
    )


def _scores(
    session: Session,
    model: CausalLM,
    items: Sequence[Compared],
    ref_logps: tuple[Tensor, ...] | None,
    pad_id: int,
    config: DPOConfig,
) -> list[list[float]]:
    """Implicit rewards: for each item one per answer."""
    answers = [a for item in items for a in item.answers]
    logps_B = logps_of(session, model, answers, pad_id, config.max_tokens, "measuring")
    rewards_B = implicit_rewards(
        logps_B,
        None if ref_logps is None else torch.cat(ref_logps),
        torch.tensor([sum(a.mask) for a in answers]),
        member=FAMILY[config.loss],
        beta=config.own("beta"),
        per_token=config.per_token,
    )
    place = iter(rewards_B.tolist())
    return [[next(place) for _ in item.answers] for item in items]


def _labelled(prepared: Prepared[Compared], config: DPOConfig) -> Comparisons:
    """The items with their weights, leads and doubts.

    Raises:
        DataError: no row has a weight, a soft label is missing or no probability, or the loss knows only hard ones.
    """
    wrong_P = margin_P = None
    soft = next((n for n, item in enumerate(prepared.items) if item.probability is not None), None)
    if config.soft_column is not None:
        wrong_P = 1 - torch.tensor(_take_likelier_orders(prepared, config.soft_column))
    elif soft is not None:
        if config.loss == "robust" or config.ranking != "pairs" or not config.traits.smooths:
            what = f"loss: {config.loss}" if config.ranking == "pairs" else f"ranking: {config.ranking}"
            raise DataError(
                f"{prepared.where(soft)}: the row has a `probability`, and `{what}` knows no soft labels: use "
                "`loss: sigmoid`, or make them hard (goodheart data convert --labels majority)"
            )
        usual = config.label_smoothing
        wrong_P = torch.tensor([usual if i.probability is None else 1 - i.probability for i in prepared.items])
    elif config.label_smoothing:
        wrong_P = torch.full((len(prepared.items),), config.label_smoothing)
    items = prepared.items
    trust_P = torch.tensor([i.weight for i in items])
    if not trust_P.any():
        raise DataError(f"{', '.join(listed(config.data))}: every row weighs 0: nothing is preferred to anything")
    leads = [config.own("gamma") + config.margin_scale * (i.margin or 0.0) for i in items]
    if any(leads) and config.ranking == "pairs":  # Plackett-Luce has no leads
        margin_P = torch.tensor(leads)
    return Comparisons(items, trust_P, wrong_P, margin_P)


def _take_likelier_orders(prepared: Prepared[Compared], column: str, *, needed: bool = True) -> list[float]:
    """Turns each order round that is more likely wrong than right, so that metrics and "chosen" mean the likelier one.

    needed: whether a row without the column is an error; else its order is taken as right.
    -> for each item the probability, 1/2 or more, that its order is right now.
    """
    shares = []
    for n, item in enumerate(prepared.items):
        known = needed or column in prepared.records[n].prompt.meta
        share = _soft_label(prepared, n, column) if known else 1.0
        if share < 0.5:
            worst = max(item.ranks)
            prepared.items[n] = replace(item, ranks=tuple(worst - rank for rank in item.ranks))
        shares.append(max(share, 1 - share))
    return shares


def _soft_label(prepared: Prepared[Compared], index: int, column: str) -> float:
    meta: Any = prepared.records[index].prompt.meta
    try:
        share = float(meta[column])
    except (KeyError, TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        found = meta.get(column, "nothing")
        raise DataError(
            f"{prepared.where(index)}: soft_labels: column `{column}` must hold the probability that the order given "
            f"is right, 0 to 1; found {found!r}"
        )
    return share
