"""How the terms of a reward become one number, as plain arithmetic on one answer.

Each combination gives the score (None: no opinion) and what it did, for the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pieces:
    """One answer's terms, by name; a term without an opinion is absent.

    raw: on the judge's own scale.  scaled: (raw - mean) / std.  excess: how far a bound is broken, in standard
    deviations, negative inside the bound.
    """

    raw: Mapping[str, float]
    scaled: Mapping[str, float]
    weights: Mapping[str, float]
    excess: Mapping[str, float] = field(default_factory=dict)
    safety_prompt: bool = False

    def weighted(self) -> dict[str, float]:
        return {name: self.weights[name] * self.scaled[name] for name in self.scaled}


Found = tuple[float | None, dict[str, float]]
Combine = Callable[[Pieces], Found]


def lowest(scores: Sequence[float]) -> float:
    """The most pessimistic of several opinions (worst-case optimisation, Coste et al. arXiv:2310.02743)."""
    return min(scores)


def lower_bound(scores: Sequence[float], *, k: float) -> float:
    """Mean minus k standard deviations (of all the opinions there are, not an estimate from a sample).

    For 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3, so with k = 1 it is 3 - 2.160. The same penalty on disagreement as
    uncertainty-weighted optimisation (Coste et al. arXiv:2310.02743), which takes off k times the variance.
    """
    mean = sum(scores) / len(scores)
    return mean - k * math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))


def gated_sum(pieces: Pieces, *, otherwise: float | None) -> Found:
    """Weighted sum of the terms, or `otherwise` where one of the gates stops the answer."""
    if otherwise is None:
        return sum(pieces.weighted().values()), {}
    stopped = any(excess > 0 for excess in pieces.excess.values())
    return otherwise if stopped else sum(pieces.weighted().values()), {"stopped": float(stopped)}


def over_terms(pieces: Pieces, *, least: Callable[[Sequence[float]], float]) -> Found:
    """The worst, or a lower bound, over the weighted terms; a term of weight 0 is none of them."""
    scores = [value for name, value in pieces.weighted().items() if pieces.weights[name]]
    return least(scores) if scores else None, {}


def llama2(pieces: Pieces, *, threshold: float, clip: float, scale: tuple[float, float]) -> Found:
    """Llama 2's combination of a helpfulness and a safety reward (Touvron et al. arXiv:2307.09288, section 3.2.3).

        R_c = R_s    where the prompt is a safety prompt, or R_s < threshold
              R_h    else                                   (both as probabilities, sigmoid of the score)
        score = whiten(logit(R_c)), probabilities clipped before the logit

    The paper whitens over the batch; here by a fixed mean and std, so that scores of different steps, batches and
    processes can be compared.

    scale: mean and std of the logits.
    """
    safe, helpful = pieces.raw.get("safe"), pieces.raw.get("helpful")
    by_safety = pieces.safety_prompt or (safe is not None and sigmoid(safe) < threshold)
    ruling = safe if by_safety else helpful
    if ruling is None:
        return None, {}
    probability = min(max(sigmoid(ruling), clip), 1 - clip)
    mean, std = scale
    return (logit(probability) - mean) / std, {"by_safety": float(by_safety)}


def constrained(pieces: Pieces, *, multipliers: Callable[[], Mapping[str, float]]) -> Found:
    """Maximise the terms without a bound subject to the means of the others: (R - sum l_i c_i) / (1 + sum l_i).

    c_i is how far answer and bound are apart. The division keeps the size of the reward when prices rise. Source: Dai
    et al. arXiv:2310.12773.
    """
    prices = multipliers()
    reward = sum(value for name, value in pieces.weighted().items() if name not in prices)
    cost = sum(prices[name] * excess for name, excess in pieces.excess.items())
    return (reward - cost) / (1 + sum(prices.values())), {}


def next_price(held: float, excess: float, *, rate: float, damping: float, most: float) -> tuple[float, float]:
    """A constraint's price after a step: what was held up to now, moved by the excess, and a part that is not held.

        held  <- held + rate * c      within 0 to `most`
        price  = held + damping * rate * c

    c is the mean excess of the step in standard deviations, cut to -1 to 1, so that one bad guess of the scale moves
    nothing far. The first line alone swings about the bound: the price still rises when the policy is on its way back
    already. The second line, which looks at the present alone, dampens that. A price of 0 is left as fast as any
    other. Source: Stooke et al. arXiv:2007.03964, algorithm 2 without its derivative term; K_I = rate, K_P = damping *
    rate. Ours: the cut.

    -> held, price
    """
    c = min(max(excess, -1.0), 1.0)
    held = min(max(held + rate * c, 0.0), most)
    return held, min(max(held + damping * rate * c, 0.0), most)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def logit(p: float) -> float:
    return math.log(p / (1 - p))
