"""Models from a small description."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from goodheart.errors import ModelError
from goodheart.models.architecture import FAMILIES
from goodheart.models.load import load_causal, new_model, save_causal

SPEC = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "head_dim": 16}


def test_initialisation_as_documented() -> None:
    model = new_model({**SPEC, "intermediate_size": 256}, vocab_size=500, seed=3)
    state = model.state_dict()
    assert state["model.embed_tokens.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    assert state["model.layers.2.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    # 0.02 / sqrt(2 * 8 layers) = 0.005
    assert state["model.layers.2.mlp.down_proj.weight"].std().item() == pytest.approx(0.005, rel=0.03)
    assert state["model.layers.7.self_attn.o_proj.weight"].std().item() == pytest.approx(0.005, rel=0.05)
    assert (state["model.norm.weight"] == 1).all()
    assert model.lm_head is not None
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 500 * 64 + 8 * (4 * 64 * 64 + 3 * 64 * 256 + 2 * 64) + 64


def test_seed_decides() -> None:
    a, b, c = (new_model(SPEC, vocab_size=50, seed=s) for s in (1, 1, 2))
    torch.manual_seed(99)
    ids = torch.arange(10)[None]
    assert torch.equal(a(ids), b(ids))
    assert not torch.allclose(a(ids), c(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_starts_and_loads_in_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = new_model(
        {**SPEC, "family": family, "num_key_value_heads": 2}, vocab_size=50, seed=0, token_ids={"eos_token_id": 2}
    )
    save_causal(model, tmp_path)
    ids = torch.arange(20)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == model.hf_config["architectures"][0]
    torch.testing.assert_close(theirs.model(ids).last_hidden_state, model(ids), rtol=1e-4, atol=1e-4)
    assert torch.equal(load_causal(tmp_path)(ids), model(ids))
    # A fresh model is close to ignorant: no token far from 1/50.
    head = model.unembed()
    logps = (model(ids) @ head.weight_VD.t()).log_softmax(-1)
    assert logps.max().item() < -1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "bert"}, "model family 'bert' is unknown; choose one of llama"),
        ({"hiden_size": 3}, "does not fit the llama family: unknown setting hiden_size"),
        ({"num_attention_heads": 3, "head_dim": 15}, "does not fit the llama family"),
    ],
)
def test_wrong_descriptions(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        new_model({**SPEC, **change}, vocab_size=10, seed=0)


def test_missing_sizes_and_uneven_heads() -> None:
    with pytest.raises(ModelError, match="lacks num_hidden_layers, num_attention_heads"):
        new_model({"hidden_size": 8}, vocab_size=10, seed=0)
    with pytest.raises(ModelError, match="hidden_size 10 is not a multiple of num_attention_heads 4"):
        new_model({"hidden_size": 10, "num_hidden_layers": 1, "num_attention_heads": 4}, vocab_size=10, seed=0)
