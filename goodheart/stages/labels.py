"""What a reward model learns from: the labels of a micro-batch laid out, how far each is trusted, and their loss.

Letters: B answers, P prompts, K answers per prompt, N heads or members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from goodheart.data.batches import pad
from goodheart.data.examples import Compared
from goodheart.data.formats import Kind
from goodheart.errors import DataError
from goodheart.judges.reliability import pair_report, score_report, thumb_report
from goodheart.losses.metrics import MetricSums
from goodheart.losses.preference import centring_loss, plackett_luce_loss, ranked_pairs_loss
from goodheart.losses.reward import class_weights, score_regression_loss, thumbs_loss
from goodheart.models.heads import RewardEnsemble, RewardModel
from goodheart.stages.settings.reward import RewardConfig
from goodheart.train.memory import Most


@dataclass(frozen=True, slots=True)
class StepSize:
    """What the losses of one optimizer step are divided by, over all its micro-batches and processes."""

    weight: float  # sum of the trust in the labels, the mean over heads
    prompts: int


class LabelBatch:
    """Labels of a micro-batch laid out for the loss: ragged K filled up and marked as not valid."""

    def __init__(self, items: Sequence[Compared], trust_PN: Tensor, pad_id: int, device: torch.device) -> None:
        batch = pad([e for item in items for e in item.answers], pad_id).to(device)
        self.ids_BT, self.mask_BT, self.lengths_B, self.kept_N = (
            batch.ids_BT,
            batch.mask_BT,
            batch.lengths_B,
            batch.kept_N,
        )
        self.trust_PN = trust_PN.to(device)
        P, K = len(items), max(len(i.answers) for i in items)
        valid_PK = torch.zeros(P, K, dtype=torch.bool)
        ranks_PK = torch.zeros(P, K, dtype=torch.long)
        for p, item in enumerate(items):
            valid_PK[p, : len(item.answers)] = True
            ranks_PK[p, : len(item.answers)] = torch.tensor(item.ranks)
        self.valid_PK, self.ranks_PK = valid_PK.to(device), ranks_PK.to(device)
        self._places_B = valid_PK.flatten().nonzero().squeeze(1).to(device)  # of each answer
        self.margin_P = torch.tensor([i.margin or 0.0 for i in items], device=device)
        self.target_P = torch.tensor([i.target or 0.0 for i in items], device=device)
        self._probabilities = [i.probability for i in items]

    def wrong_P(self, usual: float) -> Tensor | None:
        """Probability that each order is wrong, `usual` for hard labels; None where there are no soft ones."""
        if all(p is None for p in self._probabilities):
            return None
        return torch.tensor([usual if p is None else 1 - p for p in self._probabilities], device=self.ids_BT.device)

    def scores(self, model: RewardModel | RewardEnsemble) -> Tensor:
        """(N, P, K) scores; entries that are not valid are 0."""
        scores_BN = model(self.ids_BT, self.lengths_B).float()
        return self.laid(scores_BN).permute(2, 0, 1)

    def laid(self, values_B: Tensor) -> Tensor:
        """One value (or several) per answer in its place; 0 where a prompt has fewer. -> values_PK (and further)"""
        P, K = self.valid_PK.shape
        laid = values_B.new_zeros(P * K, *values_B.shape[1:]).index_put((self._places_B,), values_B)
        return laid.view(P, K, *values_B.shape[1:])


HeadLoss = Callable[[Tensor, LabelBatch, int, StepSize], tuple[Tensor, MetricSums]]  # scores_PK, batch, head, size
Report = Callable[[Sequence[Compared], Sequence[Sequence[float]]], dict[str, Any]]


def objective(kind: Kind, items: Sequence[Compared], config: RewardConfig) -> tuple[HeadLoss, Report]:
    """Loss of one head, and the held-out report, of a kind of label.

    Raises DataError where all ratings or thumbs are the same, or labels are soft and the loss knows only hard ones.
    """
    targets = {item.target for item in items}
    if kind in ("rating", "thumb") and len(targets) == 1:
        same = f"{'up' if targets == {1.0} else 'down'}" if kind == "thumb" else f"{next(iter(targets)):g}"
        raise DataError(f"every {kind} is {same}: nothing tells good from bad. Add rows of another kind")
    if kind == "rating":
        return _rating_objective(items)
    if kind == "thumb":
        return _thumb_objective(items)
    if config.ranking == "plackett-luce" and any(item.probability is not None for item in items):
        raise DataError("rows have a `probability`, and Plackett-Luce knows no soft labels: use `ranking: pairs`")
    return partial(_ranking_loss, config=config), pair_report


def loss_over_heads(
    model: RewardModel | RewardEnsemble, batch: LabelBatch, size: StepSize, head_loss: HeadLoss
) -> tuple[Tensor, MetricSums]:
    """Mean over heads, each with its own trust in the labels."""
    scores_NPK = batch.scores(model)
    total, sums = scores_NPK.new_zeros(()), MetricSums()
    for head, scores_PK in enumerate(scores_NPK):
        loss, metrics = head_loss(scores_PK, batch, head, size)
        total, sums = total + loss / len(scores_NPK), sums | metrics
    return total, sums


def _ranking_loss(
    scores_PK: Tensor, batch: LabelBatch, head: int, size: StepSize, *, config: RewardConfig
) -> tuple[Tensor, MetricSums]:
    trust_P = batch.trust_PN[:, head]
    if config.ranking == "pairs":
        loss, metrics = ranked_pairs_loss(
            scores_PK,
            batch.ranks_PK,
            batch.valid_PK,
            num_prompts=size.weight,
            tie_margin=config.tie_margin,
            margin_P=batch.margin_P,
            label_smoothing=config.label_smoothing,
            flipped_P=batch.wrong_P(config.label_smoothing),
            weight_P=trust_P,
        )
    else:
        loss, metrics = plackett_luce_loss(
            scores_PK, batch.ranks_PK, batch.valid_PK, num_prompts=size.weight, weight_P=trust_P
        )
    if config.center_coefficient:
        centring = centring_loss(scores_PK, batch.valid_PK, num_prompts=size.prompts)
        loss = loss + config.center_coefficient * centring
    return loss, metrics


def _rating_objective(items: Sequence[Compared]) -> tuple[HeadLoss, Report]:
    targets = torch.tensor([i.target or 0.0 for i in items])
    mean, std = targets.mean().item(), (targets.std().item() if len(items) > 1 else 0.0) or 1.0

    def loss(scores_PK: Tensor, batch: LabelBatch, head: int, size: StepSize) -> tuple[Tensor, MetricSums]:
        trust_P = batch.trust_PN[:, head]
        return score_regression_loss(
            scores_PK[:, 0], batch.target_P, num_ratings=size.weight, mean=mean, std=std, weight_N=trust_P
        )

    def report(rows: Sequence[Compared], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
        return score_report([((r.target or 0.0) - mean) / std for r in rows], [s[0] for s in scores])

    return loss, report


def _thumb_objective(items: Sequence[Compared]) -> tuple[HeadLoss, Report]:
    up, down = class_weights(sum(i.target == 1 for i in items), sum(i.target == 0 for i in items))

    def loss(scores_PK: Tensor, batch: LabelBatch, head: int, size: StepSize) -> tuple[Tensor, MetricSums]:
        return thumbs_loss(
            scores_PK[:, 0],
            batch.target_P == 1,
            num_thumbs=size.weight,
            up_weight=up,
            down_weight=down,
            weight_N=batch.trust_PN[:, head],
        )

    def report(rows: Sequence[Compared], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
        return thumb_report([r.target or 0.0 for r in rows], [s[0] for s in scores])

    return loss, report


def trust(items: Sequence[Compared], heads: int, config: RewardConfig) -> Tensor:
    """(P, N) weight of each label for each head: the label's own, times how often a bootstrap sample drew it.

    A label that compares nothing (all its answers tie, and ties do not teach) weighs 0, so that it leaves the
    denominator too.
    """
    ties_teach = config.tie_margin is not None or config.ranking == "plackett-luce"
    teaches = [ties_teach or i.target is not None or len(set(i.ranks)) > 1 for i in items]
    own_P1 = torch.tensor([i.weight * t for i, t in zip(items, teaches, strict=True)])[:, None]
    if heads == 1 or not config.bootstrap:
        return own_P1.expand(-1, heads).clone()
    generator = torch.Generator().manual_seed(config.seed)
    draws_NP = torch.randint(len(items), (heads, len(items)), generator=generator)
    counts_NP = torch.zeros(heads, len(items)).scatter_add_(1, draws_NP, torch.ones(heads, len(items)))
    return own_P1 * counts_NP.T


def step_size(trust_PN: Tensor, rows: Sequence[int]) -> StepSize:
    """Of the whole step, over all processes; a step that trusts no label at all divides by next to nothing, but that
    is a sum of zeros.
    """
    return StepSize(max(float(trust_PN[list(rows)].sum(0).mean()), 1e-6), len(rows))


def most_of(items: Sequence[Compared], batch_size: int) -> Most:
    """What so many items ask for at most, all answers to a prompt together."""
    answers = max(len(item.answers) for item in items)
    return Most(batch_size * answers, max(item.tokens for item in items), together=answers)


def pieces(items: Sequence[Compared], max_tokens: int) -> list[list[int]]:
    """Micro-batches of at most `max_tokens` with padding, longest first; all answers to a prompt stay together."""
    found: list[list[int]] = []
    answers = 0  # in the open piece, whose first item is its longest
    for i in sorted(range(len(items)), key=lambda i: -items[i].tokens):
        more = len(items[i].answers)
        if found and items[found[-1][0]].tokens * (answers + more) <= max_tokens:
            found[-1].append(i)
            answers += more
        else:
            found.append([i])
            answers = more
    return found
