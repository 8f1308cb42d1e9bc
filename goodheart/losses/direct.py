"""Learning from comparisons without a reward model: the policy's own log-probabilities are the scores.

Each member of the family is an *implicit reward* of an answer and a *link*, the loss of a pair by the difference z of
its two rewards. l = log-probability of the whole answer, l_ref under the reference, n its tokens, b = beta:

    name      implicit reward       loss of a pair            source
    sigmoid   b (l - l_ref)         -log sigmoid(z)           DPO, Rafailov et al. arXiv:2305.18290 eq. 7
    robust    b (l - l_ref)         the same, debiased        Chowdhury et al. arXiv:2403.00409
    hinge     b (l - l_ref)         max(0, 1 - z)             SLiC arXiv:2305.10425; RSO arXiv:2309.06657
    ipo       b (l - l_ref) / n     (z/b - 1/(2b))^2          Azar et al. arXiv:2310.12036 eq. 17
    simpo     b l / n               -log sigmoid(z - gamma)   Meng et al. arXiv:2405.14734 eq. 6
    cpo       b l                   -log sigmoid(z)           Xu et al. arXiv:2401.08417; with the likelihood term
    orpo      b log odds(l / n)     -b log sigmoid(z/b)       Hong et al. arXiv:2403.07691 eq. 6, 7; with the same

IPO's paper writes sums of log-probabilities; its authors average over tokens, and so does this table.
Shapes: P prompts, K answers to one prompt, fewer where `valid_PK` is False. Ranks: smaller is better, equal is a tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from goodheart.losses.family import TRAITS, Traits
from goodheart.losses.metrics import MetricSums
from goodheart.losses.preference import choice_loss, pairwise_from_ranks, plackett_luce_loss, ranked_pairs_loss

# An answer of probability 1 has infinite odds; this is the largest log-probability per token that float32 tells from 0.
_MOST_LOGP = -1.2e-7

Reward = Callable[[Tensor, Tensor, float], Tensor]  # (l - l_ref or l, tokens that divide it, beta) -> implicit reward
Link = Callable[[Tensor, float], Tensor]  # (difference of rewards, beta) -> loss of the pair
Flipped = Callable[[Tensor], Tensor]  # probability that a label is wrong -> share of the flipped pair


def scaled(logps: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """beta l / n; without length normalisation n is 1."""
    return beta * logps / tokens


def scaled_log_odds(logps: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """beta log(p / (1 - p)), p = exp(l / n) the geometric mean of the tokens' probabilities."""
    mean = (logps / tokens).clamp(max=_MOST_LOGP)
    return beta * (mean - torch.log(-torch.expm1(mean)))


def logistic(difference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(z)."""
    return choice_loss(difference)


def hinge(difference: Tensor, beta: float) -> Tensor:
    """max(0, 1 - z): nothing more to learn once the rewards differ by 1."""
    return F.relu(1 - difference)


def squared(difference: Tensor, beta: float) -> Tensor:
    """(z/b - 1/(2b))^2: the log-ratios are to differ by 1/(2b), and by no more."""
    return ((difference - 0.5) / beta).square()


def outside(difference: Tensor, beta: float) -> Tensor:
    """-b log sigmoid(z/b): beta weighs the loss and does not sharpen it."""
    return beta * choice_loss(difference / beta)


def smoothed(wrong: Tensor) -> Tensor:
    """Share of the flipped pair when `wrong` of the labels are wrong: the label's expected loss (conservative DPO)."""
    return wrong


def debiased(wrong: Tensor) -> Tensor:
    """Share of the flipped pair that makes the expected loss under flipped labels the loss under clean ones: negative.

    ((1 - e) loss(z) - e loss(-z)) / (1 - 2e). Chowdhury et al. arXiv:2403.00409.
    """
    return -wrong / (1 - 2 * wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Traits):
    """One loss of the family, with its paper's settings."""

    reward: Reward
    link: Link
    flipped: Flipped  # where it `smooths`


def _member(name: str, reward: Reward = scaled, link: Link = logistic, flipped: Flipped = smoothed) -> Member:
    return Member(reward=reward, link=link, flipped=flipped, **asdict(TRAITS[name]))


FAMILY = {
    "sigmoid": _member("sigmoid"),
    "robust": _member("robust", flipped=debiased),
    "hinge": _member("hinge", link=hinge),
    "ipo": _member("ipo", link=squared),
    "simpo": _member("simpo"),
    "cpo": _member("cpo"),
    "orpo": _member("orpo", reward=scaled_log_odds, link=outside),
}


def implicit_rewards(
    logps_PK: Tensor,
    ref_logps_PK: Tensor | None,
    tokens_PK: Tensor,
    *,
    member: Member,
    beta: float,
    per_token: bool,
) -> Tensor:
    """What the policy's log-probabilities say that each answer is worth.

    logps_PK: log-probability of each whole answer, in nats. ref_logps_PK: under the reference; None = a member that
    needs none. tokens_PK: tokens of each answer. per_token: divide by them. -> rewards_PK, differentiable.
    """
    ratio_PK = logps_PK if ref_logps_PK is None else logps_PK - ref_logps_PK.detach()
    return member.reward(ratio_PK, tokens_PK.clamp(min=1) if per_token else torch.ones_like(tokens_PK), beta)


def dpo_loss(
    logps_PK: Tensor,
    ref_logps_PK: Tensor | None,
    tokens_PK: Tensor,
    ranks_PK: Tensor,
    valid_PK: Tensor,
    *,
    num_prompts: float,
    member: Member = FAMILY["sigmoid"],
    beta: float = 0.1,
    per_token: bool = False,
    wrong_P: Tensor | None = None,
    margin_P: Tensor | None = None,
    sft_coef: float = 0.0,
    weight_P: Tensor | None = None,
    whole_ranking: bool = False,
) -> tuple[Tensor, MetricSums]:
    """Direct preference optimisation and its relatives, on pairs (K = 2) and rankings.

    logps_PK, ref_logps_PK, tokens_PK, per_token: as in `implicit_rewards`; only the first gets gradients.
    ranks_PK: smaller is better, equal ties. valid_PK: False where a prompt has fewer answers.
    num_prompts: prompts of the whole optimizer step (with weights: the sum of the weights).
    wrong_P: probability that the order given is wrong (None = 0): a soft label, or the smoothing of all.
    margin_P: lead that the better answer has to reach, in units of reward: how much better it was said to be (ODPO,
    Amini et al. arXiv:2402.10571), and SimPO's gamma. weight_P: weight of each prompt (None = 1).
    sft_coef: adds it times the negative log-likelihood per token of the best answer (RPO, Pang et al.
    arXiv:2404.19733).
    whole_ranking: Plackett-Luce over all K answers (Rafailov et al., appendix A.3) in place of the mean over pairs.
    -> scalar loss; `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, `logps/chosen`,
    `logps/rejected` over ordered pairs, with a likelihood term `nll_loss`.
    Raises ValueError for beta or num_prompts not over 0, a reference that is missing or that the member has no use for,
    or what the member or Plackett-Luce cannot take in.
    """
    if beta <= 0 or num_prompts <= 0:
        raise ValueError(f"must be over 0: {beta=}, {num_prompts=}")
    _check(member, ref_logps_PK, wrong_P, margin_P, whole_ranking)
    logps_PK, tokens_PK = logps_PK.masked_fill(~valid_PK, 0), tokens_PK.masked_fill(~valid_PK, 1)
    rewards_PK = implicit_rewards(logps_PK, ref_logps_PK, tokens_PK, member=member, beta=beta, per_token=per_token)
    if whole_ranking:
        loss, metrics = plackett_luce_loss(rewards_PK, ranks_PK, valid_PK, num_prompts=num_prompts, weight_P=weight_P)
    else:
        loss, metrics = ranked_pairs_loss(
            rewards_PK,
            ranks_PK,
            valid_PK,
            num_prompts=num_prompts,
            margin_P=margin_P,
            weight_P=weight_P,
            flipped_P=None if wrong_P is None else member.flipped(wrong_P),
            link=lambda difference: member.link(difference, beta),
        )
    metrics = metrics | _logps_metrics(logps_PK, ranks_PK, valid_PK)
    if sft_coef:
        nll_P = best_answer_nll(logps_PK, tokens_PK, ranks_PK, valid_PK)
        counts_P = torch.ones_like(nll_P) if weight_P is None else weight_P
        loss = loss + sft_coef * (nll_P * counts_P).sum() / num_prompts
        metrics.add("nll_loss", (nll_P * counts_P).sum(), counts_P.sum())
    return loss, metrics


def best_answer_nll(logps_PK: Tensor, tokens_PK: Tensor, ranks_PK: Tensor, valid_PK: Tensor) -> Tensor:
    """Negative log-likelihood per token of the best answer, in nats; of several best ones the mean. -> nll_P"""
    beats_PKK, _ = pairwise_from_ranks(ranks_PK, valid_PK)
    best_PK = valid_PK & ~beats_PKK.any(1)  # beaten by none
    return torch.where(best_PK, -logps_PK / tokens_PK.clamp(min=1), 0).sum(1) / best_PK.sum(1).clamp(min=1)


def _check(
    member: Member, ref_logps_PK: Tensor | None, wrong_P: Tensor | None, margin_P: Tensor | None, whole_ranking: bool
) -> None:
    if member.needs_reference != (ref_logps_PK is not None):
        wants = "needs log-probabilities under the reference" if member.needs_reference else "has no reference"
        raise ValueError(f"this loss {wants}: ref_logps_PK must {'' if member.needs_reference else 'not '}be given")
    if wrong_P is not None and not member.smooths:
        raise ValueError("this loss has no form for labels that may be wrong")
    if whole_ranking and (not member.ranks or wrong_P is not None or margin_P is not None):
        raise ValueError("Plackett-Luce takes the logistic link, and neither margins nor wrong labels")


@torch.no_grad()
def _logps_metrics(logps_PK: Tensor, ranks_PK: Tensor, valid_PK: Tensor) -> MetricSums:
    metrics = MetricSums()
    beats_PKK, _ = pairwise_from_ranks(ranks_PK, valid_PK)
    chosen_PKK, rejected_PKK = (logps_PK[:, :, None], logps_PK[:, None, :])
    metrics.add_masked(
        beats_PKK,
        {"logps/chosen": chosen_PKK.expand(beats_PKK.shape), "logps/rejected": rejected_PKK.expand(beats_PKK.shape)},
    )
    return metrics
