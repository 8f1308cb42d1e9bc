"""P pairs or prompts, K answers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from goodheart.losses.preference import (
    bradley_terry_loss,
    centring_loss,
    comparable,
    pairwise_from_ranks,
    plackett_luce_loss,
    ranked_pairs_loss,
)


def everything(ranks_PK: Tensor) -> Tensor:
    return torch.ones_like(ranks_PK, dtype=torch.bool)


def gradient(loss_of, *scores: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in scores]
    return list(torch.autograd.grad(loss_of(*leaves), leaves))


def test_bradley_terry_by_hand() -> None:
    # d = 2, -1: -ln sigmoid(2) = ln(1 + e^-2) = 0.126928, -ln sigmoid(-1) = ln(1 + e) = 1.313262; 4 pairs in the step
    # gradient at chosen: -sigmoid(-d) = -0.119203, -0.731059; at rejected the opposite
    chosen_P, rejected_P = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    loss, metrics = bradley_terry_loss(chosen_P, rejected_P, num_pairs=4)
    torch.testing.assert_close(loss, torch.tensor((0.126928 + 1.313262) / 4))
    up_P, down_P = gradient(lambda c, r: bradley_terry_loss(c, r, num_pairs=1)[0], chosen_P, rejected_P)
    torch.testing.assert_close(up_P, torch.tensor([-0.119203, -0.731059]))
    torch.testing.assert_close(down_P, -up_P)
    assert metrics.means() == {
        "rewards/accuracies": 0.5,
        "rewards/margins": 0.5,
        "rewards/chosen": 1.5,
        "rewards/rejected": 1.0,
    }


def test_margin_by_hand() -> None:
    # d - m = 2 - 3 = -1 and -1 - 0: both ln(1 + e) = 1.313262
    loss, _ = bradley_terry_loss(
        torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), margin_P=torch.tensor([3.0, 0.0]), num_pairs=2
    )
    torch.testing.assert_close(loss, torch.tensor(1.313262))


def test_label_smoothing_by_hand() -> None:
    # d = 2, 10 % flipped: 0.9 * 0.126928 + 0.1 * 2.126928 = 0.326928
    loss, _ = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.0]), label_smoothing=0.1, num_pairs=1)
    torch.testing.assert_close(loss, torch.tensor(0.326928))
    # Its minimum is where sigmoid(d) = 0.9, and not at infinity.
    best = torch.tensor([math.log(9.0)])
    (grad_P, _) = gradient(
        lambda c, r: bradley_terry_loss(c, r, label_smoothing=0.1, num_pairs=1)[0], best, torch.zeros(1)
    )
    torch.testing.assert_close(grad_P, torch.zeros(1), atol=1e-7, rtol=0)


def test_smoothing_with_margin_expects_the_margin_either_way_round() -> None:
    # d = 2, m = 1: 0.9 * -ln sigmoid(1) + 0.1 * -ln sigmoid(-3) = 0.9 * 0.313262 + 0.1 * 3.048587 = 0.586794
    loss, _ = bradley_terry_loss(
        torch.tensor([2.0]), torch.tensor([0.0]), margin_P=torch.tensor([1.0]), label_smoothing=0.1, num_pairs=1
    )
    torch.testing.assert_close(loss, torch.tensor(0.586794), atol=1e-6, rtol=0)


@pytest.mark.parametrize("difference", [0.0, 0.8, -2.5])
def test_win_tie_and_loss_probabilities_sum_to_one(difference: float) -> None:
    chosen_P, rejected_P = torch.tensor([difference], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    no, yes = torch.tensor([False]), torch.tensor([True])
    losses = [
        bradley_terry_loss(chosen_P, rejected_P, tie_P=no, tie_margin=0.7, num_pairs=1)[0],
        bradley_terry_loss(chosen_P, rejected_P, tie_P=yes, tie_margin=0.7, num_pairs=1)[0],
        bradley_terry_loss(rejected_P, chosen_P, tie_P=no, tie_margin=0.7, num_pairs=1)[0],
    ]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0, abs=1e-12)


def test_tie_by_hand() -> None:
    # tie margin m = ln 3 / 2, so e^(2 m) - 1 = 2; d = 0: sigmoid(-0.549306) = 0.366025, squared 0.133975
    # P(tie) = 2 * 0.133975 = 0.267949; -ln 0.267949 = 1.316958
    loss, metrics = bradley_terry_loss(
        torch.zeros(1), torch.zeros(1), tie_P=torch.tensor([True]), tie_margin=math.log(3) / 2, num_pairs=1
    )
    torch.testing.assert_close(loss, torch.tensor(1.316958))
    assert "rewards/accuracies" not in metrics.means()  # a tie is neither right nor wrong


def test_default_tie_margin_calls_a_quarter_of_equal_pairs_ties() -> None:
    # 1 - 2 sigmoid(-0.5) = 1 - 2 * 0.377541 = 0.244919
    loss, _ = bradley_terry_loss(torch.zeros(1), torch.zeros(1), tie_P=torch.tensor([True]), num_pairs=1)
    assert math.exp(-loss) == pytest.approx(0.244919, abs=1e-6)


def test_ties_pull_scores_together_and_rest_when_equal() -> None:
    chosen_P, rejected_P = torch.tensor([1.0, 0.0, -2.0]), torch.zeros(3)
    tie_P = torch.ones(3, dtype=torch.bool)
    up_P, down_P = gradient(lambda c, r: bradley_terry_loss(c, r, tie_P=tie_P, num_pairs=1)[0], chosen_P, rejected_P)
    assert up_P[0] > 0.1
    assert up_P[2] < -0.1
    torch.testing.assert_close(up_P[1], torch.tensor(0.0))
    torch.testing.assert_close(down_P, -up_P)


def test_centring_by_hand() -> None:
    # 0.01 * (3 + 1)^2 = 0.16 on top of 0.126928; gradient 0.01 * 2 * 4 = 0.08 on both scores
    chosen_P, rejected_P = torch.tensor([3.0]), torch.tensor([1.0])
    loss, _ = bradley_terry_loss(chosen_P, rejected_P, center_coefficient=0.01, num_pairs=1)
    torch.testing.assert_close(loss, torch.tensor(0.286928))
    up_P, down_P = gradient(
        lambda c, r: bradley_terry_loss(c, r, center_coefficient=0.01, num_pairs=1)[0], chosen_P, rejected_P
    )
    torch.testing.assert_close(up_P, torch.tensor([0.08 - 0.119203]))
    torch.testing.assert_close(down_P, torch.tensor([0.08 + 0.119203]))


def test_pair_weights_act_like_repetition() -> None:
    chosen_P, rejected_P = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    weighted, _ = bradley_terry_loss(
        chosen_P, rejected_P, weight_P=torch.tensor([3.0, 0.0]), center_coefficient=0.1, num_pairs=3
    )
    repeated, _ = bradley_terry_loss(
        chosen_P[:1].expand(3), rejected_P[:1].expand(3), center_coefficient=0.1, num_pairs=3
    )
    torch.testing.assert_close(weighted, repeated)


def test_equal_scores_are_half_right() -> None:
    _, metrics = bradley_terry_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), num_pairs=2)
    assert metrics.means()["rewards/accuracies"] == 0.75


@pytest.mark.parametrize(
    "wrong", [{"num_pairs": 0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"tie_margin": 0.0}]
)
def test_impossible_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        bradley_terry_loss(torch.ones(1), torch.zeros(1), **({"num_pairs": 1} | wrong))


@pytest.mark.parametrize("scores", [[2.0, 1.0], [-0.3, 0.9], [0.0, 0.0]])
def test_two_answers_are_bradley_terry(scores: list[float]) -> None:
    scores_PK = torch.tensor([scores, scores], dtype=torch.float64)
    ranks_PK = torch.tensor([[1, 2], [7, -3]])  # first better; second better

    def pairs(scores_PK: Tensor) -> Tensor:
        chosen_P = torch.stack([scores_PK[0, 0], scores_PK[1, 1]])
        rejected_P = torch.stack([scores_PK[0, 1], scores_PK[1, 0]])
        return bradley_terry_loss(chosen_P, rejected_P, num_pairs=2)[0]

    expected = pairs(scores_PK)
    for loss_of in (plackett_luce_loss, ranked_pairs_loss):
        loss, metrics = loss_of(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=2)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            gradient(lambda s, f=loss_of: f(s, ranks_PK, everything(ranks_PK), num_prompts=2)[0], scores_PK),
            gradient(pairs, scores_PK),
        )
        assert metrics.means()["rewards/accuracies"] == 0.5


def test_margin_smoothing_and_weights_of_two_answers_are_those_of_bradley_terry() -> None:
    scores_PK = torch.tensor([[1.5, 0.2], [0.3, -1.0], [2.0, 2.5]])
    ranks_PK = torch.tensor([[1, 2], [1, 2], [1, 2]])
    settings = {
        "margin_P": torch.tensor([0.5, 0.0, 2.0]),
        "label_smoothing": 0.1,
        "weight_P": torch.tensor([1.0, 3.0, 0.5]),
    }
    expected, _ = bradley_terry_loss(scores_PK[:, 0], scores_PK[:, 1], num_pairs=4.5, **settings)
    got, _ = ranked_pairs_loss(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=4.5, **settings)
    torch.testing.assert_close(got, expected)
    # And with more answers they reach every pair alike: three pairs of d = 1, 1, 2 with margin 1 are 0, 0, 1:
    # 0.9 * (0.693147, 0.693147, 0.313262) + 0.1 * (-ln sigmoid of -2, -2, -3: 2.126928, 2.126928, 3.048587), mean
    loss, _ = ranked_pairs_loss(
        torch.tensor([[2.0, 1.0, 0.0]]),
        torch.tensor([[1, 2, 3]]),
        torch.ones(1, 3, dtype=torch.bool),
        num_prompts=1,
        margin_P=torch.tensor([1.0]),
        label_smoothing=0.1,
    )
    torch.testing.assert_close(loss, torch.tensor((0.9 * 1.699556 + 0.1 * 7.302443) / 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss_of", [plackett_luce_loss, ranked_pairs_loss])
def test_prompt_weights_act_like_repetition(loss_of) -> None:
    scores_PK = torch.tensor([[0.3, -1.0, 0.7], [2.0, 0.1, 0.2]])
    ranks_PK = torch.tensor([[2, 1, 2], [1, 2, 3]])
    weighted, _ = loss_of(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=3, weight_P=torch.tensor([3.0, 0.0]))
    thrice_PK = ranks_PK[:1].expand(3, 3)
    repeated, _ = loss_of(scores_PK[:1].expand(3, 3), thrice_PK, everything(thrice_PK), num_prompts=3)
    torch.testing.assert_close(weighted, repeated)


def test_plackett_luce_by_hand() -> None:
    # scores 0, 1, 2 ranked 2, 3, 1: draw the third of all three, then the first of the first two
    # ln(1 + e + e^2) - 2 = 2.407606 - 2 = 0.407606;  ln(1 + e) - 0 = 1.313262; sum 1.720868
    ranks_PK = torch.tensor([[2, 3, 1]])
    loss, metrics = plackett_luce_loss(torch.tensor([[0.0, 1.0, 2.0]]), ranks_PK, everything(ranks_PK), num_prompts=1)
    torch.testing.assert_close(loss, torch.tensor(1.720868))
    assert metrics.means()["rewards/accuracies"] == pytest.approx(2 / 3)  # (2,0), (2,1) right, (0,1) wrong


def test_plackett_luce_probabilities_of_all_rankings_sum_to_one() -> None:
    scores_PK = torch.tensor([[0.4, -1.2, 2.0, 0.1]], dtype=torch.float64)
    total = 0.0
    for ranking in itertools.permutations(range(4)):
        ranks_PK = torch.tensor([ranking])
        loss, _ = plackett_luce_loss(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=1)
        total += math.exp(-loss)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_plackett_luce_ties_by_hand() -> None:
    # Tier {0, 1} over {2}, scores 0, 1, 2: both draws from all three, then the last alone:
    # (2.407606 - 0) + (2.407606 - 1) + 0 = 3.815212
    scores_PK, ranks_PK = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1, 1, 2]])
    loss, _ = plackett_luce_loss(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=1)
    torch.testing.assert_close(loss, torch.tensor(3.815212))
    # One answer picked, nothing known about the others: softmax of the best, 2.407606 - 1
    best_PK = torch.tensor([[2, 1, 2]])
    picked, _ = plackett_luce_loss(scores_PK, best_PK, everything(best_PK), num_prompts=1, last_tier_unordered=True)
    torch.testing.assert_close(picked, torch.tensor(1.407606))


@pytest.mark.parametrize("size", [2, 5])
def test_equal_scores_in_one_tier_feel_no_pull(size: int) -> None:
    ranks_PK = torch.ones(1, size)
    (equal_PK,) = gradient(
        lambda s: plackett_luce_loss(s, ranks_PK, everything(ranks_PK), num_prompts=1)[0], torch.full((1, size), 0.3)
    )
    torch.testing.assert_close(equal_PK, torch.zeros(1, size), atol=1e-6, rtol=0)
    apart_PK = torch.zeros(1, size)
    apart_PK[0, 0] = 1.0
    (pull_PK,) = gradient(lambda s: plackett_luce_loss(s, ranks_PK, everything(ranks_PK), num_prompts=1)[0], apart_PK)
    assert pull_PK[0, 0] > 0.1


def test_ranked_pairs_by_hand() -> None:
    # scores 0, 1, 2 ranked 1, 2, 3: pairs (0,1), (1,2) with d = -1: 1.313262 each; (0,2) with d = -2: 2.126928
    # mean of three 1.584484; a second prompt with one pair, d = 2: 0.126928. Each weighs 1 of 2.
    scores_PK = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, torch.nan]])
    ranks_PK = torch.tensor([[1, 2, 3], [1, 2, 1]])
    valid_PK = torch.tensor([[True, True, True], [True, True, False]])
    loss, metrics = ranked_pairs_loss(scores_PK, ranks_PK, valid_PK, num_prompts=2)
    torch.testing.assert_close(loss, torch.tensor((1.584484 + 0.126928) / 2))
    # better answers score 0, 0, 1 and 3, worse ones 1, 2, 2 and 1
    assert metrics.means() == {
        "rewards/accuracies": 0.25,
        "rewards/margins": -0.5,
        "rewards/chosen": 1.0,
        "rewards/rejected": 1.5,
    }


def test_ranked_pairs_with_ties_by_hand() -> None:
    # scores 1, 0, 0; ranks 1, 2, 2. Ties dropped: both pairs d = 1: 0.313262.
    # Ties in, margin ln 3 / 2: two wins with d - m = 0.450694, -ln sigmoid = 0.492979; the tie at d = 0 is 1.316958
    scores_PK, ranks_PK = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1, 2, 2]])
    dropped, _ = ranked_pairs_loss(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=1)
    torch.testing.assert_close(dropped, torch.tensor(0.313262))
    taken, _ = ranked_pairs_loss(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=1, tie_margin=math.log(3) / 2)
    torch.testing.assert_close(taken, torch.tensor((2 * 0.492979 + 1.316958) / 3), atol=1e-6, rtol=0)
    for wrong in ({"tie_margin": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ranked_pairs_loss(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=1, **wrong)


@pytest.mark.parametrize("loss_of", [plackett_luce_loss, ranked_pairs_loss])
def test_padded_answers_change_nothing(loss_of) -> None:
    scores_PK, ranks_PK = torch.tensor([[0.3, -1.0, 0.7]]), torch.tensor([[2, 1, 2]])
    wide_PK = torch.tensor([[torch.nan, 0.3, -1.0, torch.inf, 0.7]], requires_grad=True)
    valid_PK = torch.tensor([[False, True, True, False, True]])
    expected, metrics = loss_of(scores_PK, ranks_PK, everything(ranks_PK), num_prompts=1)
    got, padded_metrics = loss_of(wide_PK, torch.tensor([[0, 2, 1, 9, 2]]), valid_PK, num_prompts=1)
    torch.testing.assert_close(got, expected)
    assert metrics.means() == padded_metrics.means()
    got.backward()
    (expected_PK,) = gradient(lambda s: loss_of(s, ranks_PK, everything(ranks_PK), num_prompts=1)[0], scores_PK)
    torch.testing.assert_close(wide_PK.grad[valid_PK], expected_PK[0])
    assert not wide_PK.grad[~valid_PK].any()


@pytest.mark.parametrize("loss_of", [plackett_luce_loss, ranked_pairs_loss])
def test_prompts_that_compare_nothing_add_nothing(loss_of) -> None:
    # One answer, no answer: loss and gradient 0, and `comparable` keeps them out of the denominator.
    ranks_PK = torch.tensor([[1, 2], [1, 1], [1, 2], [1, 2]])
    valid_PK = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    scores_PK = torch.tensor([[1.0, 0.0], [0.5, 0.5], [3.0, 4.0], [5.0, 6.0]])
    assert comparable(ranks_PK, valid_PK).tolist() == [True, True, False, False]
    assert comparable(ranks_PK, valid_PK, ties_count=False).tolist() == [True, False, False, False]
    (grad_PK,) = gradient(lambda s: loss_of(s, ranks_PK, valid_PK, num_prompts=1)[0], scores_PK)
    assert grad_PK[0].any()
    assert not grad_PK[1:].any()
    loss, _ = loss_of(scores_PK[2:], ranks_PK[2:], valid_PK[2:], num_prompts=1)
    assert loss == 0


@pytest.mark.parametrize("size", [2, 4, 9])
def test_a_full_ranking_holds_every_pair_once(size: int) -> None:
    ranks_PK = torch.stack([torch.randperm(size), torch.zeros(size, dtype=torch.long)])
    beats_PKK, ties_PKK = pairwise_from_ranks(ranks_PK, everything(ranks_PK))
    pairs = size * (size - 1) // 2
    assert beats_PKK.sum((1, 2)).tolist() == [pairs, 0]
    assert ties_PKK.sum((1, 2)).tolist() == [0, pairs]
    best = int(ranks_PK[0].argmin())
    assert beats_PKK[0, best].sum() == size - 1


def test_centring_of_rankings_is_that_of_pairs() -> None:
    scores_PK = torch.tensor([[3.0, 1.0, torch.nan], [1.0, 2.0, 6.0]])
    valid_PK = torch.tensor([[True, True, False], [True, True, True]])
    # (3 + 1)^2 = 16 and (2 * 3)^2 = 36, over 2 prompts
    torch.testing.assert_close(centring_loss(scores_PK, valid_PK, num_prompts=2), torch.tensor(26.0))
    weighted = centring_loss(scores_PK, valid_PK, num_prompts=2, weight_P=torch.tensor([1.5, 0.5]))
    torch.testing.assert_close(weighted, torch.tensor((1.5 * 16 + 0.5 * 36) / 2))
    single = centring_loss(torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]]), num_prompts=1)
    torch.testing.assert_close(single, torch.tensor(36.0))
