"""P prompts, K answers. Numbers by hand are worked out in the comments; ln 2 = 0.693147."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from goodheart.losses.direct import FAMILY, best_answer_nll, dpo_loss, implicit_rewards
from goodheart.losses.metrics import MetricSums
from goodheart.losses.preference import comparable
from tests.losses.test_micro_batches import splits

REFERENCE = {name: member.needs_reference for name, member in FAMILY.items()}


def pair_loss(
    name: str,
    logps: tuple[float, float],
    refs: tuple[float, float] = (0.0, 0.0),
    tokens: tuple[int, int] = (1, 1),
    **given: Any,
) -> tuple[float, dict[str, float]]:
    """Loss of one pair, chosen first, with the member's own settings unless others are given."""
    member = FAMILY[name]
    settings: dict[str, Any] = {"per_token": member.per_token, "num_prompts": 1, "beta": member.beta} | given
    loss, metrics = dpo_loss(
        torch.tensor([logps], dtype=torch.float64),
        torch.tensor([refs], dtype=torch.float64) if member.needs_reference else None,
        torch.tensor([tokens]),
        torch.tensor([[0, 1]]),
        torch.ones(1, 2, dtype=torch.bool),
        member=member,
        **settings,
    )
    return loss.item(), metrics.means()


# Each formula ----------------------------------------------------------------------------------------------------


def test_dpo_by_hand() -> None:
    # log-ratios: chosen -5 + 6 = 1, rejected -8 + 5 = -3; z = 0.5 (1 + 3) = 2; -ln sigmoid(2) = ln(1 + e^-2) = 0.126928
    loss, metrics = pair_loss("sigmoid", (-5.0, -8.0), (-6.0, -5.0), beta=0.5)
    assert loss == pytest.approx(0.126928, abs=1e-6)
    assert metrics == {
        "rewards/accuracies": 1.0,
        "rewards/margins": 2.0,
        "rewards/chosen": 0.5,
        "rewards/rejected": -1.5,
        "logps/chosen": -5.0,
        "logps/rejected": -8.0,
    }


# log-ratios 1 and -3 over 4 and 2 tokens: 4 per answer, 0.25 + 1.5 = 1.75 per token
ONE, FOUR_AND_TWO = ((-5.0, -8.0), (-6.0, -5.0)), (4, 2)


def test_ipo_averages_over_tokens_by_hand() -> None:
    # beta 0.4: wants 1 / 0.8 = 1.25; (1.75 - 1.25)^2 = 0.25; summed over tokens instead (4 - 1.25)^2 = 7.5625
    assert pair_loss("ipo", *ONE, FOUR_AND_TWO, beta=0.4)[0] == pytest.approx(0.25)
    assert pair_loss("ipo", *ONE, FOUR_AND_TWO, beta=0.4, per_token=False)[0] == pytest.approx(7.5625)


def test_hinge_by_hand() -> None:
    # beta 0.2: 1 - 0.2 * 4 = 0.2; beta 0.5: the rewards differ by 2, there is nothing left to learn
    assert pair_loss("hinge", *ONE, beta=0.2)[0] == pytest.approx(0.2)
    assert pair_loss("hinge", *ONE, beta=0.5)[0] == 0


def test_length_normalised_dpo_by_hand() -> None:
    # -ln sigmoid(2 * 1.75) = ln(1 + e^-3.5) = 0.029750
    assert pair_loss("sigmoid", *ONE, FOUR_AND_TWO, beta=2.0, per_token=True)[0] == pytest.approx(0.029750, abs=1e-6)


def test_simpo_by_hand() -> None:
    # -8 / 4 = -2 and -9 / 3 = -3 per token: 2 (-2 + 3) - 0.5 = 1.5; -ln sigmoid(1.5) = ln(1 + e^-1.5) = 0.201413
    found, _ = pair_loss("simpo", (-8.0, -9.0), tokens=(4, 3), beta=2.0, margin_P=torch.tensor([0.5]))
    assert found == pytest.approx(0.201413, abs=1e-6)


def test_cpo_by_hand() -> None:
    # 0.1 (-8 + 9) = 0.1; -ln sigmoid(0.1) = 0.644397; the likelihood term 8 / 4 = 2 nats per token
    found, metrics = pair_loss("cpo", (-8.0, -9.0), tokens=(4, 3), sft_coef=1.0)
    assert found == pytest.approx(2.644397, abs=1e-6)
    assert metrics["nll_loss"] == 2.0


def test_orpo_by_hand() -> None:
    # probabilities per token 1/2 and 1/4: odds 1 and 1/3, their ratio 3; -ln sigmoid(ln 3) = ln(4/3) = 0.287682
    # times lambda = 0.1, plus the likelihood term ln 2: 0.028768 + 0.693147
    logps = (-3 * math.log(2), -2 * math.log(4))
    found, metrics = pair_loss("orpo", logps, tokens=(3, 2), sft_coef=1.0)
    assert found == pytest.approx(0.721915, abs=1e-6)
    assert metrics["rewards/margins"] == pytest.approx(0.1 * math.log(3))
    assert metrics["rewards/chosen"] == pytest.approx(0.0)  # even odds


def test_label_smoothing_by_hand() -> None:
    # z = 2, a tenth of the labels wrong: 0.9 * 0.126928 + 0.1 * 2.126928 = 0.326928
    found, _ = pair_loss("sigmoid", *ONE, beta=0.5, wrong_P=torch.tensor([0.1], dtype=torch.float64))
    assert found == pytest.approx(0.326928, abs=1e-6)
    # robust: (0.9 * 0.126928 - 0.1 * 2.126928) / 0.8 = -0.123072
    found, _ = pair_loss("robust", *ONE, beta=0.5, wrong_P=torch.tensor([0.1], dtype=torch.float64))
    assert found == pytest.approx(-0.123072, abs=1e-6)


def test_robust_loss_of_flipped_labels_is_the_clean_loss_on_average() -> None:
    # e of the labels come flipped: (1 - e) robust(z) + e robust(-z) = -ln sigmoid(z)
    wrong_P = torch.tensor([0.3], dtype=torch.float64)
    right, _ = pair_loss("robust", (-1.0, -2.5), beta=1.0, wrong_P=wrong_P)
    flipped, _ = pair_loss("robust", (-2.5, -1.0), beta=1.0, wrong_P=wrong_P)
    assert 0.7 * right + 0.3 * flipped == pytest.approx(pair_loss("sigmoid", (-1.0, -2.5), beta=1.0)[0])


def test_an_offset_by_hand() -> None:
    # z = 2, said to be better by 3: -ln sigmoid(2 - 3) = ln(1 + e) = 1.313262
    assert pair_loss("sigmoid", *ONE, beta=0.5, margin_P=torch.tensor([3.0]))[0] == pytest.approx(1.313262, abs=1e-6)


def test_likelihood_term_by_hand() -> None:
    # 0.126928 + 0.5 * 5 / 4 nats per token of the chosen answer
    found, _ = pair_loss("sigmoid", *ONE, FOUR_AND_TWO, beta=0.5, sft_coef=0.5)
    assert found == pytest.approx(0.126928 + 0.625, abs=1e-6)


def test_likelihood_is_that_of_all_best_answers() -> None:
    # best of the first prompt: 2 / 2 and 9 / 3, mean 2 nats per token; of the second (two answers) 4 / 1
    logps_PK = torch.tensor([[-2.0, -7.0, -9.0], [-5.0, -4.0, 0.0]])
    tokens_PK = torch.tensor([[2, 1, 3], [1, 1, 0]])
    ranks_PK = torch.tensor([[0, 1, 0], [1, 0, 0]])
    valid_PK = torch.tensor([[True, True, True], [True, True, False]])
    torch.testing.assert_close(best_answer_nll(logps_PK, tokens_PK, ranks_PK, valid_PK), torch.tensor([2.0, 4.0]))


@pytest.mark.parametrize("name", [name for name, needs in REFERENCE.items() if needs])
def test_a_policy_at_its_reference(name: str) -> None:
    # all rewards 0: ln 2 for the logistic losses (debiased or not), 1 for the hinge, 1 / (2 beta)^2 = 25 for IPO
    wrong_P = torch.tensor([0.1]) if name == "robust" else None
    found, metrics = pair_loss(name, (-5.0, -8.0), (-5.0, -8.0), FOUR_AND_TWO, wrong_P=wrong_P)
    assert found == pytest.approx({"hinge": 1.0, "ipo": 25.0}.get(name, math.log(2)))
    assert (metrics["rewards/margins"], metrics["rewards/accuracies"]) == (0.0, 0.5)


def test_ipo_is_lowest_at_its_target() -> None:
    # 1 / (2 beta) = 2.5: on either side the loss is higher, on DPO's it falls for ever
    ipo = [pair_loss("ipo", (h, 0.0), beta=0.2)[0] for h in (2.0, 2.5, 3.0)]
    assert ipo[1] == pytest.approx(0)
    assert min(ipo[0], ipo[2]) > 0.2


# Rankings, weights, splits ---------------------------------------------------------------------------------------


def ranking(name: str, prompts: int = 6, **given: Any) -> dict[str, Any]:
    """Random rankings of two to four answers, ties among them."""
    generator = torch.Generator().manual_seed(1)
    shape = (prompts, 4)
    valid_PK = torch.arange(4) < torch.tensor([4, 3, 2, 4, 2, 3])[:prompts, None]
    ref = torch.randn(shape, generator=generator, dtype=torch.float64) - 9
    return {
        "ref_logps_PK": ref if REFERENCE[name] else None,
        "tokens_PK": torch.randint(1, 6, shape, generator=generator),
        "ranks_PK": torch.tensor([[0, 1, 2, 3], [1, 0, 1, 9], [0, 1, 9, 9], [0, 0, 1, 1], [1, 0, 9, 9], [2, 1, 0, 9]])[
            :prompts
        ],
        "valid_PK": valid_PK,
        "margin_P": torch.rand(prompts, generator=generator, dtype=torch.float64),
        "weight_P": torch.rand(prompts, generator=generator, dtype=torch.float64) + 0.5,
        **given,
    }


def options(name: str) -> dict[str, Any]:
    member = FAMILY[name]
    return {"member": member, "beta": member.beta, "per_token": member.per_token, "sft_coef": 0.3}


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_and_metrics_are_the_same_for_every_split(name: str) -> None:
    rows = ranking(name)
    if FAMILY[name].smooths:
        rows["wrong_P"] = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.1, 0.4], dtype=torch.float64)
    leaf_PK = (torch.randn(6, 4, dtype=torch.float64) - 9).requires_grad_()
    total = float(rows["weight_P"].sum())

    def loss_of(part: slice) -> tuple[Tensor, MetricSums]:
        own = {key: None if value is None else value[part] for key, value in rows.items()}
        return dpo_loss(leaf_PK[part], num_prompts=total, **own, **options(name))

    loss, sums = loss_of(slice(0, 6))
    (whole_PK,) = torch.autograd.grad(loss, leaf_PK)
    assert whole_PK.abs().max() > 1e-3
    for pieces in splits():
        metrics = MetricSums()
        for part in pieces:
            part_loss, part_sums = loss_of(part)
            part_loss.backward()
            metrics |= part_sums
        torch.testing.assert_close(leaf_PK.grad, whole_PK, atol=1e-12, rtol=0)
        assert metrics.means() == pytest.approx(sums.means(), rel=1e-12)
        leaf_PK.grad = None


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_are_the_slopes(name: str) -> None:
    rows = ranking(name)
    leaf_PK = (torch.randn(6, 4, dtype=torch.float64) - 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dpo_loss(x, num_prompts=6, **rows, **options(name))[0], leaf_PK)


def test_a_ranking_is_the_mean_of_its_pairs() -> None:
    rows = ranking("sigmoid", prompts=1, margin_P=None, weight_P=None)
    logps_PK = torch.randn(1, 4, dtype=torch.float64)
    loss, _ = dpo_loss(logps_PK, num_prompts=1, beta=0.3, **rows)
    rewards = (0.3 * (logps_PK - rows["ref_logps_PK"]))[0]
    pairs = [-logsigmoid(rewards[a] - rewards[b]) for a, b in itertools.combinations(range(4), 2)]
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_plackett_luce_is_the_probability_of_the_ranking() -> None:
    # 0 before 1 before 2: softmax over all three, then over the last two; all six orders sum to 1
    logps_PK = torch.tensor([[-1.0, -2.5, -0.5]], dtype=torch.float64)
    ref_PK, everything = torch.tensor([[-2.0, -2.0, -1.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    total = 0.0
    for order in itertools.permutations(range(3)):
        ranks_PK = torch.tensor([[order.index(k) for k in range(3)]])
        loss, _ = dpo_loss(
            logps_PK, ref_PK, everything.long(), ranks_PK, everything, num_prompts=1, beta=2.0, whole_ranking=True
        )
        worth = [math.exp(2.0 * x) for x in (logps_PK - ref_PK)[0].tolist()]
        first, second, third = (worth[k] for k in order)
        expected = first / (first + second + third) * second / (second + third)
        assert loss.item() == pytest.approx(-math.log(expected))
        total += math.exp(-loss.item())
    assert total == pytest.approx(1.0)


def test_ties_teach_nothing_in_pairs() -> None:
    rows = ranking("sigmoid")
    tied = {**rows, "ranks_PK": torch.zeros(6, 4, dtype=torch.long)}
    assert dpo_loss(torch.randn(6, 4), num_prompts=6, beta=0.1, **tied)[0] == 0
    assert int(comparable(rows["ranks_PK"], rows["valid_PK"]).sum()) == 6


def test_what_padding_holds_does_not_matter() -> None:
    for name in FAMILY:
        rows = ranking(name)
        logps_PK = torch.randn(6, 4, dtype=torch.float64) - 9
        leaf_PK = logps_PK.masked_fill(~rows["valid_PK"], math.nan).requires_grad_()
        loss, metrics = dpo_loss(leaf_PK, num_prompts=6, **rows, **options(name))
        expected, _ = dpo_loss(logps_PK, num_prompts=6, **rows, **options(name))
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert leaf_PK.grad is not None
        assert leaf_PK.grad.isfinite().all()
        assert all(map(math.isfinite, metrics.means().values()))


def test_an_answer_that_is_certain_has_finite_odds() -> None:
    logps_PK = torch.tensor([[0.0, -1.0]], requires_grad=True)
    rewards_PK = implicit_rewards(logps_PK, None, torch.ones(1, 2), member=FAMILY["orpo"], beta=1.0, per_token=True)
    rewards_PK.sum().backward()
    assert rewards_PK.isfinite().all()
    assert logps_PK.grad is not None
    assert logps_PK.grad.isfinite().all()


def test_the_reference_gets_no_gradient() -> None:
    rows = ranking("sigmoid")
    rows["ref_logps_PK"].requires_grad_()
    leaf_PK = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    dpo_loss(leaf_PK, num_prompts=6, **rows)[0].backward()
    assert rows["ref_logps_PK"].grad is None


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sigmoid", {"beta": 0.0}, "must be over 0: beta=0.0"),
        ("sigmoid", {"num_prompts": 0}, "must be over 0: .*num_prompts=0"),
        ("hinge", {"wrong_P": torch.tensor([0.1])}, "no form for labels that may be wrong"),
        ("ipo", {"whole_ranking": True}, "Plackett-Luce takes the logistic link"),
        ("sigmoid", {"whole_ranking": True, "margin_P": torch.tensor([1.0])}, "Plackett-Luce takes"),
    ],
)
def test_what_cannot_be_is_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_loss(name, *ONE, **given)


@pytest.mark.parametrize(("name", "given"), [("sigmoid", False), ("simpo", True)])
def test_a_reference_is_given_where_there_is_one(name: str, given: bool) -> None:
    logps_PK = torch.tensor([[-5.0, -8.0]])
    everything = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"ref_logps_PK must {'not ' if given else ''}be given"):
        dpo_loss(
            logps_PK,
            logps_PK if given else None,
            everything.long(),
            torch.tensor([[0, 1]]),
            everything,
            num_prompts=1,
            member=FAMILY[name],
        )
