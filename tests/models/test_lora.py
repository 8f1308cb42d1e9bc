"""Adapters: files that peft reads and writes, the reference policy, merging, and what is refused.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from goodheart.errors import ModelError
from goodheart.models.causal import CausalLM, completion_logprobs
from goodheart.models.heads import ValueModel
from goodheart.models.load import (
    LoraSpec,
    adapters_off,
    add_lora,
    as_reference,
    has_adapter,
    load_causal,
    merge,
    save_adapter,
    save_causal,
    trainable,
)
from tests.models.families import saved, some_ids

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def logits(model: CausalLM) -> Tensor:
    return model(some_ids()) @ model.unembed().weight_VD.t()


@torch.no_grad()
def stir(model: Any) -> None:
    """Move every trained parameter away from its start (B of LoRA starts at zero: nothing to see)."""
    for p in model.parameters():
        if p.requires_grad:
            p.add_(0.1 * torch.randn_like(p))


def differ(a: Tensor, b: Tensor) -> bool:
    return (a - b).abs().max().item() > 0.05


@pytest.mark.parametrize("name", ["llama2", "gpt2", "qwen2"])
def test_saved_adapter_loads_in_peft_and_here(name: str, tmp_path: Path) -> None:
    base = saved(name, tmp_path / "base")
    model = load_causal(tmp_path / "base")
    before = logits(model).detach()
    add_lora(model, LoraSpec(rank=3, alpha=6), seed=1)
    assert model.has_adapter
    torch.testing.assert_close(logits(model), before)  # a fresh adapter changes nothing
    stir(model)
    after = logits(model).detach()
    assert differ(before, after)
    save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(some_ids()).logits, after, rtol=1e-4, atol=1e-4)
    again = load_causal(tmp_path / "adapter")
    torch.testing.assert_close(logits(again), after)
    assert again.generation_config == model.generation_config
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 6, 0.0)


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_adapter_written_by_peft_is_read(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    target = ["c_attn"] if name == "gpt2" else ["q_proj", "down_proj"]
    config = peft.LoraConfig(
        r=2, lora_alpha=3, lora_dropout=0.5, use_rslora=True, target_modules=target, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(base, config).eval()
    stir(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_causal(tmp_path / "adapter").train()  # no dropout, also in training mode
    torch.testing.assert_close(logits(ours), theirs(some_ids()).logits, rtol=1e-4, atol=1e-4)
    names = [n for n, _ in trainable(ours)]
    assert names
    assert all("lora_" in n and "reference" not in n for n in names)


def test_only_the_adapter_is_trained_and_the_seed_decides(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    models = [load_causal(tmp_path) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(seed * 77)
        add_lora(model, LoraSpec(rank=2), seed=seed)
    names = [n for n, _ in trainable(models[0])]
    assert len(names) == 3 * 7 * 2  # layers * projections * (A, B)
    logits(models[0]).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in models[0].parameters())
    same = [torch.equal(a, b) for (_, a), (_, b) in zip(trainable(models[0]), trainable(models[1]), strict=True)]
    other = [torch.equal(a, b) for (_, a), (_, b) in zip(trainable(models[0]), trainable(models[2]), strict=True)]
    assert all(same)
    assert not all(other)


def test_fresh_adapter_switched_off_is_the_reference(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    model = load_causal(tmp_path)
    start = logits(model).detach()
    add_lora(model, LoraSpec(rank=2))
    stir(model)
    flags = [p.requires_grad for p in model.parameters()]
    with as_reference(model) as reference:
        assert torch.equal(logits(reference), start)
        assert not logits(reference).requires_grad
    with adapters_off(model):
        assert torch.equal(logits(model), start)
    assert differ(logits(model), start)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_continued_adapter_has_a_frozen_copy_as_reference(tmp_path: Path) -> None:
    saved("llama2", tmp_path / "base")
    sft = load_causal(tmp_path / "base")
    base = logits(sft).detach()
    add_lora(sft, LoraSpec(rank=2))
    stir(sft)
    start = logits(sft).detach()
    save_adapter(sft, tmp_path / "sft")

    policy = load_causal(tmp_path / "sft")
    add_lora(policy, LoraSpec(rank=2))  # goes on with the adapter that is there
    mask_BT = torch.ones(3, 23, dtype=torch.bool)
    new_BT = completion_logprobs(policy, some_ids(), mask_BT).logps_BT
    with as_reference(policy) as reference:
        assert torch.equal(completion_logprobs(reference, some_ids(), mask_BT).logps_BT, new_BT)  # step 0: no KL
    optimizer = torch.optim.SGD([p for _, p in trainable(policy)], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        logits(policy).square().mean().backward()
        optimizer.step()
    assert differ(logits(policy), start)
    with as_reference(policy) as reference:
        torch.testing.assert_close(logits(reference), start)  # the SFT adapter, not the base under it
    with adapters_off(policy):
        torch.testing.assert_close(logits(policy), base)
    moved = logits(policy).detach()
    save_adapter(policy, tmp_path / "policy")  # the trained one, not the reference
    torch.testing.assert_close(logits(load_causal(tmp_path / "policy")), moved)
    torch.testing.assert_close(logits(copy.deepcopy(policy)), moved)
    with pytest.raises(ModelError, match=r"adapter of rank 2, but rank 5 is asked for"):
        add_lora(policy, LoraSpec(rank=5))


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_merged_model_is_plain_and_equal(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "base")
    model = load_causal(tmp_path / "base")
    add_lora(model, LoraSpec(rank=2))
    stir(model)
    expected = logits(model).detach()
    if model.is_native:
        save_causal(model, tmp_path / "written")  # merged in the file, not in memory
        torch.testing.assert_close(logits(load_causal(tmp_path / "written")), expected, rtol=1e-4, atol=1e-4)
        assert model.has_adapter
    merge(model)
    assert not has_adapter(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in model.parameters())
    save_causal(model, tmp_path / "merged")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(theirs(some_ids()).logits, expected, rtol=1e-4, atol=1e-4)


def test_value_model_with_adapter_keeps_its_head_trainable(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    value = ValueModel(load_causal(tmp_path))
    add_lora(value, LoraSpec(rank=2, targets=["q_proj"]))
    assert {n.split(".")[0] for n, _ in trainable(value)} == {"backbone", "head"}
    assert sum("lora_" in n for n, _ in trainable(value)) == 3 * 2


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_adapter_on_the_vocabulary_is_refused(name: str, targets: list[str], tmp_path: Path) -> None:
    saved(name, tmp_path)
    with pytest.raises(ModelError, match="log-probabilities are computed from the plain output layer"):
        add_lora(load_causal(tmp_path), LoraSpec(targets=targets))


def test_targets_that_match_nothing_are_refused(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    with pytest.raises(ModelError, match="the adapter does not fit the model"):
        add_lora(load_causal(tmp_path), LoraSpec(targets=["c_attn"]))


def test_reference_needs_an_adapter(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    model = load_causal(tmp_path)
    with pytest.raises(ModelError, match="keep a frozen copy"), as_reference(model):
        pass
    with pytest.raises(ModelError, match="no adapter to save"):
        save_adapter(model, tmp_path / "x")


def broken_adapter(tmp_path: Path, **changes: object) -> Path:
    saved("llama2", tmp_path / "base")
    model = load_causal(tmp_path / "base")
    add_lora(model, LoraSpec(rank=2))
    save_adapter(model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of type IA3; only LORA"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": "./gone"}, "gone: no such folder"),
        ({"r": 7}, "does not fit the base model, .* has another shape"),
        ({"target_modules": ["lm_head"]}, "adapter targets lm_head"),
    ],
)
def test_broken_adapters_say_what_is_wrong(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_causal(broken_adapter(tmp_path, **changes))


def test_cut_adapter_file(tmp_path: Path) -> None:
    folder = broken_adapter(tmp_path)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_causal(folder)


def test_base_beside_the_adapter_is_found(tmp_path: Path) -> None:
    folder = broken_adapter(tmp_path, base_model_name_or_path="../base")
    assert load_causal(folder).has_adapter
