"""Reward models in and out of folders, against AutoModelForSequenceClassification. B batch, T time, N scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from goodheart.errors import ModelError
from goodheart.models.heads import RewardEnsemble, RewardModel, ValueModel, reward_from_causal
from goodheart.models.load import LoraSpec, add_lora, load_causal, load_reward, new_reward, save_reward, trainable
from tests.models.families import SMALL, VOCAB, saved, some_ids

transformers = pytest.importorskip("transformers")
LENGTHS_B = torch.tensor([23, 9, 4])


def padded_ids() -> torch.Tensor:
    ids_BT = some_ids()
    for b, n in enumerate(LENGTHS_B):
        ids_BT[b, n:] = 0
    return ids_BT


def theirs_on(folder: Path) -> torch.Tensor:
    """Scores by transformers, which finds the last token by config.pad_token_id."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.pad_token_id == 0
    ids_BT = padded_ids()
    mask_BT = torch.arange(23) < LENGTHS_B[:, None]
    return model(ids_BT, attention_mask=mask_BT.long()).logits.detach()


NATIVE = ["llama2", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3"]


@pytest.mark.parametrize("name", [*NATIVE, "gpt2", "gpt-neox", "opt", "mixtral"])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_saved_decoder_scores_the_same_in_transformers(name: str, num_heads: int, tmp_path: Path) -> None:
    saved(name, tmp_path / "lm")
    model = new_reward(tmp_path / "lm", num_heads, seed=1)
    scores_BN = model(padded_ids(), LENGTHS_B)
    assert scores_BN.shape == (3, num_heads)
    save_reward(model, tmp_path / "rm", {"score_mean": 0.25})
    torch.testing.assert_close(theirs_on(tmp_path / "rm"), scores_BN, rtol=1e-4, atol=1e-4)
    again = load_reward(tmp_path / "rm")
    assert isinstance(again, RewardModel)
    assert again.num_scores == num_heads
    assert again.is_decoder
    assert again.extra == {"score_mean": 0.25}
    torch.testing.assert_close(again(padded_ids(), LENGTHS_B), scores_BN)
    save_reward(again, tmp_path / "rm2")
    assert json.loads((tmp_path / "rm2" / "goodheart.json").read_text()) == {"score_mean": 0.25}
    torch.testing.assert_close(load_reward(tmp_path / "rm2")(padded_ids(), LENGTHS_B), scores_BN)


def encoder(name: str, folder: Path) -> None:
    common = {"vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0}
    bert = {**common, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config, model = {
        "bert": (transformers.BertConfig(**bert), transformers.BertForMaskedLM),
        "roberta": (transformers.RobertaConfig(**{**bert, "pad_token_id": 1}), transformers.RobertaForMaskedLM),
        "distilbert": (
            transformers.DistilBertConfig(**common, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
            transformers.DistilBertForMaskedLM,
        ),
    }[name]
    torch.manual_seed(0)
    built = model(config)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(0.1 * torch.randn_like(p))
    built.save_pretrained(folder)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_encoders(name: str, tmp_path: Path) -> None:
    encoder(name, tmp_path / "lm")
    model = new_reward(tmp_path / "lm", 2, seed=5)
    assert not model.is_decoder
    assert model.max_length == (62 if name == "roberta" else 64)  # RoBERTa counts positions from 2
    ids_BT = padded_ids()
    scores_BN = model(ids_BT, LENGTHS_B)
    for b, n in enumerate(LENGTHS_B.tolist()):  # batch and padding do not matter, nor does the id that pads
        torch.testing.assert_close(
            model(ids_BT[b : b + 1, :n], LENGTHS_B[b : b + 1])[0], scores_BN[b], rtol=1e-4, atol=1e-5
        )
    other_BT = torch.where(torch.arange(23) < LENGTHS_B[:, None], ids_BT, 50)
    torch.testing.assert_close(model(other_BT, LENGTHS_B), scores_BN, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.train()(ids_BT, LENGTHS_B), model.eval()(ids_BT, LENGTHS_B))  # no dropout
    assert torch.equal(new_reward(tmp_path / "lm", 2, seed=5)(ids_BT, LENGTHS_B), scores_BN)
    assert not torch.allclose(new_reward(tmp_path / "lm", 2, seed=6)(ids_BT, LENGTHS_B), scores_BN)
    save_reward(model, tmp_path / "rm", {"a": 1}, pad_token_id=1 if name == "roberta" else 0)
    torch.testing.assert_close(load_reward(tmp_path / "rm")(ids_BT, LENGTHS_B), scores_BN)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    assert theirs.config.num_labels == 2
    mask_BT = (torch.arange(23) < LENGTHS_B[:, None]).long()
    expected = theirs(torch.where(mask_BT.bool(), ids_BT, theirs.config.pad_token_id), attention_mask=mask_BT).logits
    torch.testing.assert_close(scores_BN, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="encoder"):
        ValueModel.from_reward(load_reward(tmp_path / "rm"))  # type: ignore[arg-type]


def test_encoder_keeps_its_dropout_setting_on_disk(tmp_path: Path) -> None:
    encoder("bert", tmp_path / "lm")
    save_reward(new_reward(tmp_path / "lm"), tmp_path / "rm")
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["hidden_dropout_prob"] == 0.1


def test_reward_model_from_the_hub_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_labels=1)
    theirs = transformers.LlamaForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_reward(tmp_path)
    expected = theirs(padded_ids(), attention_mask=(padded_ids() != 0).long()).logits
    torch.testing.assert_close(ours(padded_ids(), LENGTHS_B), expected, rtol=1e-4, atol=1e-5)


def test_ensemble_folder(tmp_path: Path) -> None:
    saved("llama2", tmp_path / "lm")
    members = [reward_from_causal(load_causal(tmp_path / "lm"), seed=s) for s in range(11)]
    ensemble = RewardEnsemble(members)
    scores_BN = ensemble(padded_ids(), LENGTHS_B)
    save_reward(ensemble, tmp_path / "rm", {"temperature": 1.5})
    again = load_reward(tmp_path / "rm")
    assert isinstance(again, RewardEnsemble)
    assert again.extra == {"temperature": 1.5}
    assert torch.equal(again(padded_ids(), LENGTHS_B), scores_BN)  # member-10 after member-9
    torch.testing.assert_close(theirs_on(tmp_path / "rm" / "member-10"), scores_BN[:, 10:], rtol=1e-4, atol=1e-5)


def test_gathered_state_is_what_is_written(tmp_path: Path) -> None:
    saved("llama3", tmp_path / "lm")
    model = new_reward(tmp_path / "lm")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["score.weight"] += 1
    save_reward(model, tmp_path / "rm", state=state)
    before, after = model(padded_ids(), LENGTHS_B), load_reward(tmp_path / "rm")(padded_ids(), LENGTHS_B)
    model.load_state_dict(state)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(model(padded_ids(), LENGTHS_B), after)


def test_lora_trains_adapter_and_head_and_is_saved_merged(tmp_path: Path) -> None:
    saved("llama2", tmp_path / "lm")
    model = new_reward(tmp_path / "lm")
    add_lora(model, LoraSpec(rank=2, alpha=4))
    names = [n for n, _ in trainable(model)]
    assert "score.weight" in names
    assert all("lora_" in n or n == "score.weight" for n in names)
    with torch.no_grad():
        for _, p in trainable(model):
            p.add_(0.1 * torch.randn_like(p))
    scores_BN = model(padded_ids(), LENGTHS_B)
    save_reward(model, tmp_path / "a")
    save_reward(model, tmp_path / "b", state=model.state_dict())
    for folder in ("a", "b"):
        torch.testing.assert_close(theirs_on(tmp_path / folder), scores_BN, rtol=1e-4, atol=1e-4)


def test_lora_on_an_encoder_leaves_its_classifier_trainable(tmp_path: Path) -> None:
    encoder("bert", tmp_path)
    model = new_reward(tmp_path)
    add_lora(model, LoraSpec(rank=2, targets=["query", "value"]))
    names = [n for n, _ in trainable(model)]
    assert "backbone.hf.classifier.weight" in names
    assert sum("lora_A" in n for n in names) == 4
    assert not any("embeddings" in n for n in names)


def test_peft_reward_adapter_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    saved("llama2", tmp_path / "lm")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1)
    base.config.pad_token_id = 0
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    theirs.eval().save_pretrained(tmp_path / "adapter")
    expected = theirs(padded_ids()).logits
    torch.testing.assert_close(
        load_reward(tmp_path / "adapter")(padded_ids(), LENGTHS_B), expected, rtol=1e-4, atol=1e-4
    )


def test_headless_classifier_is_refused(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(ModelError, match=r"lack a score.weight of shape .scores, 32"):
        load_reward(tmp_path)
