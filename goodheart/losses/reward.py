"""Reward models on scores and thumbs, and how far their probabilities can be believed.

Shapes: N answers. The statistics at the end take plain numbers; they are for reports, not for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from goodheart.losses.metrics import MetricSums

# Temperatures outside this range mean that the data does not fix one: all margins right (or none).
_TEMPERATURES = (1e-2, 1e2)
# Halvings of a bracket of log-temperatures 9.2 wide: to 1e-14, the precision of float64.
_BISECTIONS = 50
_Z_95 = 1.959963984540054  # standard normal quantile of 0.975

Numbers = Iterable[float] | Tensor


def score_regression_loss(
    scores_N: Tensor,
    ratings_N: Tensor,
    *,
    num_ratings: float,
    mean: float = 0.0,
    std: float = 1.0,
    huber_delta: float | None = None,
    weight_N: Tensor | None = None,
) -> tuple[Tensor, MetricSums]:
    """Half the squared error between scores and normalised ratings (rating - mean) / std.

    mean, std: of the training ratings, so that scores are about standard normal whatever the scale of the ratings.
    num_ratings: ratings of the whole optimizer step (with weights: the sum of the weights).
    huber_delta: errors beyond it, in standard deviations, count linearly (Huber, Ann. Math. Stat. 35, 1964);
    None = off.
    -> scalar loss; `rewards/error` (mean absolute, in standard deviations), `rewards/mean`.
    Raises ValueError for num_ratings, std or huber_delta not over 0.
    """
    if num_ratings <= 0 or std <= 0 or (huber_delta is not None and huber_delta <= 0):
        raise ValueError(f"must be over 0: {num_ratings=}, {std=}, {huber_delta=} (None = off)")
    error_N = scores_N - (ratings_N.to(scores_N.dtype) - mean) / std
    if huber_delta is None:
        losses_N = 0.5 * error_N.square()
    else:
        losses_N = F.huber_loss(error_N, torch.zeros_like(error_N), reduction="none", delta=huber_delta)
    if weight_N is not None:
        losses_N = losses_N * weight_N
    metrics = MetricSums()
    metrics.add("rewards/error", error_N.abs().sum(), error_N.numel())
    metrics.add("rewards/mean", scores_N.sum(), scores_N.numel())
    return losses_N.sum() / num_ratings, metrics


def thumbs_loss(
    scores_N: Tensor,
    up_N: Tensor,
    *,
    num_thumbs: float,
    up_weight: float = 1.0,
    down_weight: float = 1.0,
    weight_N: Tensor | None = None,
) -> tuple[Tensor, MetricSums]:
    """Binary cross-entropy of thumbs: -log sigmoid(score) for up, -log sigmoid(-score) for down.

    up_N: bool. num_thumbs: thumbs of the whole optimizer step (with weights: the sum of the weights).
    up_weight, down_weight: see `class_weights`. weight_N: trust in each thumb (None = 1).
    -> scalar loss; `rewards/accuracies` (a score of exactly 0 counts half), `rewards/up`, `rewards/down` (mean scores).
    """
    if num_thumbs <= 0:
        raise ValueError(f"num_thumbs must be over 0, got {num_thumbs}")
    sign_N = torch.where(up_N, 1.0, -1.0).to(scores_N.dtype)
    class_N = torch.where(up_N, up_weight, down_weight).to(scores_N.dtype)
    if weight_N is not None:
        class_N = class_N * weight_N
    loss = -(class_N * F.logsigmoid(sign_N * scores_N)).sum() / num_thumbs
    metrics = MetricSums()
    metrics.add("rewards/accuracies", 0.5 * ((sign_N * scores_N.detach()).sign() + 1).sum(), scores_N.numel())
    metrics.add_masked(up_N, {"rewards/up": scores_N})
    metrics.add_masked(~up_N, {"rewards/down": scores_N})
    return loss, metrics


def class_weights(up: int, down: int) -> tuple[float, float]:
    """Weights that give both classes half of the loss and keep its sum: n / (2 n_up), n / (2 n_down).

    One class empty: (1.0, 1.0), nothing to balance.
    """
    if not up or not down:
        return 1.0, 1.0
    return (up + down) / (2 * up), (up + down) / (2 * down)


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of one interval of probability: [low, high), the last one closed."""

    low: float
    high: float
    count: int
    predicted: float  # mean probability; 0 when empty
    observed: float  # share of outcomes that came true; 0 when empty


@dataclass(frozen=True, slots=True)
class Calibration:
    """How predicted probabilities compare with what happened."""

    ece: float  # expected calibration error: mean over predictions of |predicted - observed| of their bin
    brier: float  # mean squared difference of probability and outcome
    bins: tuple[Bin, ...]


def calibration(probabilities: Numbers, outcomes: Numbers, bins: int = 10) -> Calibration:
    """Compares probabilities with outcomes in equally wide bins.

    probabilities: in [0, 1]. outcomes: 1 (happened), 0, or a share in between (0.5 for a tie).
    Raises ValueError for no data, unequal lengths, a value outside [0, 1], or bins < 1.
    Source: Guo et al. arXiv:1706.04599 eq. 3 (there with top-class confidences).
    """
    pairs = list(zip(_numbers(probabilities), _numbers(outcomes), strict=True))
    if not pairs or bins < 1:
        raise ValueError(f"calibration needs at least one prediction and one bin; got {len(pairs)} and {bins}")
    if not all(0 <= value <= 1 for pair in pairs for value in pair):
        raise ValueError("calibration: probabilities and outcomes must be in [0, 1]")
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for pair in pairs:
        members[min(int(pair[0] * bins), bins - 1)].append(pair)
    table = []
    for i, inside in enumerate(members):
        count = len(inside)
        predicted, observed = (sum(x) / count for x in zip(*inside, strict=True)) if count else (0.0, 0.0)
        table.append(Bin(i / bins, (i + 1) / bins, count, predicted, observed))
    ece = sum(b.count * abs(b.predicted - b.observed) for b in table) / len(pairs)
    brier = sum((p - y) ** 2 for p, y in pairs) / len(pairs)
    return Calibration(ece, brier, tuple(table))


def margin_calibration(margins: Numbers, *, temperature: float = 1.0, bins: int = 10) -> Calibration:
    """Calibration of a reward model on pairs: how sure it is of its own favourite, and how often people agree.

    margins: score of the answer people chose minus score of the other. The probability is that of the favourite,
    sigmoid(|margin| / temperature), so all lie in [0.5, 1] and `bins` divide [0, 1]; an equal score is half right.
    """
    values = _numbers(margins)
    probabilities = [1 / (1 + math.exp(-abs(m) / temperature)) for m in values]
    return calibration(probabilities, [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in values], bins)


def fit_temperature(margins: Numbers) -> float:
    """The T that makes sigmoid(margin / T) the likeliest probabilities of the choices made (held-out pairs).

    margins: chosen minus rejected score. -> T in [0.01, 100]: over 1 the model was too sure, under 1 not sure enough;
    an end of the range when the data does not bound T (every margin right, or most wrong).
    Maximum likelihood is concave in 1/T, so its slope is bisected. Source: Guo et al. arXiv:1706.04599 sec. 4.2.
    Raises ValueError without margins.
    """
    values = torch.tensor(_numbers(margins), dtype=torch.float64)
    if not values.numel():
        raise ValueError("fit_temperature needs at least one margin")
    low, high = (math.log(t) for t in _TEMPERATURES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # d/d(1/T) of sum log sigmoid(m/T): positive while a smaller T would fit better.
        slope = (values * torch.sigmoid(-values * math.exp(-middle))).sum()
        if slope > 0:
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


def wilson_interval(successes: float, trials: float, z: float = _Z_95) -> tuple[float, float]:
    """Interval of a share, 95 % unless `z` says otherwise: right also for few trials and shares near 0 or 1.

    successes: may be fractional (ties count half). No trials: (0, 1). Raises ValueError unless 0 <= successes <=
    trials. Source: Wilson, JASA 22 (1927).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials, got {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    share, shrink = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrink
    # rounding must not put the share itself outside
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def _numbers(values: Numbers) -> Sequence[float]:
    return values.tolist() if isinstance(values, Tensor) else list(values)
