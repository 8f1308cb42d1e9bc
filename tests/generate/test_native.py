"""The C code against PyTorch, and against itself with other rows and threads beside it.

N rows, V vocabulary, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from goodheart.generate import native
from goodheart.generate.cache import KVCache
from goodheart.generate.engine import Engine
from goodheart.generate.layers import plain_model
from goodheart.generate.native import NativeDecoder, NativeSampler
from goodheart.generate.sampling import Sampler, SamplingParams
from goodheart.models.causal import Unembedding
from goodheart.models.load import load_causal, new_model
from goodheart.models.transformer import Transformer
from tests.generate.test_engine import LENGTHS, small_model, some_prompts
from tests.models.families import NATIVE, saved, some_ids

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler")

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


def sampler(head: Unembedding, **settings: Any) -> NativeSampler:
    made = NativeSampler.of(head, SamplingParams(1, **settings))
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
        assert NativeSampler.of(head, SamplingParams(1, **settings)) is None
    assert NativeSampler.of(head, SamplingParams(1, top_k=3, greedy=True)) is not None
    assert NativeSampler.of(Unembedding(head.weight_VD.double()), SamplingParams(1)) is None
    assert NativeSampler.of(Unembedding(head.weight_VD.t().contiguous().t()), SamplingParams(1)) is None


def decoder(model: Transformer, slots: int = 40) -> NativeDecoder:
    c = model.config
    cache = KVCache(c.layers, slots, 90, c.kv_heads, c.head_dim, torch.float32, torch.device("cpu"))
    plain = plain_model(model, cache.max_length, torch.float32)
    assert plain is not None
    made = NativeDecoder.of(plain, cache)
    assert made is not None
    return made


def prefill(made: NativeDecoder, prompts: list[list[int]]) -> Tensor:
    made.cache.clear()
    made.cache.start([len(p) for p in prompts], range(len(prompts)))
    return made.prefill(prompts, range(len(prompts)))


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_prompts_equal_the_forward_pass(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    assert isinstance(model, Transformer)
    prompts = some_prompts([1, 64, 5, 3, 80, 65, 23])  # chunks of 64 tokens begin and end inside and between them
    made = decoder(model)
    hidden_PD = prefill(made, prompts)
    token = some_ids(1, 1)[0]
    made.cache.step()
    next_PD = made.step(token.expand(len(prompts)).contiguous())  # reads the keys and values of the prompts
    for prompt, hidden, after in zip(prompts, hidden_PD, next_PD, strict=True):
        whole_TD = model(torch.tensor([[*prompt, int(token)]]))[0]
        torch.testing.assert_close(hidden, whole_TD[-2], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(after, whole_TD[-1], rtol=1e-4, atol=2e-5)


def test_a_row_is_the_same_to_the_bit_in_any_company(threads: None) -> None:
    model, prompts = small_model(), some_prompts(LENGTHS * 4)
    tokens_N = some_ids(1, len(prompts))[0]
    results = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        made = decoder(model)
        hidden_ND = prefill(made, prompts)
        made.cache.step()
        results.append((hidden_ND, made.step(tokens_N)))
    alone = decoder(model, slots=1)
    for i, prompt in enumerate(prompts):
        first = prefill(alone, [prompt])[0]
        alone.cache.step()
        after = alone.step(tokens_N[i : i + 1])[0]
        assert all(torch.equal(h[i], first) and torch.equal(a[i], after) for h, a in results)


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
    monkeypatch.setattr(native, "load", lambda: None)
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
    for prompt, hidden in zip(prompts, prefill(decoder(model), prompts), strict=True):
        torch.testing.assert_close(hidden, model(torch.tensor([prompt]))[0, -1], rtol=1e-4, atol=2e-5)


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


def fresh_load() -> object:
    return native.load.__wrapped__()


def test_compiling_anew_and_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "goodheart"))
    assert fresh_load() is not None
    files = list((tmp_path / "goodheart").iterdir())
    assert len(files) == 1  # nothing temporary is left
    stamp = files[0].stat().st_mtime_ns
    assert fresh_load() is not None
    assert files[0].stat().st_mtime_ns == stamp
    files[0].unlink()
    files[0].write_bytes(b"half a library")
    assert fresh_load() is not None


def test_code_is_not_loaded_from_where_others_may_put_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "goodheart"))
    (tmp_path / "goodheart").mkdir()
    (tmp_path / "goodheart").chmod(0o777)
    assert fresh_load() is None
    (tmp_path / "goodheart").chmod(0o755)
    assert fresh_load() is not None


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_compiler_or_a_folder_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "goodheart"))
    monkeypatch.setenv("CC", "false")
    assert fresh_load() is None
    monkeypatch.setenv("CC", "no-such-compiler")
    assert fresh_load() is None
    monkeypatch.delenv("CC")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "file" / "cache"))
    assert fresh_load() is None
    monkeypatch.delenv("GOODHEART_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert fresh_load() is None
    monkeypatch.setenv("GOODHEART_NATIVE", "0")
    assert fresh_load() is None
    assert os.environ["GOODHEART_NATIVE"] == "0"
