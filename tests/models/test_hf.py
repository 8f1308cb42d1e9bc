"""Other architectures behind our interface, against transformers; padding, packing, caches, dropout.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from goodheart.errors import ModelError
from goodheart.models.causal import CausalLM, completion_logprobs
from goodheart.models.hf import HFCausal
from goodheart.models.load import load_causal, save_causal
from tests.models.families import OTHERS, build, saved, some_ids

transformers = pytest.importorskip("transformers")


def logits(model: CausalLM, ids_BT: Tensor) -> Tensor:
    head = model.unembed()
    return head.scale * torch.nn.functional.linear(model(ids_BT), head.weight_VD, head.bias_V)


@pytest.mark.parametrize("name", OTHERS)
def test_logits_and_saved_folder_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path / "a")
    ids_BT = some_ids()
    expected = theirs(ids_BT).logits.detach()
    ours = load_causal(tmp_path / "a")
    assert isinstance(ours, HFCausal)
    assert not ours.is_native
    assert (ours.vocab_size, ours.max_length) == (expected.shape[-1], 128)
    assert ours.width == ours.unembed().weight_VD.shape[1]
    torch.testing.assert_close(logits(ours, ids_BT), expected, rtol=1e-4, atol=1e-4)
    save_causal(ours, tmp_path / "b")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(again(ids_BT).logits, expected, rtol=1e-4, atol=1e-4)
    before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in "ab")
    random = {k: v for k, v in before.items() if "drop" in k or "jitter" in k}
    assert {k: after[k] for k in random} == random  # zero while it is ours, as it was on disk


@pytest.mark.parametrize("name", OTHERS)
def test_training_mode_is_not_random(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    assert torch.equal(model.train()(some_ids()), model.eval()(some_ids()))


def test_the_random_settings_would_have_shown() -> None:
    for name in ("gpt2", "gpt-neox", "opt", "mixtral"):
        model = build(name).train()
        assert not torch.equal(model(some_ids()).logits, model(some_ids()).logits), name


@pytest.mark.parametrize("name", OTHERS)
def test_right_padding_changes_nothing(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model, ids_BT = load_causal(tmp_path), some_ids()
    lengths = [23, 11, 2]
    padded_BT, mask_BT = ids_BT.clone(), torch.zeros(3, 23, dtype=torch.bool)
    for b, n in enumerate(lengths):
        padded_BT[b, n:] = 0
        mask_BT[b, 1:n] = True
    together = completion_logprobs(model, padded_BT, mask_BT, lengths_B=torch.tensor(lengths)).logps_BT
    for b, n in enumerate(lengths):
        alone = completion_logprobs(model, ids_BT[b : b + 1, :n], mask_BT[b : b + 1, :n]).logps_BT
        torch.testing.assert_close(together[b, :n], alone[0], rtol=1e-4, atol=1e-4)


class PaddedCache:
    """What the sampler hands over: keys and values so far, and which positions are real."""

    def __init__(self, mask_BT: Tensor) -> None:
        self.past = transformers.DynamicCache()
        self.mask_BT = mask_BT

    def mask(self, ids_BT: Tensor) -> Tensor:
        return self.mask_BT


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt-neox"])
def test_left_padding_with_positions_changes_nothing(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model, ids_BT = load_causal(tmp_path), some_ids(1, 9)
    alone = model(ids_BT)
    padded_BT = torch.cat((torch.zeros(1, 4, dtype=torch.long), ids_BT), dim=1)
    mask_BT = (torch.arange(13) >= 4)[None].long()
    positions_BT = (torch.arange(13) - 4).clamp(min=0)[None]
    hidden_BTD = model(padded_BT, positions_BT=positions_BT, cache=PaddedCache(mask_BT))
    torch.testing.assert_close(hidden_BTD[:, 4:], alone, rtol=1e-4, atol=1e-4)
    # Without the positions a model with learned ones is wrong: the test sees what it is there to see.
    if name == "gpt2":
        wrong = model(padded_BT, cache=PaddedCache(mask_BT))
        assert not torch.allclose(wrong[:, 4:], alone, atol=1e-2)


def test_cache_continues_a_sequence(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    model, ids_BT = load_causal(tmp_path), some_ids()
    whole = model(ids_BT)
    cache = PaddedCache(torch.ones(3, 20, dtype=torch.long))
    first = model(ids_BT[:, :20], cache=cache)
    cache.mask_BT = torch.ones(3, 23, dtype=torch.long)
    rest = model(ids_BT[:, 20:], positions_BT=torch.arange(20, 23).expand(3, -1), cache=cache)
    torch.testing.assert_close(torch.cat((first, rest), dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "opt", "mixtral"])
def test_packed_rows(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    first, second = some_ids(1, 9, seed=1), some_ids(1, 12, seed=2)
    packed_BT = torch.cat((first, second, torch.zeros(1, 3, dtype=torch.long)), dim=1)
    positions_BT = torch.tensor([[*range(9), *range(12), *range(3)]])
    segments_BT = torch.tensor([[1] * 9 + [2] * 12 + [0] * 3])
    hidden_BTD = model(packed_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    torch.testing.assert_close(hidden_BTD[:, :9], model(first), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden_BTD[:, 9:21], model(second), rtol=1e-4, atol=1e-4)


def test_packing_is_refused_where_windows_would_be_lost(tmp_path: Path) -> None:
    saved("mixtral", tmp_path, sliding_window=4)
    model = load_causal(tmp_path)
    with pytest.raises(ModelError, match="mixtral cannot keep packed sequences apart; switch packing off"):
        model(some_ids(), segments_BT=torch.ones(3, 23, dtype=torch.long), positions_BT=torch.arange(23).expand(3, -1))


def test_activation_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    plain, recomputing = load_causal(tmp_path), load_causal(tmp_path)
    recomputing.checkpoint_activations = True
    assert recomputing.checkpoint_activations
    for model in (plain, recomputing):
        logits(model, some_ids()).square().mean().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), recomputing.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    recomputing.checkpoint_activations = False
    assert not recomputing.checkpoint_activations


def test_bias_scale_and_softcap_of_the_output_layer(tmp_path: Path) -> None:
    # Phi has a bias on its output layer, Cohere multiplies its logits.
    common = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 40,
    }
    phi = transformers.PhiForCausalLM(transformers.PhiConfig(**common, pad_token_id=0))
    torch.nn.init.normal_(phi.lm_head.bias)
    cohere = transformers.CohereForCausalLM(transformers.CohereConfig(**common, pad_token_id=0, logit_scale=0.25))
    for i, theirs in enumerate((phi, cohere)):
        theirs.eval().save_pretrained(tmp_path / str(i))
        ours = load_causal(tmp_path / str(i))
        expected = theirs(some_ids()).logits
        torch.testing.assert_close(logits(ours, some_ids()), expected, rtol=1e-4, atol=1e-4)
        logps = completion_logprobs(ours, some_ids(), torch.ones(3, 23, dtype=torch.bool)).logps_BT
        full = expected.log_softmax(-1)[:, :-1].gather(-1, some_ids()[:, 1:, None])[..., 0]
        torch.testing.assert_close(logps[:, 1:], full, rtol=1e-4, atol=1e-4)


def test_unusual_logits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("gpt2", tmp_path)
    whole = transformers.GPT2LMHeadModel.forward

    def shifted(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        out = whole(self, *args, **kwargs)
        out.logits = out.logits + torch.arange(out.logits.shape[-1])
        return out

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", shifted)
    with pytest.raises(ModelError, match="gpt2: its logits are not its output layer applied to its hidden states"):
        load_causal(tmp_path)


def test_missing_tensors_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack transformer.h.1.mlp.c_fc.weight"):
        load_causal(tmp_path)
