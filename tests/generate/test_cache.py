"""Keys and values over many steps against the whole forward pass, for every kind of layer; memory and views.

N rows, T time, D width.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from goodheart.generate.cache import BUCKET, KVCache
from goodheart.generate.decode import Decoder
from goodheart.models.load import LoraSpec, add_lora, load_causal
from goodheart.models.transformer import Transformer
from tests.models.families import NATIVE, VOCAB, saved, some_ids

LENGTHS = [11, 3, 7]
STEPS = 9


def native(name: str, folder: Path) -> Transformer:
    saved(name, folder)
    model = load_causal(folder)
    assert isinstance(model, Transformer)
    return model


def cache_for(model: Transformer, slots: int = 5, max_length: int = 40) -> KVCache:
    c = model.config
    weight = model.model.embed_tokens.weight
    return KVCache(c.layers, slots, max_length, c.kv_heads, c.head_dim, weight.dtype, weight.device)


def run(model: Transformer, cache: KVCache, tokens_NT: torch.Tensor, fast: bool) -> dict[tuple[int, int], torch.Tensor]:
    """Three prompts in four rows (the last is a copy), STEPS tokens each; row 1 leaves after three. -> hidden states
    by (row, step)."""
    cache.clear()
    cache.start([*LENGTHS, LENGTHS[2]], [0, 1, 2, 2])
    model(some_ids(3, max(LENGTHS)), cache=cache)
    decoder = Decoder.of(model, cache)
    assert decoder is not None
    hidden, rows = {}, [0, 1, 2, 3]
    for step in range(STEPS):
        if step == 3:
            cache.keep([0, 3, 2])
            rows = [0, 3, 2]
        positions_N, tokens_N = cache.step(), tokens_NT[rows, step]
        if fast:
            hidden_ND = decoder.step(tokens_N)
        else:
            hidden_ND = model(tokens_N[:, None], positions_BT=positions_N[:, None], cache=cache)[:, 0]
        hidden |= {(row, step): h for row, h in zip(rows, hidden_ND, strict=True)}
    return hidden


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_cached_steps_equal_the_whole_forward_pass(name: str, tmp_path: Path) -> None:
    model = native(name, tmp_path)
    tokens_NT = some_ids(4, STEPS, seed=1)
    prompts = some_ids(3, max(LENGTHS))
    general, fast = (run(model, cache_for(model), tokens_NT, kind) for kind in (False, True))
    for row, source in enumerate((0, 1, 2, 2)):
        prompt = prompts[source, : LENGTHS[source]]
        whole_TD = model(torch.cat((prompt, tokens_NT[row]))[None])[0, len(prompt) :]
        for step in range(3 if row == 1 else STEPS):
            torch.testing.assert_close(general[row, step], whole_TD[step], rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(fast[row, step], whole_TD[step], rtol=1e-4, atol=2e-5)
    assert (1, 3) not in fast  # that row was dropped


@torch.no_grad()
def test_lower_precision_stays_near(tmp_path: Path) -> None:
    model = native("qwen3", tmp_path)
    tokens_NT = some_ids(4, STEPS, seed=1)
    exact = run(model, cache_for(model), tokens_NT, True)
    model.to(torch.bfloat16)
    cache = cache_for(model)
    assert cache.dtype == torch.bfloat16
    for kind in (False, True):
        rough = run(model, cache, tokens_NT, kind)
        scale = max(h.abs().max() for h in exact.values())
        assert max((rough[k].float() - exact[k]).abs().max() for k in exact) < 0.06 * scale


@torch.no_grad()
def test_what_an_earlier_call_left_behind_is_never_seen(tmp_path: Path) -> None:
    model = native("llama3", tmp_path)
    tokens_NT = some_ids(4, STEPS, seed=1)
    cache = cache_for(model)
    cache._store.fill_(50.0)
    used, fresh = run(model, cache, tokens_NT, True), run(model, cache_for(model), tokens_NT, True)
    assert all(torch.equal(used[k], fresh[k]) for k in fresh)


def test_a_step_reads_the_longest_row_rounded_up_not_the_room_there_is() -> None:
    cache = KVCache(2, 8, 10 * BUCKET, 2, 4, torch.float32, torch.device("cpu"))
    cache.start([5, BUCKET - 1], [0, 1])
    cache.step()
    assert cache.span == BUCKET
    keys, values = cache._layer_views()[0]
    assert (keys.shape, values.shape) == ((4, 4, BUCKET), (4, BUCKET, 4))  # 2 rows x 2 heads
    assert keys.untyped_storage().data_ptr() == cache._store.untyped_storage().data_ptr()  # a view, not a copy
    cache.step()
    assert cache.span == 2 * BUCKET
    cache.keep([0])  # the long row ends
    cache.step()
    assert (cache.span, cache.lengths, cache.positions_N.tolist()) == (BUCKET, [8], [7])


def test_fits() -> None:
    cache = KVCache(2, 8, 40, 2, 4, torch.float32, torch.device("cpu"))
    assert cache.max_length == 40
    cpu = torch.device("cpu")
    assert cache.fits(8, 40, torch.float32, cpu)
    assert cache.fits(3, 10, torch.float32, cpu)
    assert not cache.fits(9, 10, torch.float32, cpu)
    assert not cache.fits(8, 41, torch.float32, cpu)
    assert not cache.fits(8, 10, torch.bfloat16, cpu)


def test_the_short_way_is_for_plain_models_only(tmp_path: Path) -> None:
    model = native("llama2", tmp_path)
    cache = cache_for(model)
    assert Decoder.of(model, cache) is not None
    half = KVCache(3, 5, 40, 2, 8, torch.bfloat16, torch.device("cpu"))
    assert Decoder.of(model, half) is None
    add_lora(model, LoraSpec(rank=2))
    assert Decoder.of(model, cache) is None


def test_the_decoder_sees_weights_as_they_are(tmp_path: Path) -> None:
    model = native("llama2", tmp_path)
    decoder = Decoder.of(model, cache_for(model))
    assert decoder is not None
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for layer in decoder.layers:
        for weight, _ in (layer.qkv, layer.out, layer.gate_up, layer.down):
            assert weight.untyped_storage().data_ptr() in weights
    assert model.vocab_size == VOCAB
