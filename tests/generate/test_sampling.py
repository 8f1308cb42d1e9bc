"""Drawing tokens: the inverse cumulative distribution, truncation, and the numbers that decide."""

from __future__ import annotations

import math

import pytest
import torch

from goodheart.errors import ConfigError
from goodheart.generate.sampling import SamplingParams, UniformRows, draw, invert, truncate, uniforms

ALMOST_ONE = 1.0 - 2.0**-53  # the largest number that `uniforms` can give


def params(**settings: object) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, **settings)  # type: ignore[arg-type]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_invert_takes_the_first_token_whose_running_sum_exceeds_u() -> None:
    # p = 1/8 1/8 1/4 1/2, running sums 1/8 1/4 1/2 1: u = 1/8 is already the second token.
    p = torch.tensor([0.125, 0.125, 0.25, 0.5]).expand(7, -1)
    tokens, logps = invert(p, column(0.0, 0.12, 0.125, 0.25, 0.49, 0.5, ALMOST_ONE))
    assert tokens.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert logps.tolist() == pytest.approx([math.log(x) for x in (1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2)])


def test_invert_divides_by_the_sum() -> None:
    # Sum 4: running shares 1/4, 1/4, 1. The middle token has no chance.
    tokens, logps = invert(torch.tensor([[1.0, 0.0, 3.0]]).expand(2, -1), column(0.2, 0.25))
    assert tokens.tolist() == [0, 2]
    assert logps.tolist() == pytest.approx([math.log(1 / 4), math.log(3 / 4)])


@pytest.mark.parametrize("vocabulary", [5, 64, 512, 1009, 4099])
def test_tokens_without_probability_are_never_drawn(vocabulary: int) -> None:
    p = torch.zeros(4, vocabulary)
    p[:, vocabulary // 2] = 1e-6
    p[:, vocabulary // 2 + 1] = 0.3
    tokens, _ = invert(p, column(0.0, 1e-9, 0.5, ALMOST_ONE))
    assert tokens.tolist() == [vocabulary // 2, vocabulary // 2, vocabulary // 2 + 1, vocabulary // 2 + 1]


@pytest.mark.parametrize("vocabulary", [3, 97, 512, 1009, 50257])
def test_invert_equals_one_running_sum_in_float64(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    p = (torch.randn(300, vocabulary, generator=generator) * 3).softmax(1)
    u = torch.rand(300, 1, generator=generator, dtype=torch.float64)
    expected = (p.double().cumsum(1) <= u * p.double().sum(1, keepdim=True)).sum(1)
    tokens, logps = invert(p, u)
    assert tokens.tolist() == expected.tolist()
    assert torch.allclose(logps, p.gather(1, expected.unsqueeze(1)).squeeze(1).log(), atol=1e-5)


def test_evenly_spread_uniforms_reproduce_the_probabilities() -> None:
    p = torch.tensor([0.05, 0.2, 0.0, 0.45, 0.3])
    u = (torch.arange(1000, dtype=torch.float64) + 0.5).unsqueeze(1) / 1000
    tokens, _ = invert(p.expand(1000, -1), u)
    assert torch.bincount(tokens, minlength=5).tolist() == [50, 200, 0, 450, 300]


def test_rare_tokens_late_in_a_large_vocabulary_keep_their_chance() -> None:
    # Before the last token lies a mass of 1 made of 32767 pieces; its own 1e-7 is near the resolution of float32 there.
    p = torch.full((1, 32768), 1.0 / 32767)
    p[0, -1] = 1e-7
    assert invert(p, column(1.0 - 0.5e-7))[0].item() == 32767
    assert invert(p, column(1.0 - 2e-7))[0].item() == 32766


# p = 0.1 0.2 0.3 0.4 below; the expected sets are worked by hand.
@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, [2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [2, 3]),  # 0.4 is not yet half; with 0.3 it is 0.7
        ({"top_p": 0.39}, [3]),
        ({"top_p": 1e-9}, [3]),  # at least one
        ({"top_p": 0.95}, [0, 1, 2, 3]),  # 0.4 + 0.3 + 0.2 = 0.9 is short of it
        ({"min_p": 0.6}, [2, 3]),  # 0.6 * 0.4 = 0.24
        ({"top_k": 2, "top_p": 0.55}, [3]),  # 0.4 is 0.57 of the 0.7 that top-k leaves
        ({"top_k": 2, "top_p": 0.6}, [2, 3]),
        ({"top_k": 3, "min_p": 0.6}, [2, 3]),
    ],
)
def test_truncation_by_hand(settings: dict[str, float], kept: list[int]) -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    after = truncate(p, params(**settings))
    assert after[0].nonzero().flatten().tolist() == kept
    assert torch.equal(after[0, kept], p[0, kept])
    # The log-probability is that of what can be drawn: 0.4 over the sum of the kept.
    token, logp = draw(p.log(), column(ALMOST_ONE), params(**settings))
    assert token.item() == 3
    assert logp.item() == pytest.approx(math.log(0.4 / p[0, kept].sum().item()), abs=1e-6)


def test_top_p_splits_equals_instead_of_keeping_them_all() -> None:
    assert truncate(torch.full((1, 4), 0.25), params(top_p=0.5)).count_nonzero().item() == 2


def test_a_nucleus_larger_than_the_first_guess_is_whole() -> None:
    # 1000 tokens of about 0.001: 0.9 of the mass needs about 900 of them; and a peaked row beside it needs one.
    p = torch.full((2, 1000), 0.001)
    p[1] = 0.05 / 999
    p[1, 7] = 0.95
    assert truncate(p, params(top_p=0.9))[0].count_nonzero().item() == pytest.approx(900, abs=1)
    assert truncate(p, params(top_p=0.9))[1].nonzero().flatten().tolist() == [7]


def test_truncation_keeps_what_transformers_keeps() -> None:
    from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(64, 700, generator=torch.Generator().manual_seed(1)) * 2
    warpers = LogitsProcessorList([TopKLogitsWarper(40), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)])
    expected = warpers(torch.zeros(64, 1, dtype=torch.long), logits.clone())
    kept = truncate(logits.softmax(1), params(top_k=40, top_p=0.8, min_p=0.05)) > 0
    assert torch.equal(kept, expected > -math.inf)


@pytest.mark.parametrize("vocabulary", [7, 512, 1009])
def test_greedy_takes_the_first_of_the_largest(vocabulary: int) -> None:
    logits = torch.randint(0, 4, (50, vocabulary), generator=torch.Generator().manual_seed(2)).float()
    tokens, logps = draw(logits, None, params(greedy=True))
    assert torch.equal(tokens, logits.argmax(1))
    assert torch.allclose(logps, logits.log_softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1), atol=1e-6)


def test_temperature_zero_is_greedy_and_divides_by_nothing() -> None:
    assert params(temperature=0.0).is_greedy
    assert params(temperature=0.0).divisor == 1.0
    assert not params(temperature=0.0, top_k=5).truncates
    assert params(temperature=0.5).divisor == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        params(**wrong)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        SamplingParams(max_new_tokens=[3, 0])


def test_uniforms_depend_on_seed_and_sequence_alone() -> None:
    long, short = uniforms(3, 5, 100), uniforms(3, 5, 10)
    assert long[:10].tolist() == short.tolist()
    assert set(uniforms(3, 6, 100)).isdisjoint(long)
    assert set(uniforms(4, 5, 100)).isdisjoint(long)
    assert uniforms(-1, 2**40, 3).shape == (3,)
    many = torch.tensor([uniforms(0, s, 50).tolist() for s in range(200)])
    # 10000 uniforms: mean 1/2 with standard error 0.0029, variance 1/12; 4 errors are crossed once in 16000 seeds.
    assert abs(many.mean().item() - 0.5) < 4 * 0.0029
    assert abs(many.var().item() - 1 / 12) < 0.004


def test_rows_of_uniforms_follow_their_sequences() -> None:
    rows = UniformRows(4, 6, seed=1, device=torch.device("cpu"))
    expected = {s: uniforms(1, s, 6).tolist() for s in (10, 11, 12, 13)}
    rows.admit([10, 11, 12])
    assert rows.take().flatten().tolist() == [expected[s][0] for s in (10, 11, 12)]
    rows.keep([0, 2])  # 11 ends
    assert rows.take().flatten().tolist() == [expected[s][1] for s in (10, 12)]
    rows.admit([13])
    assert rows.take(2).flatten().tolist() == [expected[13][0]]
    rows.keep([2, 1, 0])
    assert rows.take().flatten().tolist() == [expected[13][1], expected[12][2], expected[10][2]]
