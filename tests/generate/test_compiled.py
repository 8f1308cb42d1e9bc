"""The C code against PyTorch, and against itself with other rows and threads beside it.

N rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from goodheart.generate import build, compiled
from goodheart.generate.compiled import CompiledRunner, CompiledSampler
from goodheart.generate.engine import Engine
from goodheart.generate.sampling import Sampler, SamplingParams
from goodheart.models.causal import Unembedding
from goodheart.models.load import load_causal, new_model
from goodheart.models.transformer import Transformer
from tests.generate.test_bfloat16 import portable
from tests.generate.test_engine import LENGTHS, largest_difference, small_model, some_prompts
from tests.models.families import NATIVE, saved, some_ids

pytestmark = pytest.mark.skipif(build.load() is None, reason="no C compiler")

ALMOST_ONE = 1.0 - 2.0**-53


@pytest.fixture
def threads() -> Iterator[None]:
    """Leaves the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_head(vocabulary: int, **settings: Any) -> Unembedding:
    generator = torch.Generator().manual_seed(vocabulary)
    return Unembedding(torch.randn(vocabulary, 24, generator=generator), **settings)


def hidden_states(rows: int) -> Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(rows)) * 0.7


def sampler(head: Unembedding, **settings: Any) -> CompiledSampler:
    made = CompiledSampler.of(head, SamplingParams(1, **settings))
    assert made is not None
    return made


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 64, 97, 512, 1009, 5000])
@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ({}, {}),
        ({}, {"temperature": 0.6}),
        ({"scale": 0.3, "softcap": 5.0}, {"temperature": 1.4}),
        ({"bias_V": True}, {}),
        ({}, {"greedy": True}),
        ({"softcap": 2.0}, {"greedy": True, "temperature": 0.5}),
    ],
)
def test_draws_equal_the_formula_in_float64(vocabulary: int, head: dict[str, Any], settings: dict[str, Any]) -> None:
    if "bias_V" in head:
        head = {"bias_V": torch.linspace(-2, 2, vocabulary)}
    unembedding, hidden_ND = a_head(vocabulary, **head), hidden_states(203)
    u_N1 = torch.rand(203, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u_N1[0], u_N1[1] = 0.0, ALMOST_ONE
    greedy = settings.get("greedy", False)
    logits_NV = hidden_ND.double() @ unembedding.weight_VD.double().t()
    if unembedding.bias_V is not None:
        logits_NV += unembedding.bias_V.double()
    logits_NV *= unembedding.scale
    if unembedding.softcap is not None:
        logits_NV = unembedding.softcap * torch.tanh(logits_NV / unembedding.softcap)
    logps_NV = (logits_NV / (1.0 if greedy else settings.get("temperature", 1.0))).log_softmax(1)
    drawn = sampler(unembedding, **settings)(hidden_ND, None if greedy else u_N1)
    also = Sampler(unembedding, SamplingParams(1, **settings))(hidden_ND, None if greedy else u_N1)
    for tokens_N, logps_N in (drawn, also):
        at_N1 = tokens_N.long().unsqueeze(1)
        torch.testing.assert_close(logps_N.double(), logps_NV.gather(1, at_N1)[:, 0], rtol=0, atol=2e-5)
        if greedy:
            assert torch.all(logps_NV.gather(1, at_N1) >= logps_NV.amax(1, keepdim=True) - 1e-5)
        else:  # u lies in the token's stretch of the cumulative distribution, up to rounding
            cdf_NV = logps_NV.exp().cumsum(1)
            end_N1 = cdf_NV.gather(1, at_N1)
            assert torch.all(u_N1 < end_N1 + 2e-6)
            assert torch.all(u_N1 >= end_N1 - logps_NV.gather(1, at_N1).exp() - 2e-6)
    assert (drawn[0] == also[0]).float().mean() > 0.97  # the others lie on a boundary


def test_tokens_without_probability_are_never_drawn() -> None:
    for vocabulary in (20, 64, 200):
        for allowed in ([3], [0, 19], [vocabulary - 1], [5, 6, 7]):
            bias_V = torch.full((vocabulary,), -1e4)
            bias_V[allowed] = 0.0
            u_N1 = torch.tensor([[0.0], [1e-12], [0.3], [0.5], [0.9999999], [ALMOST_ONE]], dtype=torch.float64)
            head = Unembedding(torch.zeros(vocabulary, 24), bias_V)
            tokens, logps = sampler(head)(hidden_states(6), u_N1)
            assert set(tokens.int().tolist()) <= set(allowed)
            assert logps.exp().tolist() == pytest.approx([1 / len(allowed)] * 6)


def test_the_largest_of_equals_is_the_first() -> None:
    head = Unembedding(torch.zeros(100, 24), torch.tensor([0.0, 1.0, 1.0] + [0.5] * 97))
    tokens, _ = sampler(head, greedy=True)(hidden_states(5), None)
    assert tokens.tolist() == [1.0] * 5


def test_not_a_number_shows() -> None:
    hidden_ND = hidden_states(5)
    hidden_ND[2, 0] = float("nan")
    u_N1 = torch.full((5, 1), 0.5, dtype=torch.float64)
    for drawn in (sampler(a_head(97))(hidden_ND, u_N1), sampler(a_head(97), greedy=True)(hidden_ND, None)):
        assert drawn[1].isnan().tolist() == [False, False, True, False, False]


def test_what_c_cannot_do_is_left_to_pytorch() -> None:
    head = a_head(97)
    for settings in ({"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert CompiledSampler.of(head, SamplingParams(1, **settings)) is None
    assert CompiledSampler.of(head, SamplingParams(1, top_k=3, greedy=True)) is not None
    assert CompiledSampler.of(Unembedding(head.weight_VD.double()), SamplingParams(1)) is None
    assert CompiledSampler.of(Unembedding(head.weight_VD.t().contiguous().t()), SamplingParams(1)) is None


@pytest.fixture(params=["float32", "bfloat16", "bfloat16 without dot products"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Of a model; the C code for it is the one that is tested."""
    if request.param.endswith("products"):
        monkeypatch.setattr(build, "load", portable)
    return torch.float32 if request.param == "float32" else torch.bfloat16


def runner(model: Transformer, slots: int = 40) -> CompiledRunner:
    made = CompiledRunner.of(model, slots, 90, None)
    assert made is not None
    return made


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_prompts_and_steps_equal_the_forward_pass(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    assert isinstance(model, Transformer)
    prompts = some_prompts([1, 64, 5, 3, 80, 65, 23])  # chunks of 64 tokens begin and end inside and between them
    prompts.append(prompts[1])  # a copy
    made, tokens_NT = runner(model, slots=9), some_ids(9, 6)
    made.cache.keys.fill_(float("nan"))  # what an earlier call left behind is never seen
    made.cache.values.fill_(float("nan"))
    hidden_PD = made.admit(prompts)
    rows = {i: [hidden_PD[i]] for i in range(8)}
    running = list(range(8))
    for step in range(6):
        if step == 2:  # some leave, the last takes the place of the first, and others come
            made.keep([7, 1, 4])
            prompts.append(some_prompts([30])[0])
            rows[8] = [made.admit(prompts[8:])[0]]
            running = [7, 1, 4, 8]
        for row, hidden in zip(running, made.step(tokens_NT[running, step].contiguous()), strict=True):
            rows[row].append(hidden)
    for row, seen in rows.items():
        first = 2 if row == 8 else 0
        whole_TD = model(torch.tensor([prompts[row] + tokens_NT[row, first:].tolist()]))[0, len(prompts[row]) - 1 :]
        torch.testing.assert_close(torch.stack(seen), whole_TD[: len(seen)], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("weights", [0, 10**9])  # 10^9: threads work in teams where rows are few
def test_a_row_is_the_same_to_the_bit_in_any_company(weights: int, threads: None, dtype: torch.dtype) -> None:
    model, prompts = small_model().to(dtype), some_prompts(LENGTHS * 4)
    tokens_N = some_ids(1, len(prompts))[0]
    results = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        made = runner(model)
        made.weights = weights
        results.append((made.admit(prompts), made.step(tokens_N)))
    for i, prompt in enumerate(prompts):
        alone = runner(model, slots=1)
        alone.weights = weights
        first, after = alone.admit([prompt])[0], alone.step(tokens_N[i : i + 1])[0]
        assert all(torch.equal(h[i], first) and torch.equal(a[i], after) for h, a in results)


@pytest.mark.parametrize("weights", [None, 10**9])
def test_what_is_drawn_depends_on_nothing_beside_it(
    weights: int | None, threads: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    if weights is not None:
        run = CompiledRunner.__init__
        monkeypatch.setattr(
            CompiledRunner, "__init__", lambda self, *given: (run(self, *given), setattr(self, "weights", weights))[0]
        )
    model, prompts = small_model().to(dtype), some_prompts(LENGTHS * 4)
    params = SamplingParams(list(range(1, 41)), seed=7, eos_ids=(4, 40))
    whole = Engine(model, slots=40).generate(prompts, params)
    for slots, count in ((1, 1), (5, 3), (17, 4), (40, 2)):
        torch.set_num_threads(count)
        assert Engine(model, slots=slots).generate(prompts, params) == whole
    told: list[int] = []  # one step at a time
    assert Engine(model, slots=9).generate(prompts, params, on_token=lambda i, t: told.append(t)) == whole
    assert len(told) == sum(len(made.ids) for made in whole)


def test_rows_end_in_the_order_of_their_steps() -> None:
    model, prompts, params = small_model(), some_prompts([6] * 8), SamplingParams([9, 3, 5, 1, 9, 2, 3, 8])
    told: list[int] = []
    Engine(model, slots=8).generate(prompts, params, on_finish=lambda i, _: told.append(i))
    assert sorted(told, key=params.limit) == told
    assert set(told) == set(range(8))


def test_a_stop_in_the_middle_of_several_steps_cuts_there() -> None:
    model, prompts, params = small_model(), some_prompts(), SamplingParams(30, seed=3)
    free = Engine(model).generate(prompts, params)
    seen: list[tuple[int, ...]] = []

    def stop(ids: list[int]) -> bool:
        seen.append(tuple(ids))
        return ids[-1] % 7 == 3

    for made, uncut in zip(Engine(model, slots=4).generate(prompts, params, stop=stop), free, strict=True):
        end = next((i + 1 for i, token in enumerate(uncut.ids) if token % 7 == 3), 30)
        assert (made.ids, made.logps) == (uncut.ids[:end], uncut.logps[:end])
        assert made.finish == ("stop" if uncut.ids[end - 1] % 7 == 3 else "length")
        assert all(tuple(made.ids[:n]) in seen for n in range(1, end + 1))


@pytest.mark.parametrize("most", [1, 7, 40])
def test_prompts_in_pieces_are_the_same(most: int, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    model, prompts = small_model().to(dtype), some_prompts([40, 3, 64, 17])
    whole, cut = runner(model), runner(model)
    before = whole.admit(prompts)
    monkeypatch.setattr(compiled, "_PROMPT_TOKENS", most)
    monkeypatch.setattr(compiled, "_PROMPT_CALL", 0)
    assert torch.equal(cut.admit(prompts), before)
    tokens_N = some_ids(1, 4)[0]
    assert torch.equal(cut.step(tokens_N), whole.step(tokens_N))


def test_pieces_are_cut_by_work() -> None:
    def work(begin: int, end: int) -> int:  # 11, 12, 13, 14, 15, 16
        return sum(10 + position for position in range(begin + 1, end + 1))

    # 11 + 12 + 13 = 36; 14 + 15, and 16 would be too much; 16 + 11 of the next prompt, and 12 would be too much
    cut = list(compiled._pieces([6, 2], 1, 36, work))
    assert cut == [[(0, 0, 3)], [(0, 3, 5)], [(0, 5, 6), (1, 0, 1)], [(1, 1, 2)]]
    assert list(compiled._pieces([6, 2], 4, 36, work)) == [[(0, 0, 4)], [(0, 4, 6), (1, 0, 2)]]
    assert list(compiled._pieces([3], 1, 0, work)) == [[(0, 0, 1)], [(0, 1, 2)], [(0, 2, 3)]]
    assert list(compiled._pieces([6, 2], 1, 10**9, work)) == [[(0, 0, 6), (1, 0, 2)]]


def test_work_counts_weights_and_what_is_attended_to() -> None:
    made, each = runner(small_model()), compiled._ATTENTION * 2 * 2 * 4 * 8
    # 2 layers, 4 heads of 8: token 3 of a row (counted from 0) sees 4 positions, token 4 sees 5
    assert made._work(3, 5) == 2 * made.weights + each * (4 + 5)
    made.weights = 0
    assert made._work(0, 16_384) > 16_384 * each * 8_000  # long prompts are dear even so


def test_prompts_in_pieces_by_work_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = small_model(), some_prompts([40, 3, 64, 17])
    whole, cut = runner(model), runner(model)
    before, calls, read = whole.admit(prompts), [], cut._read
    monkeypatch.setattr(cut, "_read", lambda p, s, b: (calls.append((p, b)), read(p, s, b))[1])
    monkeypatch.setattr(compiled, "_PROMPT_TOKENS", 1)
    monkeypatch.setattr(compiled, "_PROMPT_CALL", cut._work(0, 30))
    assert torch.equal(cut.admit(prompts), before)
    assert len(calls) > 4
    assert all(sum(cut._work(b, b + len(p)) for p, b in zip(*call, strict=True)) <= cut._work(0, 30) for call in calls)


def test_long_calls_come_back() -> None:
    model = small_model()
    made, sampler = runner(model), CompiledSampler.of(model.unembed(), SamplingParams(9))
    made.admit(some_prompts())
    assert sampler is not None
    assert made.steps_at_once(sampler, waiting=True) == 16
    assert made.steps_at_once(sampler, waiting=False) > 1000
    made.weights = 2**31
    assert made.steps_at_once(sampler, waiting=False) == 1


def test_draws_do_not_depend_on_threads(threads: None) -> None:
    u_N1 = torch.rand(50, 1, dtype=torch.float64)
    drawn = []
    for count in (1, 3):
        torch.set_num_threads(count)
        drawn.append(sampler(a_head(1009))(hidden_states(50), u_N1))
    assert torch.equal(drawn[0], drawn[1])


def test_the_engine_says_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, params = some_prompts(LENGTHS * 2), SamplingParams(30, seed=1, eos_ids=(4,))
    fast = Engine(small_model(), slots=7).generate(prompts, params)
    monkeypatch.setattr(build, "load", lambda dtype: None)
    slow = Engine(small_model(), slots=7).generate(prompts, params)
    assert [g.ids for g in fast] == [g.ids for g in slow]
    assert (
        max(abs(a - b) for f, s in zip(fast, slow, strict=True) for a, b in zip(f.logps, s.logps, strict=True)) < 1e-5
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"hidden_size": 256, "num_attention_heads": 1, "head_dim": 8, "intermediate_size": 16},  # wider than all else
        {"hidden_size": 20, "num_attention_heads": 2, "head_dim": 6, "intermediate_size": 9},  # nothing fits the lanes
    ],
)
@torch.no_grad()
def test_odd_shapes_equal_the_forward_pass(spec: dict[str, Any]) -> None:
    model = new_model({"num_hidden_layers": 2, "max_position_embeddings": 256, **spec}, 97, 0)
    prompts = some_prompts([1, 64, 80])
    for prompt, hidden in zip(prompts, runner(model).admit(prompts), strict=True):
        torch.testing.assert_close(hidden, model(torch.tensor([prompt]))[0, -1], rtol=1e-4, atol=2e-5)


def test_a_vocabulary_beyond_one_panel_of_blocks_and_rows_beyond_a_chunk() -> None:
    model = small_model(vocab=1009)
    made = Engine(model, slots=150).generate(some_prompts([3] * 150), SamplingParams(6, seed=2))
    assert largest_difference(model, made, 1.0) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    engine, settings = Engine(small_model()), SamplingParams(8, seed=1)
    before = [made.ids for made in engine.generate(some_prompts(LENGTHS), settings)]
    torch.set_default_dtype(dtype)
    try:
        after = [made.ids for made in engine.generate(some_prompts(LENGTHS), settings)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert before == after
