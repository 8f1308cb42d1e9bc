"""Supervised fine-tuning from the command to the folder: it learns, no split of the work changes it, stopping it
loses nothing, and what it saves others can load.
"""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import ConfigError, DataError, HealthError
from goodheart.models.causal import CausalLM
from goodheart.models.load import load_causal
from goodheart.stages.sft import SFTConfig, train
from goodheart.train import language_model
from tests.stages.commands import (
    assert_same_to_the_bit,
    in_processes,
    killed_until_done,
    log,
    options,
    results,
    start,
    write_rows,
)

WORDS = ["cat", "dog", "sun", "milk", "bones"]
ANSWERS = ["Milk.", "The dog likes bones.", "The sun", "Who likes the sun? The cat likes the sun.", "Bones and milk"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen demonstrations of unequal length: chats, chats of several turns, plain prompts."""
    made: list[dict[str, Any]] = []
    for i in range(13):
        asked, said = f"Who likes the {WORDS[i % 5]}? {i}", ANSWERS[(i * 3) % 5]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        if i % 4 == 0:
            turns += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": ANSWERS[i % 5]}]
        made.append({"prompt": asked, "completion": f" {said}"} if i % 3 == 0 else {"messages": turns})
    return write_rows(tmp_path_factory.mktemp("sft") / "rows.jsonl", made)


def config(model: Path, rows: Path, out: Path, **changes: Any) -> SFTConfig:
    settings: dict[str, Any] = {
        "model": str(model),
        "data": str(rows),
        "out": out,
        "held_out": 0.2,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "quiet": True,
    }
    return SFTConfig(**(settings | changes))


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in log(run)]


# Learning ------------------------------------------------------------------------------------------------------


def test_it_learns_a_few_rows_by_heart_and_says_them(tiny_model: Path, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Who likes milk?"}]
    data = write_rows(
        tmp_path / "d.jsonl",
        [{"prompt": asked, "completion": [{"role": "assistant", "content": "The cat likes milk."}]}] * 4,
    )
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0, epochs=70, learning_rate=1e-2))
    assert losses(run.path)[0] > 4  # 280 tokens at random: log 280 = 5.6
    assert losses(run.path)[-1] < 0.1
    assert results(run.path)["demonstrations"] == 4
    model, template = load_causal(run.model_dir), Template(load_tokenizer(run.model_dir))
    ids = template.prompt_ids(_prompt(asked))
    while ids[-1] != template.eos_id and len(ids) < 60:
        ids.append(int(_logits(model, ids)[-1].argmax()))
    assert template.decode(ids).endswith("The cat likes milk.")


def test_held_out_loss_is_that_of_the_model_before_and_after(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, rows, tmp_path / "r", epochs=3, eval_every=2))
    found = results(run.path)
    assert found["eval/loss"] < found["eval/loss_before"]
    assert found["eval/perplexity"] == pytest.approx(math.exp(found["eval/loss"]))
    assert found["held_out"] > 0
    evaluated = [row["step"] for row in log(run.path) if "eval/loss" in row]
    assert evaluated == [step for step in range(1, found["steps"] + 1) if step % 2 == 0]


def test_the_model_folder_gives_the_same_logits_in_transformers(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(config(tiny_model, rows, tmp_path / "r", max_steps=3))
    theirs = AutoModelForCausalLM.from_pretrained(run.model_dir).eval()
    text = "Human: Who likes the sun?\n\nAssistant:"
    ids = AutoTokenizer.from_pretrained(run.model_dir)(text)["input_ids"]
    expected = theirs(torch.tensor([ids])).logits[0].detach()
    torch.testing.assert_close(_logits(load_causal(run.model_dir), ids), expected, atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id == list(Template(load_tokenizer(run.model_dir)).eos_ids)


# No split of the work changes it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 60, 150])
def test_memory_budget_changes_nothing(tiny_model: Path, rows: Path, tmp_path: Path, max_tokens: int) -> None:
    whole = train(config(tiny_model, rows, tmp_path / "whole", batch_size=7, epochs=2))
    pieces = train(config(tiny_model, rows, tmp_path / "pieces", batch_size=7, epochs=2, max_tokens=max_tokens))
    for a, b in zip(log(whole.path), log(pieces.path), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert results(whole.path) == pytest.approx(results(pieces.path), rel=1e-5)


def test_packing_and_recomputing_change_nothing(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    one_step: dict[str, Any] = {"batch_size": 64, "max_steps": 1}
    plain = train(config(tiny_model, rows, tmp_path / "plain", **one_step))
    packed = train(config(tiny_model, rows, tmp_path / "packed", pack=True, **one_step))
    recomputed = train(config(tiny_model, rows, tmp_path / "again", activation_checkpointing=True, **one_step))
    assert log(plain.path)[0] == pytest.approx(log(packed.path)[0], abs=1e-5)
    assert log(plain.path)[0] == pytest.approx(log(recomputed.path)[0], abs=1e-5)
    # the update, too: seen in the loss on what was held out
    assert results(plain.path) == pytest.approx(results(packed.path), rel=1e-5)
    assert results(plain.path)["eval/loss"] != results(plain.path)["eval/loss_before"]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_equal_one(tiny_model: Path, rows: Path, tmp_path: Path, mode: str) -> None:
    # 13 rows less those held out, by 5: the last batch of an epoch leaves one process without a row
    alone = train(config(tiny_model, rows, tmp_path / "alone", batch_size=5, epochs=2, eval_every=2))
    settings = options(
        parallel=mode, batch_size=5, epochs=2, eval_every=2, held_out=0.2, learning_rate=3e-3, max_tokens=60
    )
    in_processes(2, "sft", "--model", tiny_model, "--data", rows, "--out", tmp_path / "two", "--quiet", *settings)
    assert results(alone.path)["demonstrations"] % 5 == 1
    for a, b in zip(log(alone.path), log(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert results(alone.path) == pytest.approx(results(tmp_path / "two"), rel=1e-4)
    ids = list(range(10, 60))
    expected = _logits(load_causal(alone.model_dir), ids)
    torch.testing.assert_close(_logits(load_causal(tmp_path / "two"), ids), expected, atol=1e-3, rtol=1e-3)


# Stopping it loses nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"pack": True, "dtype": "bfloat16", "max_length": 60}], ids=["plain", "packed"]
)
def test_killed_at_random_instants_equals_never_killed(
    tiny_model: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {"batch_size": 2, "epochs": 10, "checkpoint_every": 2, "held_out": 0.2, "eval_every": 5} | changes
    command = ["sft", "--model", tiny_model, "--data", rows, "--quiet", *options(**settings)]
    train(config(tiny_model, rows, tmp_path / "whole", learning_rate=1e-4, **settings))
    kills = killed_until_done(tmp_path / "killed" / "DONE", [*command, "--out", tmp_path / "killed"], seed=7)
    # The test is worth something only when kills came at several places, in several epochs.
    assert len(kills) >= 5
    assert len({step for step in kills if step > 0}) >= 3
    assert_same_to_the_bit(tmp_path / "whole", tmp_path / "killed")


def test_ctrl_c_saves_and_the_same_command_finishes(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 80, "held_out": 0.2, "batch_size": 4, "learning_rate": 3e-3}
    out = tmp_path / "run"
    process = start("sft", "--model", tiny_model, "--data", rows, "--out", out, "--quiet", *options(**settings))
    metrics = out / "metrics.jsonl"
    for _ in range(6000):
        if process.poll() is not None or (metrics.is_file() and metrics.read_text().count("\n") >= 3):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "stopped after step" in error
    assert "the same command continues" in error
    assert "Traceback" not in error
    kept = [int(p.name[5:]) for p in (out / "checkpoints").glob("step-*")]
    assert kept
    assert f"stopped after step {max(kept)} of" in error
    assert not (out / "DONE").exists()
    assert not (out / "model").exists()

    train(config(tiny_model, rows, out, **settings))
    train(config(tiny_model, rows, tmp_path / "whole", **settings))
    assert f"continuing from checkpoint step {max(kept)}" in (out / "log.txt").read_text()
    assert_same_to_the_bit(tmp_path / "whole", out)


# Variants --------------------------------------------------------------------------------------------------------


def test_adapters_alone_are_saved_and_others_load_and_continue_them(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lora = {"rank": 4, "alpha": 8}
    first = train(config(tiny_model, rows, tmp_path / "first", lora=lora, epochs=4, learning_rate=1e-2))
    files = {p.name for p in first.model_dir.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    found = results(first.path)
    assert found["eval/loss"] < found["eval/loss_before"] - 0.1

    ids = list(range(20, 60))
    expected = _logits(load_causal(first.model_dir), ids)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert not torch.allclose(base(torch.tensor([ids])).logits[0], expected, atol=1e-2)
    theirs = PeftModel.from_pretrained(base, str(first.model_dir)).eval()
    torch.testing.assert_close(theirs(torch.tensor([ids])).logits[0].detach(), expected, atol=1e-4, rtol=1e-4)
    auto = AutoModelForCausalLM.from_pretrained(first.model_dir).eval()  # reads adapters where peft is installed
    torch.testing.assert_close(auto(torch.tensor([ids])).logits[0].detach(), expected, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(first.model_dir).chat_template is not None

    # a run folder with an adapter is a model like any other: here it goes on where it stood
    second = train(config(first.path, rows, tmp_path / "second", epochs=4, learning_rate=1e-2))
    assert results(second.path)["eval/loss_before"] == pytest.approx(found["eval/loss"], abs=1e-5)
    assert results(second.path)["eval/loss"] < found["eval/loss"]
    assert (second.model_dir / "adapter_model.safetensors").is_file()
    named = json.loads((second.model_dir / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == tiny_model
    with pytest.raises(Exception, match="rank 4, but rank 2"):
        train(config(first.path, rows, tmp_path / "third", lora={"rank": 2}))


def test_an_adapter_that_crashed_half_way_ends_the_same(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = train(config(tiny_model, rows, tmp_path / "base", lora={"rank": 2}, max_steps=2))
    settings: dict[str, Any] = {"epochs": 4, "checkpoint_every": 3, "learning_rate": 1e-2}
    for model, name, lora in ((tiny_model, "fresh", {"rank": 2}), (base.path, "continued", None)):
        whole = train(config(model, rows, tmp_path / name, lora=lora, **settings))
        crash_at(5, monkeypatch)
        with pytest.raises(RuntimeError, match="power"):
            train(config(model, rows, tmp_path / f"{name}-crashed", lora=lora, **settings))
        monkeypatch.undo()
        again = train(config(model, rows, tmp_path / f"{name}-crashed", lora=lora, **settings))
        file = "adapter_model.safetensors"
        assert (again.model_dir / file).read_bytes() == (whole.model_dir / file).read_bytes()
        assert log(again.path) == log(whole.path)
        saved = load_file(whole.path / "checkpoints" / "step-12" / "tensors.safetensors")
        weights = [name for name in saved if name.startswith("model/")]
        assert weights
        assert all("lora_" in name for name in weights)  # the frozen trunk is not written again and again


def crash_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = language_model.next_token_loss, []

    def crashing(*arguments: Any) -> Any:
        calls.append(1)
        if torch.is_grad_enabled() and len(calls) > call:
            raise RuntimeError("power cut")
        return real(*arguments)

    monkeypatch.setattr(language_model, "next_token_loss", crashing)


def test_an_adapter_is_not_sharded(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    base = train(config(tiny_model, rows, tmp_path / "base", lora={"rank": 2}, max_steps=1))
    with pytest.raises(ConfigError, match="use parallel ddp"):
        train(config(base.path, rows, tmp_path / "r", parallel="fsdp"))


def test_bfloat16_stays_near_float32(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    exact = train(config(tiny_model, rows, tmp_path / "exact", epochs=4))
    narrow = train(config(tiny_model, rows, tmp_path / "narrow", epochs=4, dtype="bfloat16"))
    assert losses(narrow.path) != losses(exact.path)
    # 8 bits of mantissa: errors of a few thousandths of the logits, over twelve steps
    assert losses(narrow.path) == pytest.approx(losses(exact.path), rel=0.02)
    assert losses(exact.path)[-1] < losses(exact.path)[0] - 0.5
    saved = json.loads((narrow.model_dir / "config.json").read_text())
    assert "bfloat16" in (saved.get("torch_dtype"), saved.get("dtype"))


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = language_model.next_token_loss, []

    def broken(model: CausalLM, batch: Any, num_tokens: int) -> Any:
        loss, sums = real(model, batch, num_tokens)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 5 else loss), sums

    settings: dict[str, Any] = {"epochs": 3, "held_out": 0, "checkpoint_every": 1, "batch_size": 4}
    with monkeypatch.context() as patch:
        patch.setattr(language_model, "next_token_loss", broken)
        with pytest.raises(HealthError, match=r"step 5, .*rows\.jsonl:\d+, ") as error:
            train(config(tiny_model, rows, tmp_path / "run", **settings))
    assert "learning_rate" in str(error.value)
    assert max(int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").iterdir()) == 4
    assert not (tmp_path / "run" / "DONE").exists()
    assert "stopped: HealthError: step 5" in (tmp_path / "run" / "log.txt").read_text()
    # nothing of the broken step is left behind
    train(config(tiny_model, rows, tmp_path / "run", **settings))
    train(config(tiny_model, rows, tmp_path / "whole", **settings))
    assert_same_to_the_bit(tmp_path / "whole", tmp_path / "run")


# Rows ------------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_listed(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    good = rows.read_text().splitlines()
    data = write_rows(
        tmp_path / "d.jsonl",
        [
            *good[:6],
            "{torn",
            {"prompt": "x", "completion": ""},
            {"prompt": "The cat. " * 99, "completion": "y"},
            *good[6:],
        ],
    )
    run = train(config(tiny_model, data, tmp_path / "r", max_steps=1, max_length=40))
    listed = [json.loads(line) for line in (run.path / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["where"].rsplit(":", 1)[-1]: row["reason"] for row in listed}
    assert reasons["7"].startswith("not valid JSON")
    assert reasons["8"] == "completion is empty"
    assert reasons["9"] == "prompt leaves no room for an answer within max_length"
    assert all(row["where"].startswith(f"{data}:") for row in listed)
    assert results(run.path)["skipped"] == len(listed)
    assert results(run.path)["truncated"] > 0
    assert f"set aside {len(listed)} rows" in (run.path / "log.txt").read_text()


def test_rows_held_out_that_cannot_be_used_are_listed_too(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    bad = write_rows(
        tmp_path / "eval.jsonl", [*rows.read_text().splitlines()[:2], {"prompt": "a. " * 99, "completion": "y"}]
    )
    run = train(config(tiny_model, rows, tmp_path / "r", eval_data=str(bad), max_steps=1))
    found = results(run.path)
    assert (found["demonstrations"], found["held_out"], found["skipped"]) == (13, 2, 1)
    assert f"{bad}:3" in (run.path / "skipped.jsonl").read_text()
    # both were trained on
    assert "2 prompts of eval_data are in the training data too" in (run.path / "log.txt").read_text()


def test_nothing_usable_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": f"{i} The cat. " * 99, "completion": "y"} for i in range(3)])
    with pytest.raises(DataError, match="no usable demonstration; set aside: 3 x prompt leaves no room"):
        train(config(tiny_model, data, tmp_path / "r", held_out=0))


def test_a_context_longer_than_the_models_is_refused(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_length 129 is more than the model's context of 128"):
        train(config(tiny_model, rows, tmp_path / "r", max_length=129))


def test_a_finished_run_is_returned_as_it_is(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, rows, tmp_path / "r", max_steps=1))
    before = (run.model_dir / "model.safetensors").stat().st_mtime_ns
    assert train(config(tiny_model, rows, tmp_path / "r", max_steps=1)).results == run.results
    assert (run.model_dir / "model.safetensors").stat().st_mtime_ns == before


def test_a_command_line_says_what_it_did(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    process = start(
        "sft",
        "--model",
        tiny_model,
        "--data",
        rows,
        "--out",
        tmp_path / "r",
        *options(batch_size=4, max_steps=2, held_out=0.2),
    )
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "eval/loss" in output
    assert f"model written to {tmp_path / 'r' / 'model'}" in output.replace("\n", "")
    assert "fine-tuning 2/2 steps" in error
    assert "Warning" not in error


def _logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        head = model.unembed()
        return model(torch.tensor([ids]))[0] @ head.weight_VD.t()


def _prompt(messages: list[dict[str, str]]) -> Any:
    from goodheart.data.records import Message, Prompt

    return Prompt(messages=tuple(Message(**m) for m in messages))
