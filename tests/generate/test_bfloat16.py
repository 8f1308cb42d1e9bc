"""The C code for bfloat16, with the processor's dot products of it and without, against float64 and PyTorch.

bfloat16 keeps 8 bits, so a number is rounded by up to 2^-9 of itself, at some ten places in every layer. No single
result can be told from rounding; so the errors against float64, on the same weights, are compared with those that
PyTorch's own bfloat16 makes: a wrong formula is wrong by far more.

N rows, P prompts, T time, V vocabulary, D width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from goodheart.errors import HealthError
from goodheart.generate import build
from goodheart.generate.compiled import CompiledRunner, CompiledSampler
from goodheart.generate.engine import Engine
from goodheart.generate.sampling import Sampler, SamplingParams
from goodheart.models import build as compiler
from goodheart.models.causal import Unembedding
from goodheart.models.load import load_causal
from goodheart.models.new import new_model
from goodheart.models.transformer import Transformer
from tests.generate.test_engine import LENGTHS, small_model, some_prompts, trainer_logps
from tests.models.families import NATIVE, saved, some_ids

pytestmark = pytest.mark.skipif(build.load(torch.bfloat16) is None, reason="no C compiler")


@cache
def portable(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The code as it is compiled where the processor has no dot products of bfloat16."""
    code = build.CODES[dtype]
    return compiler.load(code if dtype == torch.float32 else replace(code, flags=(*code.flags, "-U__AVX512BF16__")))


@pytest.fixture(params=["best", "portable"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        monkeypatch.setattr(build, "load", portable)


def in_bfloat16(model: Transformer) -> tuple[Transformer, Transformer]:
    """The model in bfloat16, and the same weights in float64."""
    rounded = model.to(torch.bfloat16)
    exact = Transformer(rounded.config).double()
    exact.load_state_dict(rounded.state_dict())
    return rounded, exact


def runner(model: Transformer, slots: int = 40) -> CompiledRunner:
    made = CompiledRunner.of(model, slots, 90, None)
    assert made is not None
    return made


def off(found: Tensor, exact: Tensor) -> float:
    """The error's size as a part of the whole."""
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_prompts_and_steps_are_as_near_to_float64_as_pytorch(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model, exact = in_bfloat16(load_causal(tmp_path))  # type: ignore[arg-type]
    prompts, tokens_PT = some_prompts([1, 64, 5, 80, 23, 2]), some_ids(6, 6)
    prompts.append(prompts[1])  # a copy
    tokens_PT = torch.cat((tokens_PT, some_ids(1, 6, seed=5)))
    made = runner(model, slots=7)
    made.cache.keys.fill_(float("nan"))  # what an earlier call left behind is never seen
    made.cache.values.fill_(float("nan"))
    seen = [made.admit(prompts)] + [made.step(tokens_PT[:, i].contiguous()) for i in range(5)]
    assert seen[0].dtype == torch.bfloat16
    found, pytorch, wanted = [], [], []
    for p, prompt in enumerate(prompts):
        ids_1T, rows = torch.tensor([prompt + tokens_PT[p, :5].tolist()]), slice(len(prompt) - 1, None)
        found.append(torch.stack([hidden_PD[p] for hidden_PD in seen]))
        pytorch.append(model(ids_1T)[0, rows])
        wanted.append(exact(ids_1T)[0, rows])
    for c_TD, pytorch_TD, exact_TD in zip(found, pytorch, wanted, strict=True):
        assert off(c_TD, exact_TD) < 3 * off(pytorch_TD, exact_TD) + 1e-3  # a few rows: luck is large
    assert off(torch.cat(found), torch.cat(wanted)) < 1.2 * off(torch.cat(pytorch), torch.cat(wanted)) + 5e-4


@pytest.mark.parametrize("vocabulary", [2, 97, 1009])
@pytest.mark.parametrize("bias", [False, True])
def test_draws_equal_the_formula(vocabulary: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    weight_VD = torch.randn(vocabulary, 24, generator=generator).bfloat16()
    bias_V = torch.linspace(-2, 2, vocabulary).bfloat16() if bias else None
    hidden_ND = (torch.randn(203, 24, generator=generator) * 0.7).bfloat16()
    u_N1 = torch.rand(203, 1, dtype=torch.float64, generator=generator)
    logits_NV = hidden_ND.double() @ weight_VD.double().t()
    if bias_V is not None:
        logits_NV += bias_V.double()
    # Each logit is rounded, as the trainer's are: by 2^-9 of the largest at most; a logsumexp by no more.
    bound = 2 * 2.0**-9 * float(logits_NV.abs().max())
    head = Unembedding(weight_VD, bias_V)
    sampler = CompiledSampler.of(head, SamplingParams(1))
    assert sampler is not None
    for tokens_N, logps_N in (sampler(hidden_ND, u_N1), Sampler(head, SamplingParams(1))(hidden_ND, u_N1)):
        exact_N = logits_NV.log_softmax(1).gather(1, tokens_N.long().unsqueeze(1))[:, 0]
        assert (logps_N.double() - exact_N).abs().max() < bound
        assert (logps_N.double() - exact_N).mean().abs() < bound / 20  # no drift
    drawn, also = sampler(hidden_ND, u_N1)[0], Sampler(head, SamplingParams(1))(hidden_ND, u_N1)[0]
    assert (drawn == also).float().mean() > 0.9  # the others lie where a rounded probability ends
    greedy = CompiledSampler.of(head, SamplingParams(1, greedy=True))
    assert greedy is not None
    best_N1 = greedy(hidden_ND, None)[0].long().unsqueeze(1)
    assert torch.all(logits_NV.gather(1, best_N1) >= logits_NV.amax(1, keepdim=True) - bound)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_engine_is_as_near_to_the_trainer_as_in_pytorch(greedy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, exact = in_bfloat16(small_model())
    prompts, params = some_prompts(LENGTHS * 2), SamplingParams(30, seed=1, eos_ids=(4,), greedy=greedy)
    engine = Engine(model, slots=7)
    assert engine.way.startswith("C, bfloat16")

    def apart(trainer: Transformer) -> Tensor:
        made = engine.generate(prompts, params)
        rows = zip(made, trainer_logps(trainer, made, 1.0), strict=True)
        return torch.tensor([a - b for g, logps in rows for a, b in zip(g.logps, logps, strict=True)]).abs()

    c, c_exact = apart(model), apart(exact)
    monkeypatch.setattr(build, "load", lambda dtype: None)
    assert engine.way == "PyTorch"
    pytorch, pytorch_exact = apart(model), apart(exact)
    assert float(c.mean()) < 1.2 * float(pytorch.mean())
    assert float(c_exact.mean()) < 1.2 * float(pytorch_exact.mean())
    assert float(c_exact.mean()) < 0.02


def test_greedy_tokens_are_the_likeliest_but_for_rounding() -> None:
    model, exact = in_bfloat16(small_model())
    for made in Engine(model).generate(some_prompts(), SamplingParams(30, greedy=True)):
        with torch.no_grad():
            hidden_TD = exact(torch.tensor([made.prompt_ids + made.ids]))[0, len(made.prompt_ids) - 1 : -1]
        logits_TV = hidden_TD @ exact.unembed().weight_VD.t()
        behind_T = logits_TV.amax(1) - logits_TV.gather(1, torch.tensor(made.ids).unsqueeze(1))[:, 0]
        # Two logits of size up to 10, each off by a few times 2^-9 of that.
        assert behind_T.max() < 0.15
        assert behind_T.mean() < 0.01


def test_rounding_is_that_of_pytorch() -> None:
    # 1 and 1 + 2^-7 are neighbours. Exactly between them the even one wins, here 1 and then 1 + 2^-6.
    numbers = torch.tensor([1.0, 1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8, -1 - 2**-8])
    assert numbers.bfloat16().tolist() == [1.0, 1.0, 1 + 2**-7, 1 + 2**-6, -1.0]
    # A head of one word: the logit is the sum of two numbers, a bfloat16 and what is missing.
    high = torch.tensor([1.0, 1.0, 1.0, 1 + 2**-7, -1.0])
    low = torch.tensor([0.0, 2**-8, 2**-8 + 2**-14, 2**-8, -(2**-8)])
    head = Unembedding(torch.stack((torch.zeros(2), torch.ones(2))).bfloat16())
    sampler = CompiledSampler.of(head, SamplingParams(1, greedy=True))
    assert sampler is not None
    logps_N = sampler(torch.stack((high, low), 1).bfloat16(), None)[1]
    logits_N = (high + low).bfloat16().double()
    torch.testing.assert_close(logps_N.double(), -torch.log1p(torch.exp(-logits_N.abs())), rtol=0, atol=1e-6)


def test_not_a_number_shows() -> None:
    model = small_model().bfloat16()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(HealthError, match="prompt 1"):
        Engine(model).generate([[1, 2], [3, 7, 4], [5]], SamplingParams(4))


def test_a_model_that_becomes_bfloat16_gets_another_cache() -> None:
    model, prompts, params = small_model(), some_prompts(), SamplingParams(12, seed=1)
    engine = Engine(model)
    engine.generate(prompts, params)
    assert engine.way == "C"
    model.to(torch.bfloat16)
    assert engine.way.startswith("C, bfloat16")
    assert engine.generate(prompts, params) == Engine(model).generate(prompts, params)


def test_odd_widths_and_heads_of_another_dtype_run_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"hidden_size": 20, "num_attention_heads": 2, "head_dim": 6, "num_hidden_layers": 1}
    odd = new_model({**spec, "intermediate_size": 9}, 97, 0).bfloat16()
    assert Engine(odd).way == "PyTorch"
    assert Engine(new_model({**spec, "intermediate_size": 10}, 97, 0).bfloat16()).way != "PyTorch"
    weight_VD = torch.zeros(97, 24).bfloat16()
    of: Callable[..., object] = CompiledSampler.of
    assert of(Unembedding(weight_VD), SamplingParams(1)) is not None
    assert of(Unembedding(weight_VD, torch.zeros(97)), SamplingParams(1)) is None
    assert of(Unembedding(weight_VD[:, :23].contiguous()), SamplingParams(1)) is None


def test_a_head_in_float32_over_a_trunk_in_bfloat16() -> None:
    model = small_model().bfloat16()
    assert model.lm_head is not None
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.float())
    made = Engine(model, slots=3).generate(some_prompts(), SamplingParams(5, seed=2))
    assert all(len(each.ids) == 5 for each in made)
