"""Weights for answers that another computation drew than the one that learns. B rows, T time, V vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goodheart.losses.policy import importance_ratio, ppo_policy_loss, sequence_ratio

V = 4


def test_ratio_and_weighed_loss_by_hand() -> None:
    # p_old / p_sampler = .3/.2 = 1.5, .1/.4 = .25, .9/.3 = 3, capped to 2. The fourth place is padding.
    old_BT, sampler_BT = (torch.tensor([row]).log() for row in ([0.3, 0.1, 0.9, 0.5], [0.2, 0.4, 0.3, 0.5]))
    mask_BT = torch.tensor([[True, True, True, False]])
    ratio_BT = importance_ratio(old_BT, sampler_BT, mask_BT)
    torch.testing.assert_close(ratio_BT, torch.tensor([[1.5, 0.25, 3.0, 0.0]]))
    # p / p_old = 1, 1.5, 0.5; A = 2, 1, -1:
    #   -2 times 1.5: -3; max(-1.5, -1.2) = -1.2, clipped, times 0.25: -0.3; max(0.5, 0.8) = 0.8, clipped, times 2: 1.6
    logps_BT = (old_BT + torch.tensor([[1.0, 1.5, 0.5, 9.0]]).log()).requires_grad_()
    advantages_BT = torch.tensor([[2.0, 1.0, -1.0, 9.0]])
    weights_BT = ratio_BT.clamp(max=2.0).requires_grad_()
    loss, metrics = ppo_policy_loss(
        logps_BT, old_BT, advantages_BT, mask_BT, cliprange=0.2, num_tokens=3, importance_BT=weights_BT
    )
    torch.testing.assert_close(loss, torch.tensor((-3 - 0.3 + 1.6) / 3))
    loss.backward()
    # only the first token is not clipped: -A r w / 3 = -2 * 1 * 1.5 / 3
    torch.testing.assert_close(logps_BT.grad, torch.tensor([[-1.0, 0.0, 0.0, 0.0]]))
    assert weights_BT.grad is None  # a weight is a constant
    means = metrics.means()
    assert means["loss/policy_avg"] == pytest.approx((-3 - 0.3 + 1.6) / 3)  # what is minimised
    assert means["val/ratio"] == pytest.approx(1.0)  # (1 + 1.5 + 0.5) / 3: of the trainer alone


def test_ratio_of_an_answer_is_the_geometric_mean_by_hand() -> None:
    # Row 0: ratios 4 and 1, so sqrt(4 * 1) = 2 on both. Row 1: 0.5 alone.
    old_BT = torch.tensor([[4.0, 1.0], [0.5, 7.0]]).log()
    mask_BT = torch.tensor([[True, True], [True, False]])
    ratio_BT = importance_ratio(old_BT, torch.zeros(2, 2), mask_BT, log_ratio=sequence_ratio)
    torch.testing.assert_close(ratio_BT, torch.tensor([[2.0, 2.0], [0.5, 0.0]]))


def test_what_lies_outside_the_mask_is_not_read_and_no_ratio_is_too_wild() -> None:
    # exp(200) is over what float32 holds: the weight is the cap, and the loss a number.
    old_BT = torch.tensor([[-1.0, torch.nan, torch.inf]])
    sampler_BT = torch.tensor([[-201.0, torch.nan, 0.0]])
    mask_BT = torch.tensor([[True, False, False]])
    ratio_BT = importance_ratio(old_BT, sampler_BT, mask_BT)
    assert ratio_BT.tolist() == [[torch.inf, 0.0, 0.0]]
    weights_BT = torch.tensor([[float(ratio_BT.clamp(max=2.0)[0, 0]), torch.nan, torch.nan]])
    loss, _ = ppo_policy_loss(
        old_BT, old_BT, torch.ones(1, 3), mask_BT, cliprange=0.2, num_tokens=1, importance_BT=weights_BT
    )
    assert float(loss) == -2.0


# ---- expectations by enumeration: the trainer says p = softmax(theta), the sampler draws from something else ----


def unlike(theta: Tensor) -> Tensor:
    """Log-probabilities of a sampler that is not the trainer."""
    return (theta.detach() + torch.randn(theta.shape, dtype=torch.float64)).log_softmax(-1)


def expected_gradient(theta_V: Tensor, sampler_V: Tensor, advantages_V: Tensor, cap: float | None) -> Tensor:
    """Of the loss of one sampled token, over all tokens with the sampler's probability of each."""
    logps_V1 = theta_V.log_softmax(-1)[:, None]
    sampler_V1, mask_V1 = sampler_V[:, None], torch.ones(V, 1, dtype=torch.bool)
    weights_V1 = None
    if cap is not None:
        weights_V1 = importance_ratio(logps_V1, sampler_V1, mask_V1).clamp(max=cap)
    chance_V1 = sampler_V1.exp()  # a positive factor of A is one of the loss
    loss, _ = ppo_policy_loss(
        logps_V1, logps_V1.detach(), chance_V1 * advantages_V[:, None], mask_V1, cliprange=0.2, num_tokens=1,
        importance_BT=weights_V1,
    )  # fmt: skip
    return torch.autograd.grad(loss, theta_V)[0]


def test_weighed_expectation_is_that_of_the_trainers_own_tokens() -> None:
    theta_V = torch.randn(V, dtype=torch.float64, requires_grad=True)
    advantages_V, sampler_V = torch.randn(V, dtype=torch.float64), unlike(theta_V)
    (true_V,) = torch.autograd.grad(-(theta_V.softmax(-1) * advantages_V).sum(), theta_V)
    torch.testing.assert_close(expected_gradient(theta_V, sampler_V, advantages_V, 1e9), true_V, atol=1e-12, rtol=0)
    assert (expected_gradient(theta_V, sampler_V, advantages_V, None) - true_V).abs().max() > 0.05
    # A baseline changes nothing once the tokens are weighed; without weights it does: the mean score is not 0.
    apart_V = [
        expected_gradient(theta_V, sampler_V, advantages_V + 3, cap)
        - expected_gradient(theta_V, sampler_V, advantages_V, cap)
        for cap in (1e9, None)
    ]
    assert apart_V[0].abs().max() < 1e-12
    assert apart_V[1].abs().max() > 0.05


def test_a_cap_has_the_expectation_of_what_it_leaves() -> None:
    # Tokens count by min(p, cap * p_sampler): a bias, where the sampler says a token less than p / cap.
    theta_V = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log().requires_grad_()
    sampler_V = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64).log()
    advantages_V = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    # The first alone learns: min(0.4, 2 * 0.1) = 0.2, and the gradient of -log p is p - onehot
    expected_V = 0.2 * torch.tensor([-0.6, 0.3, 0.2, 0.1], dtype=torch.float64)
    torch.testing.assert_close(expected_gradient(theta_V, sampler_V, advantages_V, 2.0), expected_V)
    torch.testing.assert_close(expected_gradient(theta_V, sampler_V, advantages_V, 4.0), 2 * expected_V)


def test_of_two_tokens_the_second_is_corrected_after_what_the_sampler_said_first() -> None:
    # All V * V answers xy. Each token is weighed by itself, so that the expectation is
    #   grad E_{x ~ p}[A(x)] + sum over x of p_sampler(x) grad E_{y ~ p(.|x)}[A(x, y)],
    # the surrogate of PPO at what the sampler said before: exact in each token, not in the states they are said in.
    first_V, second_VV = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((V,), (V, V)))
    gain_V, gain_VV = torch.randn(V, dtype=torch.float64), torch.randn(V, V, dtype=torch.float64)
    sampler_V, sampler_VV = unlike(first_V), unlike(second_VV)
    x_B, y_B = torch.cartesian_prod(torch.arange(V), torch.arange(V)).T
    logps_BT, sampler_BT, gain_BT = (
        torch.stack((of_first[x_B], of_second[x_B, y_B]), 1)
        for of_first, of_second in (
            (first_V.log_softmax(-1), second_VV.log_softmax(-1)), (sampler_V, sampler_VV), (gain_V, gain_VV),
        )
    )  # fmt: skip
    mask_BT = torch.ones_like(logps_BT, dtype=torch.bool)
    chance_B1 = sampler_BT.sum(1, keepdim=True).exp()
    arguments = (logps_BT, logps_BT.detach(), chance_B1 * gain_BT, mask_BT)
    weights_BT = importance_ratio(logps_BT, sampler_BT, mask_BT)
    loss, _ = ppo_policy_loss(*arguments, cliprange=0.2, num_tokens=1, importance_BT=weights_BT)
    own = (first_V.softmax(-1) * gain_V).sum()
    own_V = (second_VV.softmax(-1) * gain_VV).sum(1)
    wanted = torch.autograd.grad(-own - (sampler_V.exp() * own_V).sum(), (first_V, second_VV))
    torch.testing.assert_close(torch.autograd.grad(loss, (first_V, second_VV), retain_graph=True), wanted)
    unweighed, _ = ppo_policy_loss(*arguments, cliprange=0.2, num_tokens=1)
    assert (torch.autograd.grad(unweighed, first_V)[0] - wanted[0]).abs().max() > 0.05
