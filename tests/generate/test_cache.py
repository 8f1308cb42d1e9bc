"""Keys and values over many steps against the whole forward pass, for every kind of layer; memory and views.

N rows, T time, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from goodheart.generate.cache import BUCKET, KVCache
from goodheart.generate.decode import Decoder
from goodheart.generate.layers import plain_model
from goodheart.generate.steps import Step
from goodheart.models.load import LoraSpec, add_lora, load_causal
from goodheart.models.transformer import Transformer
from tests.models.families import NATIVE, saved, some_ids

LENGTHS = [11, 3, 7]
STEPS = 9
WAYS = ["general", "operations"]


def native(name: str, folder: Path) -> Transformer:
    saved(name, folder)
    model = load_causal(folder)
    assert isinstance(model, Transformer)
    return model


def cache_for(model: Transformer, slots: int = 5, max_length: int = 40) -> KVCache:
    c = model.config
    weight = model.model.embed_tokens.weight
    return KVCache(c.layers, slots, max_length, c.kv_heads, c.head_dim, weight.dtype, weight.device)


def single_steps(way: str, model: Transformer, cache: KVCache) -> Callable[[torch.Tensor, Step], torch.Tensor]:
    """One of the ways to run one token per row."""
    if way == "general":
        return lambda tokens_N, step: model(
            tokens_N.unsqueeze(1), positions_BT=step.positions_N.unsqueeze(1), cache=cache
        )[:, 0]
    plain = plain_model(model, cache.max_length, cache.dtype)
    assert plain is not None
    return Decoder(plain).step


def run(model: Transformer, cache: KVCache, tokens_NT: torch.Tensor, way: str) -> dict[tuple[int, int], torch.Tensor]:
    """Three prompts in four rows (the last is a copy), STEPS tokens each; row 1 leaves after three. -> hidden states
    by (row, step)."""
    cache.clear()
    cache.start([*LENGTHS, LENGTHS[2]], [0, 1, 2, 2])
    model(some_ids(3, max(LENGTHS)), cache=cache)
    step, hidden, rows = single_steps(way, model, cache), {}, [0, 1, 2, 3]
    for count in range(STEPS):
        if count == 3:
            cache.keep([0, 3, 2])
            rows = [0, 3, 2]
        hidden_ND = step(tokens_NT[rows, count], cache.step())
        hidden |= {(row, count): h for row, h in zip(rows, hidden_ND, strict=True)}
    return hidden


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_cached_steps_equal_the_whole_forward_pass(name: str, way: str, tmp_path: Path) -> None:
    model = native(name, tmp_path)
    tokens_NT = some_ids(4, STEPS, seed=1)
    prompts = some_ids(3, max(LENGTHS))
    hidden = run(model, cache_for(model), tokens_NT, way)
    for row, source in enumerate((0, 1, 2, 2)):
        prompt = prompts[source, : LENGTHS[source]]
        whole_TD = model(torch.cat((prompt, tokens_NT[row]))[None])[0, len(prompt) :]
        for step in range(3 if row == 1 else STEPS):
            torch.testing.assert_close(hidden[row, step], whole_TD[step], rtol=1e-4, atol=2e-5)
    assert (1, 3) not in hidden  # that row was dropped


@torch.no_grad()
def test_lower_precision_stays_near(tmp_path: Path) -> None:
    model = native("qwen3", tmp_path)
    tokens_NT = some_ids(4, STEPS, seed=1)
    exact = run(model, cache_for(model), tokens_NT, "operations")
    model.to(torch.bfloat16)
    cache = cache_for(model)
    assert cache.dtype == torch.bfloat16
    for way in ("general", "operations"):
        rough = run(model, cache, tokens_NT, way)
        scale = max(h.abs().max() for h in exact.values())
        assert max((rough[k].float() - exact[k]).abs().max() for k in exact) < 0.06 * scale


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_what_an_earlier_call_left_behind_is_never_seen(way: str, tmp_path: Path) -> None:
    model = native("llama3", tmp_path)
    tokens_NT = some_ids(4, STEPS, seed=1)
    cache = cache_for(model)
    cache.store.kv.fill_(50.0)
    used, fresh = run(model, cache, tokens_NT, way), run(model, cache_for(model), tokens_NT, way)
    assert all(torch.equal(used[k], fresh[k]) for k in fresh)


def test_a_step_reads_the_longest_row_rounded_up_not_the_room_there_is() -> None:
    cache = KVCache(2, 8, 10 * BUCKET, 2, 4, torch.float32, torch.device("cpu"))
    cache.start([5, BUCKET - 1], [0, 1])
    step = cache.step()
    assert step.span == BUCKET
    keys, values = step._views[2][0]
    assert (keys.shape, values.shape) == ((4, 4, BUCKET), (4, BUCKET, 4))  # 2 rows x 2 heads
    assert keys.untyped_storage().data_ptr() == cache.store.kv.untyped_storage().data_ptr()  # a view, not a copy
    assert cache.step().span == 2 * BUCKET
    cache.keep([0])  # the long row ends
    step = cache.step()
    assert (step.span, cache.lengths, step.positions_N.tolist()) == (BUCKET, [8], [7])


def test_steps_go_on_from_any_row() -> None:
    # One key/value head, so that positions by head are as many as rows; rows of equal lengths change places.
    cache = KVCache(1, 4, 16, 1, 4, torch.float32, torch.device("cpu"))
    cache.start([3, 3, 5], [0, 1, 2])
    assert cache.step().positions_N.tolist() == [3, 3, 5]
    cache.keep([1, 0, 2])
    assert cache.step().positions_N.tolist() == [4, 4, 6]
    cache.keep([2, 1])
    assert cache.step().positions_N.tolist() == [7, 5]
    assert cache.grow() == [8, 6]  # a step that somebody else runs
    step = cache.step()
    assert step.positions_N.tolist() == [9, 7]
    # Keys of the first row begin at 0, its values behind the keys of all 4 slots of 16; a row takes 16.
    assert step._places_Z.tolist() == [9, 64 + 9, 16 + 7, 64 + 16 + 7]
    assert cache.step()._places_Z.tolist() == [10, 64 + 10, 16 + 8, 64 + 16 + 8]
    assert cache.lengths == [11, 9]


def test_fits() -> None:
    cache = KVCache(2, 8, 40, 2, 4, torch.float32, torch.device("cpu"))
    assert cache.max_length == 40
    cpu = torch.device("cpu")
    assert cache.fits(8, 40, torch.float32, cpu)
    assert cache.fits(3, 10, torch.float32, cpu)
    assert not cache.fits(9, 10, torch.float32, cpu)
    assert not cache.fits(8, 41, torch.float32, cpu)
    assert not cache.fits(8, 10, torch.bfloat16, cpu)


def test_only_plain_models_are_taken_apart(tmp_path: Path) -> None:
    model = native("llama2", tmp_path)
    assert plain_model(model, 40, torch.float32) is not None
    assert plain_model(model, 40, torch.bfloat16) is None
    model.model.norm.double()
    assert plain_model(model, 40, torch.float32) is None
    model.model.norm.float()
    add_lora(model, LoraSpec(rank=2))
    assert plain_model(model, 40, torch.float32) is None


def test_weights_are_looked_at_not_copied(tmp_path: Path) -> None:
    model = native("llama2", tmp_path)
    plain = plain_model(model, 40, torch.float32)
    assert plain is not None
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for layer in plain.layers:
        for weight, _ in (layer.qkv, layer.out, layer.gate_up, layer.down):
            assert weight.untyped_storage().data_ptr() in weights
    model.model.blocks()[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(72, 32))  # no longer side by side
    assert plain_model(model, 40, torch.float32) is None
