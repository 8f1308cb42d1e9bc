"""Pre-training: on from a real model, or from scratch with a tokenizer of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from goodheart.data.formats import read_records, split_by_prompt
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import DataError, ModelError
from goodheart.models.load import load_causal
from goodheart.stages import tokenizer
from goodheart.stages.pretrain import PretrainConfig, train
from goodheart.stages.sample import SampleConfig, sample
from tests.stages.commands import assert_same_to_the_bit, in_processes, log, options, results, write_rows

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
ANIMALS = ["cat", "dog", "bird", "fish", "cow", "horse", "goat", "hen"]
FOODS = ["milk", "bones", "seeds", "worms", "grass", "hay"]


SENTENCES = [{"text": f"The {a} likes {f}."} for a in ANIMALS for f in FOODS]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of one pattern; the last is many times longer than a row."""
    long = {"text": " ".join(row["text"] for row in SENTENCES[:24])}
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", [*SENTENCES, long])


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    out = tmp_path_factory.mktemp("vocabulary") / "tok"
    return tokenizer.train(tokenizer.TokenizerConfig(data=str(texts), out=out, vocab_size=280))


def config(model: Path, data: Path, out: Path, **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "model": str(model),
        "data": str(data),
        "out": out,
        "held_out": 0.1,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "quiet": True,
    }
    return PretrainConfig(**(settings | changes))


def test_from_scratch_to_sentences_that_end(vocabulary: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sentences = write_rows(tmp_path / "sentences.jsonl", SENTENCES)
    run = train(config(vocabulary, sentences, tmp_path / "r", new_model=SIZES, epochs=40, max_length=64))
    found = results(run.path)
    assert found["eval/loss_before"] == pytest.approx(5.6, abs=0.2)  # ln 280 = 5.63: it knows nothing yet
    assert found["eval/loss"] < 1.5
    assert found["documents"] + found["held_out"] == 48

    # the end token of the tokenizer is known to whoever generates from the folder
    end = load_tokenizer(vocabulary).eos_token_id
    assert json.loads((run.model_dir / "generation_config.json").read_text())["eos_token_id"] == [end]
    saved = json.loads((run.model_dir / "config.json").read_text())
    assert (saved["eos_token_id"], saved["pad_token_id"]) == (end, 0)
    theirs = AutoModelForCausalLM.from_pretrained(run.model_dir).eval()
    ids = AutoTokenizer.from_pretrained(run.model_dir)("The cat likes", return_tensors="pt")["input_ids"]
    assert theirs.generate(ids, max_new_tokens=40, do_sample=False)[0, -1] == end

    data = write_rows(tmp_path / "p.jsonl", [{"prompt": "The cat likes"}, {"prompt": "The hen"}])
    out = sample(
        SampleConfig(
            model=str(run.path),
            prompts=str(data),
            out=tmp_path / "s.jsonl",
            sampling={"max_new_tokens": 40, "temperature": 0},
            answers=1,
            quiet=True,
        )
    )
    for row in map(json.loads, out.read_text().splitlines()):
        assert row["finish"] == ["eos"]
        assert row["completions"][0].endswith(".")


def test_same_seed_same_model_another_seed_another(vocabulary: Path, texts: Path, tmp_path: Path) -> None:
    steps: dict[str, Any] = {"new_model": SIZES, "max_steps": 2, "max_length": 64}
    runs = [train(config(vocabulary, texts, tmp_path / str(i), seed=seed, **steps)) for i, seed in enumerate((0, 0, 1))]
    assert_same_to_the_bit(runs[0].path, runs[1].path)
    assert log(runs[0].path)[0]["loss"] != log(runs[2].path)[0]["loss"]


@pytest.mark.parametrize("pack", [True, False])
def test_long_documents_are_cut_without_losing_a_token(
    vocabulary: Path, texts: Path, tmp_path: Path, pack: bool
) -> None:
    run = train(config(vocabulary, texts, tmp_path / "r", new_model=SIZES, max_steps=1, max_length=16, pack=pack))
    template = Template(load_tokenizer(vocabulary))
    kept, _ = split_by_prompt(read_records(texts, "text").records, 0.1, 0)
    sizes = [len(template.text_ids(record.text)) for record in kept]
    assert max(sizes) > 10 * 16
    assert results(run.path)["trained_tokens_per_epoch"] == sum(size - 1 for size in sizes)


def test_packing_changes_no_loss(vocabulary: Path, texts: Path, tmp_path: Path) -> None:
    once: dict[str, Any] = {"new_model": SIZES, "max_steps": 1, "batch_size": 999, "max_length": 64, "max_tokens": 500}
    packed = train(config(vocabulary, texts, tmp_path / "packed", **once))
    plain = train(config(vocabulary, texts, tmp_path / "plain", pack=False, **once))
    assert results(packed.path)["rows"] < results(plain.path)["rows"] / 1.5
    assert log(packed.path)[0] == pytest.approx(log(plain.path)[0], abs=1e-5)
    assert results(packed.path)["eval/loss"] == pytest.approx(results(plain.path)["eval/loss"], abs=1e-5)


def test_a_real_model_gets_better_at_a_real_text(stories260k: Path, shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "tinyshakespeare").glob("*.txt*")
    run = train(
        config(
            stories260k,
            next(iter(lines)),
            tmp_path / "r",
            max_steps=6,
            batch_size=8,
            max_length=64,
            held_out=0.003,
            warmup_ratio=0.0,
            learning_rate=2e-3,
        )
    )
    found = results(run.path)
    assert found["held_out"] > 5
    assert found["eval/loss"] < found["eval/loss_before"] - 0.2
    # the ends that this model's folder names are kept
    assert json.loads((run.model_dir / "generation_config.json").read_text())["eos_token_id"] == [2, 1]
    assert load_causal(run.model_dir).vocab_size == 512


def test_two_processes_start_from_the_same_weights_and_save_what_was_trained(
    vocabulary: Path, texts: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_steps": 3, "max_length": 64, "batch_size": 4, "held_out": 0.1, "dtype": "bfloat16"}
    alone = train(config(vocabulary, texts, tmp_path / "alone", new_model=SIZES, **settings))
    two = tmp_path / "two"
    sets = options(new_model=SIZES, learning_rate=5e-3, parallel="fsdp", **settings)
    in_processes(2, "pretrain", "--model", vocabulary, "--data", texts, "--out", two, "--quiet", *sets)
    for a, b in zip(log(alone.path), log(two), strict=True):
        assert a == pytest.approx(b, rel=1e-2)  # bfloat16 rounds other sums
    assert log(alone.path)[0]["loss"] == pytest.approx(log(two)[0]["loss"], abs=1e-4)
    # the pieces of fsdp are float32 masters; what is saved is what was computed with
    whole = load_file(two / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in whole.values()} == {torch.bfloat16}
    assert json.loads((two / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name, tensor in load_file(alone.model_dir / "model.safetensors").items():
        torch.testing.assert_close(whole[name].float(), tensor.float(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_model": {"hidden_size": 32}}, "lacks num_hidden_layers, num_attention_heads"),
        ({"new_model": SIZES | {"hidden_sizes": 1}}, "hidden_sizes"),
        ({"new_model": SIZES | {"family": "lama"}}, "lama"),
        ({"new_model": SIZES | {"num_attention_heads": 5}}, "not a multiple of num_attention_heads"),
        ({}, "config.json"),  # a tokenizer's folder is no model
    ],
)
def test_wrong_sizes_are_refused(
    vocabulary: Path, texts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        train(config(vocabulary, texts, tmp_path / "r", **changes))


def test_adapters_on_random_weights_are_refused(vocabulary: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`lora` adapts a trained model"):
        config(vocabulary, texts, tmp_path / "r", new_model=SIZES, lora={"rank": 2})


def test_rows_that_are_no_documents_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match=r"no row that gives a text(.|\n)*Accepted: text"):
        train(config(tiny_model, data, tmp_path / "r"))
    empty = write_rows(tmp_path / "e.jsonl", [{"text": "The cat"}, {"text": " "}, {"text": "The dog"}])
    run = train(config(tiny_model, empty, tmp_path / "r2", held_out=0))
    assert f"{empty}:2" in (run.path / "skipped.jsonl").read_text()
    assert results(run.path)["skipped"] == 1


def test_tokenizers_are_trained_on_whatever_has_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [
        {"prompt": "aaaaaaaa", "chosen": "bbbbbbbb", "rejected": "cccccccc"},
        {"messages": [{"role": "user", "content": "dddddddd"}, {"role": "assistant", "content": "eeeeeeee"}]},
        {"prompt": "f", "chosen": "same", "rejected": "same"},
    ]
    data = write_rows(tmp_path / "d.jsonl", rows * 4)
    out = tokenizer.train(tokenizer.TokenizerConfig(data=str(data), out=tmp_path / "tok", vocab_size=265))
    vocabulary = load_tokenizer(out).get_vocab()
    assert [letter for letter in "abcdef" if letter * 2 in vocabulary] == ["a", "b", "c", "d", "e"]
    assert "265 tokens from 20 texts with 160 characters; set aside 4 rows" in capsys.readouterr().err
