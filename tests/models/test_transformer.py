"""Our decoder against transformers, in every family: logits, gradients, saved folders; packing; copies; checkpointing.

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from goodheart.models.causal import CausalLM
from goodheart.models.load import load_causal, save_causal
from goodheart.models.transformer import Transformer
from tests.models.families import NATIVE, saved, some_ids

transformers = pytest.importorskip("transformers")


def logits(model: CausalLM, ids_BT: Tensor, **inputs: Any) -> Tensor:
    head = model.unembed()
    out = head.scale * (model(ids_BT, **inputs) @ head.weight_VD.t())
    return out if head.softcap is None else head.softcap * torch.tanh(out / head.softcap)


def assert_same(ours: Tensor, theirs: Tensor, within: float = 1e-4) -> None:
    assert theirs.abs().max() > 0.5  # logits that are all near zero would prove nothing
    assert (ours - theirs).abs().max().item() < within


@pytest.mark.parametrize("name", NATIVE)
def test_logits_and_saved_folder_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path / "theirs")
    ids_BT = some_ids()
    expected = theirs(ids_BT).logits.detach()
    ours = load_causal(tmp_path / "theirs")
    assert isinstance(ours, Transformer)
    assert ours.vocab_size == expected.shape[-1]
    assert_same(logits(ours, ids_BT), expected)
    save_causal(ours, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is type(theirs)
    assert_same(again(ids_BT).logits, expected)
    assert_same(logits(load_causal(tmp_path / "ours"), ids_BT), expected)


@pytest.mark.parametrize("name", ["llama2", "qwen2", "qwen3-bias", "gemma3", "smollm3"])
def test_gradients_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path)
    ours, ids_BT = load_causal(tmp_path), some_ids()
    weights = torch.randn(3, 23, theirs.config.vocab_size)
    (logits(ours, ids_BT) * weights).mean().backward()
    (theirs(ids_BT).logits * weights).mean().backward()
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    got = {n: p.grad for n, p in ours.named_parameters()}
    assert got.keys() == expected.keys()
    for parameter, grad in expected.items():
        torch.testing.assert_close(got[parameter], grad, rtol=1e-3, atol=1e-6)


def old_style(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 4 writes it."""
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    if "full_attention" in rope:
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 6
        config.pop("layer_types")
        return config
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope.pop("rope_type") == "default" else {**rope, "rope_type": "llama3"}
    return config


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma3"])
def test_configs_of_transformers_4_mean_the_same(name: str, tmp_path: Path) -> None:
    expected = saved(name, tmp_path)(some_ids()).logits
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(old_style(config)))
    assert "rope_parameters" not in load_causal(tmp_path).hf_config
    assert_same(logits(load_causal(tmp_path), some_ids()), expected)


def test_real_model_equals_transformers(stories260k: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories260k)
    ids_BT = torch.randint(3, 512, (2, 200))
    ours = load_causal(stories260k)
    assert_same(logits(ours, ids_BT), theirs(ids_BT).logits)
    assert ours.generation_config["eos_token_id"] == [2, 1]
    save_causal(ours, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(again(ids_BT).logits, theirs(ids_BT).logits)
    assert again.generation_config.eos_token_id == [2, 1]
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_bfloat16_weights(tmp_path: Path) -> None:
    theirs = saved("qwen3", tmp_path / "a").to(torch.bfloat16)
    ours = load_causal(tmp_path / "a", dtype=torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    error = (logits(ours, some_ids()).float() - theirs(some_ids()).logits.float()).abs()
    assert error.mean() < 0.02 * theirs(some_ids()).logits.float().std()  # 8 bits of mantissa: 0.4 % per rounding
    save_causal(ours, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = load_causal(tmp_path / "b", dtype=torch.bfloat16)
    assert torch.equal(logits(again, some_ids()), logits(ours, some_ids()))


@pytest.mark.parametrize("name", ["llama2", "gemma2", "gemma3", "qwen2-window", "smollm3"])
def test_autocast_trains_in_float32_weights(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    exact = logits(model, some_ids())
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(model, some_ids())
    assert 0 < (rough.float() - exact).abs().mean() < 0.1 * exact.std()
    rough.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["llama2", "mistral", "gemma2", "gemma3", "smollm3"])
def test_right_padding_changes_nothing(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model, ids_BT = load_causal(tmp_path), some_ids()
    whole = model(ids_BT)
    other = ids_BT.clone()
    other[:, 15:] = 0
    torch.testing.assert_close(model(other)[:, :15], whole[:, :15])
    torch.testing.assert_close(model(ids_BT[:, :15]), whole[:, :15])


@pytest.mark.parametrize("name", ["llama2", "mistral", "gemma2", "gemma3", "smollm3"])
def test_packed_sequences_do_not_see_each_other(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    first, second = some_ids(1, 9, seed=1), some_ids(1, 12, seed=2)
    packed_BT = torch.cat((first, second, torch.zeros(1, 3, dtype=torch.long)), dim=1)
    positions_BT = torch.tensor([[*range(9), *range(12), *range(3)]])
    segments_BT = torch.tensor([[1] * 9 + [2] * 12 + [0] * 3])
    hidden_BTD = model(packed_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    torch.testing.assert_close(hidden_BTD[:, :9], model(first))
    torch.testing.assert_close(hidden_BTD[:, 9:21], model(second))
    assert hidden_BTD.isfinite().all()


def test_explicit_positions_equal_the_default(tmp_path: Path) -> None:
    saved("gemma3", tmp_path)
    model, ids_BT = load_causal(tmp_path), some_ids()
    torch.testing.assert_close(model(ids_BT, positions_BT=torch.arange(23).expand(3, -1)), model(ids_BT))
    # Rotary positions are relative: a shift of all positions is invisible.
    torch.testing.assert_close(
        model(ids_BT, positions_BT=torch.arange(23)[None] + 40), model(ids_BT), rtol=1e-3, atol=1e-4
    )
    reversed_BT = torch.arange(22, -1, -1).expand(3, -1)
    assert not torch.allclose(model(ids_BT, positions_BT=reversed_BT), model(ids_BT), atol=0.1)


def test_activation_checkpointing_gives_identical_gradients(tmp_path: Path) -> None:
    saved("gemma2", tmp_path)
    plain, recomputing = load_causal(tmp_path), load_causal(tmp_path)
    recomputing.checkpoint_activations = True
    calls = []
    recomputing.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[union-attr,arg-type]
    for model in (plain, recomputing):
        logits(model, some_ids()).square().mean().backward()
    assert len(calls) == 2  # once forward, once again in backward
    for (name, a), (_, b) in zip(plain.named_parameters(), recomputing.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama2", "gemma3", "qwen3-bias"])
def test_gradients_or_none_give_the_same_bits(name: str, tmp_path: Path) -> None:
    # So that PPO's ratio at the first update is exactly 1.
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    with_gradients = model(some_ids())
    with torch.no_grad():
        assert torch.equal(model(some_ids()), with_gradients)
    with torch.inference_mode():
        assert torch.equal(model(some_ids()), with_gradients)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama2", "gemma3", "qwen3-bias"])
def test_kept_positions_equal_the_same_positions_of_all(name: str, checkpointing: bool, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    model.checkpoint_activations = checkpointing
    ids_BT = some_ids()
    keep_BT = torch.rand(ids_BT.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    keep_BT[1] = False  # a row of which nothing is wanted
    found = []
    for hidden_ND in (model(ids_BT, kept_N=keep_BT.flatten().nonzero().squeeze(1)), model(ids_BT)[keep_BT]):
        model.zero_grad()
        hidden_ND.square().sum().backward()
        found.append([hidden_ND, *[p.grad for p in model.parameters() if p.grad is not None]])
    assert len(found[0]) == len(found[1]) > 10
    for kept, whole in zip(*found, strict=True):
        torch.testing.assert_close(kept, whole, rtol=1e-4, atol=1e-4)


def test_training_mode_computes_the_same(tmp_path: Path) -> None:
    saved("qwen2", tmp_path, attention_dropout=0.5)
    model = load_causal(tmp_path)
    assert torch.equal(model.train()(some_ids()), model.eval()(some_ids()))


def is_fused(model: CausalLM) -> bool:
    block = model.model.layers[1].self_attn  # type: ignore[union-attr,index]
    q, k, v = block.q_proj.weight, block.k_proj.weight, block.v_proj.weight  # type: ignore[union-attr]
    return k.data_ptr() == q.data_ptr() + q.numel() * 4 and v.data_ptr() == k.data_ptr() + k.numel() * 4  # type: ignore


def test_copies_and_moves_keep_tie_and_fusion(tmp_path: Path) -> None:
    saved("llama3", tmp_path)
    model = load_causal(tmp_path)
    expected = model(some_ids())
    double_and_back = load_causal(tmp_path).double().float()
    refilled = load_causal(tmp_path)
    refilled.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    for other in (copy.deepcopy(model), double_and_back, refilled):
        assert isinstance(other, Transformer)
        assert is_fused(other)
        assert other.lm_head is not None
        assert other.lm_head.weight is other.model.embed_tokens.weight
        assert other.lm_head.weight is not model.lm_head.weight  # type: ignore[union-attr]
        assert torch.equal(other(some_ids()), expected)
    with torch.no_grad():
        copy.deepcopy(model).model.layers[0].self_attn.q_proj.weight.zero_()  # type: ignore[union-attr]
    assert torch.equal(model(some_ids()), expected)  # a copy shares nothing


def test_optimizer_steps_reach_the_fused_weights(tmp_path: Path) -> None:
    saved("llama-biases", tmp_path)
    fused, plain = load_causal(tmp_path), load_causal(tmp_path)
    for parameter in plain.parameters():
        parameter.data = parameter.data.clone()  # memory apart: the plain path
    assert is_fused(fused)
    assert not is_fused(plain)
    for model in (fused, plain):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            logits(model, some_ids()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert is_fused(fused)
    torch.testing.assert_close(fused(some_ids()), plain(some_ids()), rtol=1e-3, atol=1e-4)


def test_tables_made_while_sampling_serve_training(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    model = load_causal(tmp_path)
    with torch.inference_mode():
        model(some_ids())
    logits(model, some_ids()).mean().backward()  # inference tensors could not be saved for backward
