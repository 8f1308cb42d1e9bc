"""DPO and its relatives: the loss is the one stated, the reference is the start, and what is preferred is learned."""

from __future__ import annotations

import math
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from goodheart.data.examples import comparisons
from goodheart.data.formats import read_records, read_rows
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.data.template import PLAIN_TEMPLATE, Template, load_tokenizer
from goodheart.data.tokenizer import train_bpe
from goodheart.errors import ConfigError, DataError
from goodheart.models.load import new_model, save_causal
from goodheart.stages import dpo as stage
from goodheart.stages import offline, references
from goodheart.stages.dpo import DPOConfig, train
from tests.stages.commands import (
    assert_same_to_the_bit,
    in_processes,
    killed_until_done,
    log,
    options,
    results,
    write_rows,
)
from tests.stages.crash import died_after
from tests.stages.test_reward import BAD, FAIR, GOOD, pair_rows

LOSSES = ["sigmoid", "robust", "hinge", "ipo", "simpo", "cpo", "orpo"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pair_rows(40))


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights behind the same tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    spec = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 128}
    template = Template(load_tokenizer(tiny_model))
    save_causal(new_model(spec, vocab_size=template.vocab_size, seed=7), folder)
    template.save(folder)
    return folder


def compared(run: Path) -> list[dict[str, Any]]:
    """The log without what only rounding decides as long as all rewards are the same."""
    rows = log(run)
    del rows[0]["rewards/accuracies"]
    return rows


def config(model: Path, data: Path | list[str], out: Path, **changes: Any) -> DPOConfig:
    settings: dict[str, Any] = {
        "model": str(model),
        "data": data if isinstance(data, list) else str(data),
        "out": out,
        "held_out": 0.25,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "quiet": True,
    }
    return DPOConfig(**(settings | changes))


def logp(folder: Path, prompt: str, answer: str) -> Tensor:
    """Sum over the answer's tokens, its end token included, as transformers computes it."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[*tokenizer(prompt + answer).input_ids, tokenizer.eos_token_id]])
    start = len(tokenizer(prompt).input_ids)
    with torch.no_grad():
        logps_TV = model(ids).logits[0].log_softmax(-1)
    return logps_TV[:-1].gather(1, ids[0, 1:, None])[start - 1 :].sum()


# Learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_preferred_is_learned(tiny_model: Path, pairs: Path, tmp_path: Path, loss: str) -> None:
    changes: dict[str, Any] = {"label_smoothing": 0.1} if loss == "robust" else {}
    if loss == "cpo":  # without a reference long answers begin far behind
        changes = {"beta": 1.0, "length_normalize": True}
    run = train(config(tiny_model, pairs, tmp_path / "r", loss=loss, epochs=10, eval_every=10, **changes))
    rows, found = log(run.path), results(run.path)
    assert found["accuracy"] > 0.9 > 0.6 > found["always_longest"]
    assert found["trained_on"] + found["held_out"] == 40
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"] + 0.01
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [
        s for s in range(1, len(rows) + 1) if s % 10 == 0
    ]
    good, bad = (logp(run.model_dir, "Question 99", a) - logp(tiny_model, "Question 99", a) for a in (GOOD, BAD))
    assert good > bad


@pytest.mark.parametrize("ranking", ["pairs", "plackett-luce"])
def test_rankings_with_ties_are_learned(tiny_model: Path, tmp_path: Path, ranking: str) -> None:
    rows: list[dict[str, Any]] = []
    for n in range(24):
        answers = [(GOOD, 0), (BAD, 2), (FAIR, 1), (BAD + " The dog.", 2)][: 2 + n % 3]
        rows.append({"prompt": f"Q {n}", "completions": [a for a, _ in answers], "ranks": [r for _, r in answers]})
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = train(config(tiny_model, data, tmp_path / "r", ranking=ranking, epochs=15))
    assert results(run.path)["accuracy"] > 0.9
    assert results(run.path)["ties"] > 0


# The loss is the one stated --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "expected"), [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", 25.0), ("robust", math.log(2))]
)
def test_first_step_starts_at_the_reference(
    tiny_model: Path, pairs: Path, tmp_path: Path, loss: str, expected: float
) -> None:
    smoothing = 0.1 if loss == "robust" else 0.0
    run = train(config(tiny_model, pairs, tmp_path / "r", loss=loss, label_smoothing=smoothing, max_steps=1))
    first = log(run.path)[0]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(first["rewards/margins"]) < 1e-5
    assert max(abs(first["rewards/chosen"]), abs(first["rewards/rejected"])) < 1e-5


def test_first_loss_by_hand_with_all_that_a_row_may_say(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q {n}", "chosen": GOOD, "rejected": BAD, "margin": n, "weight": 1.0 + n, "sure": 1 - 0.2 * n}
        for n in range(3)
    ]
    given: dict[str, Any] = {"reference": str(other_model), "soft_labels": "sure", "margin_scale": 0.5, "gamma": 0.1}
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0, beta=0.5, sft_coef=0.2, **given))
    total = torch.zeros(())
    for n in range(3):
        good, bad = (logp(tiny_model, f"Q {n}", a) - logp(other_model, f"Q {n}", a) for a in (GOOD, BAD))
        z, lead, sure, weight = 0.5 * (good - bad), 0.1 + 0.5 * n, 1 - 0.2 * n, 1 + n
        tokens = len(load_tokenizer(tiny_model)(GOOD).input_ids)  # a start token that is not there, an end that is
        nll = -logp(tiny_model, f"Q {n}", GOOD) / tokens
        total += weight * (-sure * logsigmoid(z - lead) - (1 - sure) * logsigmoid(-z - lead) + 0.2 * nll)
    assert log(run.path)[0]["loss"] == pytest.approx(total.item() / 6, rel=1e-4)


def test_ties_are_counted_and_take_no_place(tiny_model: Path, tmp_path: Path) -> None:
    ties = [{"prompt": f"r {n}", "completions": [GOOD, BAD], "ranks": [0, 0]} for n in range(20)]
    data = write_rows(tmp_path / "d.jsonl", [*ties, *pair_rows(4)])
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0, epochs=2, batch_size=2))
    found, note = results(run.path), (run.path / "log.txt").read_text()
    assert (found["trained_on"], found["tied_rows"], found["skipped"], found["steps"]) == (4, 20, 20, 4)
    assert log(run.path)[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert "20 x all answers tie: nothing is preferred to anything" in note
    assert f"{data}:1" in (run.path / "skipped.jsonl").read_text()
    (file,) = run.path.glob("reference-*.safetensors")
    assert len(load_file(file)["logps"]) == 8
    # the likelihood of a whole ranking draws tied answers together: there they stay
    whole = train(config(tiny_model, data, tmp_path / "w", held_out=0, ranking="plackett-luce", max_steps=1))
    assert (results(whole.path)["trained_on"], results(whole.path)["tied_rows"]) == (24, 20)


def test_orders_more_likely_wrong_than_right_are_turned_round(tiny_model: Path, tmp_path: Path) -> None:
    right = [{**row, "sure": 0.8} for row in pair_rows(32)]
    wrong = [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"], "sure": 1 - row["sure"]}
        for row in right
    ]
    runs = [
        train(config(tiny_model, write_rows(tmp_path / f"{n}.jsonl", rows), tmp_path / n, soft_labels="sure", epochs=6))
        for n, rows in (("right", right), ("wrong", wrong))
    ]
    a, b = (results(run.path) for run in runs)
    assert a["accuracy"] == b["accuracy"] > 0.9
    for one, other in zip(*(compared(run.path) for run in runs), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_turned_ranking_is_the_same_ranking_doubted(tiny_model: Path) -> None:
    order = Judgement(Prompt(text="Q", meta={"sure": 0.25}), (Answer(GOOD), Answer(FAIR), Answer(BAD)), (0, 2, 1))
    prepared = comparisons([order, order], Template(load_tokenizer(tiny_model)), 128)
    assert stage._take_likelier_orders(prepared, "sure") == [0.75, 0.75]
    assert [item.ranks for item in prepared.items] == [(2, 0, 1)] * 2
    assert stage._take_likelier_orders(prepared, "other", needed=False) == [1.0, 1.0]


def test_a_cut_answer_has_no_end(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(offline, "comparisons", lambda *given: made.append(comparisons(*given)) or made[-1])
    run = train(config(tiny_model, pairs, tmp_path / "r", max_length=20, max_steps=1))
    whole = comparisons(made[0].records, Template(load_tokenizer(tiny_model)), 128).items
    answers = [
        (a.ids, w.ids)
        for item, full in zip(made[0].items, whole, strict=True)
        for a, w in zip(item.answers, full.answers, strict=True)
    ]
    assert results(run.path)["truncated"] > 10
    assert all(cut == full[:20] for cut, full in answers)


def test_eval_data_is_measured_and_never_trained_on(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    new = [{**row, "prompt": f"New {n}"} for n, row in enumerate(pair_rows(4))]
    other = write_rows(tmp_path / "e.jsonl", [*pair_rows(3), *new, "{torn"])
    run = train(config(tiny_model, pairs, tmp_path / "r", eval_data=str(other), max_steps=1))
    assert (results(run.path)["trained_on"], results(run.path)["held_out"]) == (40, 7)
    assert "3 prompts of eval_data are in the training data too" in (run.path / "log.txt").read_text()
    assert f"{other}:8" in (run.path / "skipped.jsonl").read_text()


@pytest.mark.parametrize("loss", ["sigmoid", "orpo"])
@pytest.mark.parametrize("changes", [{"max_tokens": 1}, {"max_tokens": 100}, {"activation_checkpointing": True}])
def test_memory_settings_change_nothing(
    tiny_model: Path, pairs: Path, tmp_path: Path, loss: str, changes: dict[str, Any]
) -> None:
    plain = train(config(tiny_model, pairs, tmp_path / "plain", loss=loss))
    other = train(config(tiny_model, pairs, tmp_path / "other", loss=loss, **changes))
    for a, b in zip(compared(plain.path), compared(other.path), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


# The reference ---------------------------------------------------------------------------------------------------


def test_an_adapter_starts_at_its_base_and_is_saved_as_one(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, pairs, tmp_path / "r", lora={"rank": 4}, epochs=10, learning_rate=1e-2))
    assert abs(log(run.path)[0]["rewards/margins"]) < 1e-5
    assert results(run.path)["accuracy"] > 0.9
    assert (run.model_dir / "adapter_config.json").is_file()
    # continued, the reference is the adapter as it was loaded, and not its base
    more = train(config(run.path, pairs, tmp_path / "more", lora={"rank": 4}, max_steps=1))
    assert abs(log(more.path)[0]["rewards/margins"]) < 1e-5
    assert log(more.path)[0]["logps/chosen"] != pytest.approx(log(run.path)[0]["logps/chosen"], abs=1)


def test_the_reference_is_read_again_and_never_kept(
    tiny_model: Path, other_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, labels = [], []
    real_load, real_pass = references.load_causal, references.logps_of
    monkeypatch.setattr(references, "load_causal", lambda *a, **k: loaded.append(a[0]) or real_load(*a, **k))
    monkeypatch.setattr(references, "logps_of", lambda *a: labels.append(a[-1]) or real_pass(*a))
    train(config(tiny_model, pairs, tmp_path / "own", max_steps=1))
    assert (loaded, labels) == ([], ["reference"])  # the policy itself, before its first step
    run = train(config(tiny_model, pairs, tmp_path / "r", max_steps=1, reference=str(other_model)))
    (file,) = run.path.glob("reference-*.safetensors")
    assert loaded == [other_model]
    before, whole = log(run.path), file.read_bytes()
    (run.path / "DONE").unlink()
    train(config(tiny_model, pairs, tmp_path / "r", max_steps=1, reference=str(other_model)))
    assert (len(loaded), log(run.path), file.read_bytes()) == (1, before, whole)


def test_the_cache_is_for_these_weights_and_these_tokens(
    tiny_model: Path, other_model: Path, pairs: Path, tmp_path: Path
) -> None:
    def key(name: str, **changes: Any) -> str:
        model = changes.pop("model", tiny_model)
        run = train(config(model, pairs, tmp_path / name, max_steps=1, **changes))
        return next(run.path.glob("reference-*.safetensors")).name

    same = key("a")
    assert key("b", learning_rate=1e-2) == same
    assert len({same, key("c", model=other_model), key("d", max_length=20), key("e", dtype="bfloat16")}) == 4
    assert key("f", model=other_model, reference=str(tiny_model)) == same


def test_losses_without_a_reference_compute_none(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, pairs, tmp_path / "r", loss="simpo", max_steps=1))
    assert not list(run.path.glob("reference*"))


def test_a_reference_of_other_tokens_is_refused(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    spec = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    save_causal(new_model(spec, vocab_size=300, seed=0), tmp_path / "m")
    Template(load_tokenizer(tiny_model)).save(tmp_path / "m")
    with pytest.raises(ConfigError, match="has a vocabulary of 300"):
        train(config(tiny_model, pairs, tmp_path / "r", reference=str(tmp_path / "m")))
    # as many tokens, but others
    train_bpe(["zq xv wk jj pp oo uu yy tt"] * 40, 270, tmp_path / "t", chat_template=PLAIN_TEMPLATE)
    other = Template(load_tokenizer(tmp_path / "t"))
    vocab_size = Template(load_tokenizer(tiny_model)).vocab_size
    save_causal(new_model(spec, vocab_size=vocab_size, seed=0), tmp_path / "n")
    other.save(tmp_path / "n")
    with pytest.raises(ConfigError, match="another tokenizer or chat template"):
        train(config(tiny_model, pairs, tmp_path / "s", reference=str(tmp_path / "n")))


def test_rows_fit_the_context_of_the_reference(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    spec = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 20}
    template = Template(load_tokenizer(tiny_model))
    save_causal(new_model(spec, vocab_size=template.vocab_size, seed=7), tmp_path / "m")
    template.save(tmp_path / "m")
    run = train(config(tiny_model, pairs, tmp_path / "r", reference=str(tmp_path / "m"), max_steps=1))
    assert results(run.path)["truncated"] > 10
    with pytest.raises(ConfigError, match=r"context of reference .*: set max_length to 20 or less"):
        train(config(tiny_model, pairs, tmp_path / "s", reference=str(tmp_path / "m"), max_length=21))


def test_a_model_inside_a_models_folder_is_another(
    tiny_model: Path, other_model: Path, pairs: Path, tmp_path: Path
) -> None:
    outer = shutil.copytree(tiny_model, tmp_path / "m")
    inner = shutil.copytree(other_model, outer / "model")
    run = train(config(outer, pairs, tmp_path / "r", reference=str(inner), max_steps=1))
    assert abs(log(run.path)[0]["rewards/margins"]) > 1e-3
    # of a run folder it is the model
    own = train(config(run.path, pairs, tmp_path / "own", reference=str(run.model_dir), max_steps=1))
    assert abs(log(own.path)[0]["rewards/margins"]) < 1e-5


# What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0}, "greater than 0"),
        ({"loss": "simpo", "reference": "m"}, "compares with no reference"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "no form for labels that may be wrong"),
        ({"loss": "hinge", "soft_labels": "sure"}, "no form for labels that may be wrong"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"label_smoothing": 0.1, "soft_labels": "sure"}, "give one"),
        ({"loss": "robust"}, "needs `label_smoothing`"),
        ({"loss": "orpo", "length_normalize": False}, "leave `length_normalize` out"),
        ({"loss": "ipo", "ranking": "plackett-luce"}, "takes `loss: sigmoid`"),
        ({"loss": "simpo", "ranking": "plackett-luce"}, "takes `loss: sigmoid`"),
        ({"ranking": "plackett-luce", "label_smoothing": 0.1}, "belong to `ranking: pairs`"),
        ({"ranking": "plackett-luce", "margin_scale": 5}, "`margin_scale` belongs to `ranking: pairs`"),
        ({"held_out": 0, "eval_every": 5}, "nothing to measure on"),
        ({"loss": "dpo"}, "Input should be"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(tmp_path, tmp_path, tmp_path, **changes)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"prompt": "a", "completion": GOOD}] * 3, {}, r"no usable preference.*not a preference|no second answer"),
        ([{"prompt": "a", "completions": [GOOD, BAD], "ranks": [0, 0]}] * 3, {}, "nothing is preferred to anything"),
        ([{**row, "weight": 0} for row in pair_rows(3)], {}, "every row weighs 0"),
        (pair_rows(3), {"soft_labels": "sure"}, r"d\.jsonl:1: soft_labels: column `sure` must hold.*found 'nothing'"),
        ([{**row, "sure": 3} for row in pair_rows(3)], {"soft_labels": "sure"}, r"0 to 1; found 3"),
    ],
)
def test_data_that_cannot_teach(
    tiny_model: Path, tmp_path: Path, rows: list[Any], changes: dict[str, Any], message: str
) -> None:
    data = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=message):
        train(config(tiny_model, data, tmp_path / "r", held_out=0, **changes))
    assert not list((tmp_path / "r").glob("reference-*"))  # refused before the work starts


# Real data, stopping, processes ----------------------------------------------------------------------------------


def test_real_comparisons(stories260k: Path, shared: Path, tmp_path: Path) -> None:
    some = [row.data for row in islice(read_rows(shared / "data" / "hh_helpful_base/test.jsonl.gz"), 40)]
    data = write_rows(tmp_path / "d.jsonl", some)
    run = train(config(stories260k, data, tmp_path / "r", max_length=256, max_steps=2))
    found = results(run.path)
    assert found["trained_on"] + found["held_out"] + found["skipped"] == len(
        read_records(str(data), "preference").places
    )
    assert log(run.path)[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert found["prompts"] == found["pairs"] == found["held_out"] > 0
    # two steps from the reference some rewards have moved, and the report is of those
    assert found["margin_mean"] != 0


def test_killed_at_random_instants_equals_never_killed(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 6, "checkpoint_every": 2, "held_out": 0.25, "eval_every": 4}
    settings |= {"batch_size": 8, "learning_rate": 1e-3}
    train(config(tiny_model, pairs, tmp_path / "whole", **settings))
    command = ["dpo", "--model", tiny_model, "--data", pairs, "--quiet", *options(**settings)]
    kills = killed_until_done(tmp_path / "killed" / "DONE", [*command, "--out", tmp_path / "killed"], seed=5)
    assert len({step for step in kills if step > 0}) >= 2
    assert_same_to_the_bit(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_equal_one_also_when_continued(tiny_model: Path, pairs: Path, tmp_path: Path, mode: str) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 9, "held_out": 0.25, "learning_rate": 1e-3}
    alone = train(config(tiny_model, pairs, tmp_path / "alone", **settings))
    two = tmp_path / "two"
    sets = options(parallel=mode, max_tokens=200, checkpoint_every=3, keep_checkpoints=9, **settings)
    command = ["dpo", "--model", tiny_model, "--data", pairs, "--quiet", *sets]
    in_processes(2, *command, "--out", two)
    for a, b in zip(compared(alone.path), compared(two), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert results(two)["margin_mean"] == pytest.approx(results(alone.path)["margin_mean"], abs=1e-4)
    if mode == "fsdp":  # that whole weights continue is shown above
        in_processes(2, *command, "--out", died_after(3, two, tmp_path / "torn"))
        assert "continuing from checkpoint step 3" in (tmp_path / "torn" / "log.txt").read_text()
        assert_same_to_the_bit(two, tmp_path / "torn")
