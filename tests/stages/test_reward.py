"""Reward models from every kind of label: they learn it, the loss is the one stated, and others load the folder."""

from __future__ import annotations

import json
import math
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import logsigmoid

from goodheart.data.batches import Example
from goodheart.data.examples import Compared
from goodheart.data.formats import opening, read_rows
from goodheart.data.records import Answer, Prompt
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import ConfigError, DataError
from goodheart.judges.load import load_judge
from goodheart.models.heads import RewardEnsemble
from goodheart.models.load import load_reward, new_reward
from goodheart.stages import labels
from goodheart.stages import reward as stage
from goodheart.stages.reward import RewardConfig, train
from tests.stages.commands import (
    assert_same_to_the_bit,
    in_processes,
    killed_until_done,
    log,
    options,
    results,
    write_rows,
)

GOOD, BAD, FAIR = " The cat likes milk.", " The dog likes bones.", " Who likes the sun?"


def pair_rows(count: int) -> list[dict[str, Any]]:
    """Milk is preferred to bones, whatever was asked and however long the answer is."""
    filler = [" The sun." * (n % 3) for n in range(count)]
    return [{"prompt": f"Question {n}", "chosen": GOOD + filler[n], "rejected": BAD + filler[-n]} for n in range(count)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pair_rows(40))


def config(model: Path, data: Path | list[str], out: Path, **changes: Any) -> RewardConfig:
    settings: dict[str, Any] = {
        "model": str(model),
        "data": data if isinstance(data, list) else str(data),
        "out": out,
        "held_out": 0.25,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "quiet": True,
    }
    return RewardConfig(**(settings | changes))


def scores_of(folder: Path, prompt: str, *answers: str) -> list[float]:
    found = load_judge(str(folder)).score([Prompt(text=prompt)] * len(answers), [Answer(a) for a in answers])
    return [score for score in found if score is not None]


def first_scores(model: Path, rows: list[tuple[str, str]], seed: int = 0) -> torch.Tensor:
    """What the model says of (prompt, answer) rows before the first step."""
    template, fresh = Template(load_tokenizer(model)), new_reward(model, seed=seed)
    ids = [template.text_ids(prompt + answer) for prompt, answer in rows]
    return torch.stack([fresh(torch.tensor([i]), torch.tensor([len(i)]))[0, 0] for i in ids]).detach()


# Learning --------------------------------------------------------------------------------------------------------


def test_pairs_are_learned_and_reported_beside_the_ruler(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, pairs, tmp_path / "r", epochs=4, eval_every=5))
    found = results(run.path)
    assert found["accuracy"] > 0.9
    assert found["accuracy"] > found["always_longest"]
    assert found["accuracy_low"] < found["accuracy"] <= found["accuracy_high"]
    assert found["always_first"] is None  # nobody noted what was shown first
    assert (found["kind"], found["trained_on"] + found["held_out"]) == ("preference", 40)
    assert found["pairs"] == found["held_out"]
    rows = log(run.path)
    assert rows[-1]["loss"] < 0.2 < rows[0]["loss"]
    assert rows[-1]["rewards/accuracies"] == 1.0
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [s for s in range(1, len(rows) + 1) if s % 5 == 0]
    good, bad = scores_of(run.path, "Question 99", GOOD, BAD)
    assert good > bad + 1
    extra = json.loads((run.model_dir / "goodheart.json").read_text())
    assert extra["score_mean"] == pytest.approx(found["score_mean"])
    assert extra["calibration_temperature"] == found["calibration_temperature"]
    assert extra["plain_prompts"] == "raw"


@pytest.mark.parametrize("ranking", ["pairs", "plackett-luce"])
def test_rankings_with_ties_are_learned(tiny_model: Path, tmp_path: Path, ranking: str) -> None:
    rows: list[dict[str, Any]] = []
    for n in range(24):
        answers = [(GOOD, 0), (BAD, 2), (FAIR, 1), (BAD + " The dog.", 2)]
        kept = answers[: 2 + n % 3]  # two, three or four answers in one batch
        rows.append({"prompt": f"Q {n}", "completions": [a for a, _ in kept], "ranks": [r for _, r in kept]})
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = train(config(tiny_model, data, tmp_path / "r", ranking=ranking, epochs=8))
    found = results(run.path)
    assert found["accuracy"] > 0.9
    assert found["ties"] > 0
    good, fair, bad = scores_of(run.path, "Q 99", GOOD, FAIR, BAD)
    assert good > fair > bad


def test_ratings_are_learned(tiny_model: Path, tmp_path: Path) -> None:
    said = [(GOOD, 5.0), (FAIR, 3.0), (BAD, 1.0)]
    rows = [{"prompt": f"Q {n}", "completion": said[n % 3][0], "score": said[n % 3][1]} for n in range(36)]
    run = train(config(tiny_model, write_rows(tmp_path / "d.jsonl", rows), tmp_path / "r", epochs=12))
    found = results(run.path)
    assert found["kind"] == "rating"
    assert found["spearman"] > 0.9
    assert found["rmse"] < 0.5  # in standard deviations of the ratings
    good, fair, bad = scores_of(run.path, "Q 99", GOOD, FAIR, BAD)
    assert good > fair > bad
    assert abs(found["score_mean"]) < 0.3


def test_thumbs_are_learned(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q {n}", "completion": GOOD if n % 4 else BAD, "label": bool(n % 4)} for n in range(40)]
    run = train(config(tiny_model, write_rows(tmp_path / "d.jsonl", rows), tmp_path / "r", epochs=8))
    found = results(run.path)
    assert (found["kind"], found["auc"], found["accuracy"]) == ("thumb", 1.0, 1.0)
    good, bad = scores_of(run.path, "Q 99", GOOD, BAD)
    assert good > 0 > bad


# The loss is the one stated --------------------------------------------------------------------------------------


def test_first_loss_by_hand_with_margins_and_weights(tiny_model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Q {n}", "chosen": GOOD, "rejected": BAD, "margin": 0.5 * n, "weight": 1.0 + n} for n in range(3)
    ]
    run = train(
        config(tiny_model, write_rows(tmp_path / "d.jsonl", rows), tmp_path / "r", held_out=0, center_coefficient=0.1)
    )
    chosen_P = first_scores(tiny_model, [(r["prompt"], GOOD) for r in rows])
    rejected_P = first_scores(tiny_model, [(r["prompt"], BAD) for r in rows])
    margin_P, weight_P = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 2.0, 3.0])
    # weighted mean of -log sigmoid(s_c - s_r - margin), plus a tenth of the mean square of s_c + s_r
    expected = (weight_P * -logsigmoid(chosen_P - rejected_P - margin_P)).sum() / 6
    expected += 0.1 * (chosen_P + rejected_P).square().mean()
    assert log(run.path)[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_a_ranking_weighs_as_much_as_a_pair_and_ties_teach_nothing(tiny_model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "completions": [GOOD, BAD, FAIR], "ranks": [0, 1, 1]},
        {"prompt": "q", "chosen": GOOD, "rejected": BAD},
        {"prompt": "r", "completions": [GOOD, BAD], "ranks": [0, 0]},
    ]
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0, center_coefficient=0, max_steps=1))
    good, bad, fair = first_scores(tiny_model, [("p", GOOD), ("p", BAD), ("p", FAIR)])
    q = first_scores(tiny_model, [("q", GOOD), ("q", BAD)])
    # the mean of the ranking's two ordered pairs, and the pair; the tie leaves the denominator too
    ranking = (-logsigmoid(good - bad) - logsigmoid(good - fair)) / 2
    expected = (ranking - logsigmoid(q[0] - q[1])) / 2
    assert log(run.path)[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_a_step_of_nothing_but_ties_stays_small(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q {n}", "completions": [GOOD, BAD], "ranks": [0, 0]} for n in range(4)]
    data = write_rows(tmp_path / "d.jsonl", [*rows, *pair_rows(4)])
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0, batch_size=1, epochs=1))
    # what is left is the pull to 0: a hundredth of (s_1 + s_2)^2
    assert all(row["loss"] < 5 for row in log(run.path))
    assert all(row["grad_norm"] < 50 for row in log(run.path))


def test_ties_teach_that_answers_are_close_when_asked_to(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q {n}", "completions": [GOOD, BAD], "ranks": [0, 0]} for n in range(16)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = train(config(tiny_model, data, tmp_path / "r", tie_margin=0.5, epochs=6, center_coefficient=0))
    good, bad = scores_of(run.path, "Q 99", GOOD, BAD)
    before = first_scores(tiny_model, [("Q 99", GOOD), ("Q 99", BAD)])
    assert abs(good - bad) < 0.3 * abs(before[0] - before[1]).item()


@pytest.mark.parametrize("changes", [{"max_tokens": 1}, {"max_tokens": 100}, {"activation_checkpointing": True}])
def test_memory_settings_change_nothing(tiny_model: Path, pairs: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = train(config(tiny_model, pairs, tmp_path / "plain", heads=2))
    other = train(config(tiny_model, pairs, tmp_path / "other", heads=2, **changes))
    for a, b in zip(log(plain.path), log(other.path), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_recomputing_activations_reaches_the_trunk(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = stage.ready
    monkeypatch.setattr(stage, "ready", lambda model, *rest: seen.append(model) or real(model, *rest))
    train(config(tiny_model, pairs, tmp_path / "r", activation_checkpointing=True, max_steps=1))
    assert seen[0].backbone.checkpoint_activations is True


def test_micro_batches_keep_the_budget_with_padding() -> None:
    def item(tokens: int, answers: int) -> Compared:
        example = Example(list(range(tokens)), [False] * tokens)
        return Compared((example,) * answers, tuple(range(answers)))

    items = [item(40, 2), item(10, 10), item(10, 10), item(39, 2), item(5, 1)]
    found = labels.pieces(items, 200)
    assert sorted(i for piece in found for i in piece) == [0, 1, 2, 3, 4]
    for piece in found:
        longest = max(items[i].tokens for i in piece)
        assert longest * sum(len(items[i].answers) for i in piece) <= 200
    assert len(labels.pieces(items, 1)) == 5  # one prompt's answers are never parted


# Ensembles, adapters, encoders -----------------------------------------------------------------------------------


def test_heads_share_a_trunk_and_differ(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    run = train(config(tiny_model, pairs, tmp_path / "r", heads=3, epochs=3))
    model = load_reward(run.model_dir)
    template = Template(load_tokenizer(run.model_dir))
    ids = torch.tensor([template.text_ids("Question 7" + GOOD)])
    scores_BN = model(ids, torch.tensor([ids.shape[1]]))
    assert scores_BN.shape == (1, 3)
    assert len(set(scores_BN[0].tolist())) == 3
    theirs = AutoModelForSequenceClassification.from_pretrained(run.model_dir).eval()
    torch.testing.assert_close(theirs(ids).logits, scores_BN, atol=1e-4, rtol=1e-4)
    assert scores_of(run.path, "Question 7", GOOD)[0] == pytest.approx(scores_BN.mean().item(), abs=1e-5)


def test_each_head_has_its_own_bootstrap_sample(tiny_model: Path, tmp_path: Path) -> None:
    items = [Compared((), (0, 1), weight=0.5)] * 30 + [Compared((), (0, 0))] * 10
    own = labels.trust(items, 4, config(tiny_model, tmp_path / "d", tmp_path / "r"))
    assert own.shape == (40, 4)
    assert not own[30:].any()  # ties teach nothing here
    assert set((own[:30] / 0.5).unique().tolist()) >= {0.0, 1.0, 2.0}
    assert not torch.equal(own[:, 0], own[:, 1])
    plain = labels.trust(items, 4, config(tiny_model, tmp_path / "d", tmp_path / "r", bootstrap=False))
    assert plain[:30].unique().tolist() == [0.5]
    one = labels.trust(items, 1, config(tiny_model, tmp_path / "d", tmp_path / "r", tie_margin=0.5))
    assert one[:, 0].tolist() == [0.5] * 30 + [1.0] * 10


def test_members_are_whole_models(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    run = train(config(tiny_model, pairs, tmp_path / "r", members=2, epochs=3))
    assert results(run.path)["accuracy"] > 0.8
    model = load_reward(run.model_dir)
    assert isinstance(model, RewardEnsemble)
    ids = torch.tensor([Template(load_tokenizer(run.model_dir)).text_ids("Question 7" + GOOD)])
    scores_BN = model(ids, torch.tensor([ids.shape[1]]))
    for i in range(2):
        theirs = AutoModelForSequenceClassification.from_pretrained(run.model_dir / f"member-{i}").eval()
        torch.testing.assert_close(theirs(ids).logits[:, 0], scores_BN[:, i], atol=1e-4, rtol=1e-4)
    assert scores_BN[0, 0] != scores_BN[0, 1]


def test_adapters_train_the_head_and_not_the_trunk_and_are_merged(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    run = train(config(tiny_model, pairs, tmp_path / "r", lora={"rank": 4}, epochs=5, learning_rate=1e-2))
    assert results(run.path)["accuracy"] > 0.8
    assert not (run.model_dir / "adapter_config.json").exists()
    trained, before = load_reward(run.model_dir).state_dict(), new_reward(tiny_model).state_dict()
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, before[name])}
    assert "score.weight" in changed
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    assert {p.name for p in (run.path / "checkpoints").glob("*")} == set()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a WordPiece vocabulary of its own."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([GOOD, BAD, FAIR, "Question 0123456789"] * 5, vocab_size=120, show_progress=False)
    tokenizer.save_model(str(folder))
    fast = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(fast), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 8}, "learning_rate": 1e-2}], ids=["whole", "lora"])
def test_an_encoder_learns_too_and_transformers_agrees(
    bert: Path, pairs: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = train(config(bert, pairs, tmp_path / "r", **({"epochs": 6} | changes)))
    assert results(run.path)["accuracy"] > 0.8
    tokenizer = AutoTokenizer.from_pretrained(run.model_dir)
    theirs = AutoModelForSequenceClassification.from_pretrained(run.model_dir).eval()
    texts = ["Question 7" + GOOD, "Question 7" + BAD + " The sun. The sun."]
    expected = theirs(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    found = scores_of(run.path, "Question 7", GOOD, BAD + " The sun. The sun.")
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


# The folder ------------------------------------------------------------------------------------------------------


def test_transformers_gives_the_same_scores_in_any_batch(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = train(config(tiny_model, pairs, tmp_path / "r", max_steps=3))
    assert_transformers_agrees(run.model_dir, AutoModelForSequenceClassification, AutoTokenizer)


def test_an_end_token_as_padding_is_replaced(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = shutil.copytree(tiny_model, tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Template(load_tokenizer(base)).pad_id in Template(load_tokenizer(base)).eos_ids
    run = train(config(base, pairs, tmp_path / "r", max_steps=3))
    saved = json.loads((run.model_dir / "config.json").read_text())
    assert saved["pad_token_id"] == load_tokenizer(run.model_dir).pad_token_id == 0
    assert_transformers_agrees(run.model_dir, AutoModelForSequenceClassification, AutoTokenizer)


def assert_transformers_agrees(folder: Path, models: Any, tokenizers: Any) -> None:
    answers = [GOOD, BAD + " The sun. The sun.", ""]
    found = scores_of(folder, "Question 7", *answers)
    tokenizer, theirs = tokenizers.from_pretrained(folder), models.from_pretrained(folder).eval()
    end = tokenizer.eos_token
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer([f"Question 7{answer}{end}" for answer in answers], padding=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        scores = theirs(**batch).logits[:, 0].tolist()
        assert scores == pytest.approx(found, abs=1e-4), side


# Splits and kinds ------------------------------------------------------------------------------------------------


def test_no_conversation_is_on_both_sides(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*turns: str) -> str:
        return "".join(f"\n\n{'Human' if i % 2 == 0 else 'Assistant'}: {turn}" for i, turn in enumerate(turns))

    rows: list[dict[str, Any]] = []
    for n in range(30):  # each dialogue also as its own first turns, and some in the other file
        rows.append({"chosen": said(f"Who {n}?", "A cat"), "rejected": said(f"Who {n}?", "A dog")})
        rows.append(
            {"chosen": said(f"Who {n}?", "A cat", "And?", "x"), "rejected": said(f"Who {n}?", "A cat", "And?", "y")}
        )
    first, second = write_rows(tmp_path / "a.jsonl", rows[::3]), write_rows(tmp_path / "b.jsonl", rows)
    given: list[list[Any]] = []
    real = stage.comparisons

    def spy(records: Any, *rest: Any) -> Any:
        given.append(list(records))
        return real(given[-1], *rest)

    monkeypatch.setattr(stage, "comparisons", spy)
    train(config(tiny_model, [str(first), str(second)], tmp_path / "r", max_steps=1))
    kept, aside = ({opening(record) for record in part} for part in given)
    assert len(kept) + len(aside) == 30
    assert len(aside) >= 3
    assert not kept & aside
    assert sum(map(len, given)) == 80


KINDS: dict[str, dict[str, Any]] = {
    "preference": {"prompt": "a", "chosen": GOOD, "rejected": BAD},
    "rating": {"prompt": "b", "completion": GOOD, "score": 3},
    "thumb": {"prompt": "c", "completion": GOOD, "label": True},
    "demonstration": {"prompt": "d", "completion": GOOD},
}


@pytest.mark.parametrize(
    "kinds", [("preference", "rating"), ("thumb", "preference"), ("rating", "thumb"), ("preference", "thumb", "rating")]
)
def test_labels_of_several_kinds_are_refused(tiny_model: Path, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    data = write_rows(tmp_path / "d.jsonl", [KINDS[kind] for kind in kinds] * 3)
    counted = ", ".join(f"3 of {kind}" for kind in kinds)
    with pytest.raises(DataError, match=rf"several kinds in one run \(rows: {counted}\); .*--set kind="):
        train(config(tiny_model, data, tmp_path / "r"))


def test_a_kind_that_was_chosen_is_taken_and_the_rest_listed(tiny_model: Path, tmp_path: Path) -> None:
    rows = [*pair_rows(6), KINDS["rating"], KINDS["thumb"]]
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = train(config(tiny_model, data, tmp_path / "r", kind="thumb", max_steps=1, held_out=0))
    assert results(run.path)["kind"] == "thumb"
    assert results(run.path)["trained_on"] == 2 * 6 + 1  # both ends of each pair, and the thumb
    assert f"{data}:7" in (run.path / "skipped.jsonl").read_text()


def test_rows_without_a_label_are_listed_and_nothing_else_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [*pair_rows(6), KINDS["demonstration"]])
    run = train(config(tiny_model, data, tmp_path / "r", max_steps=1, held_out=0))
    listed = json.loads((run.path / "skipped.jsonl").read_text())
    assert (listed["where"], listed["reason"]) == (f"{data}:7", "a demonstration, not a preference")
    only = write_rows(tmp_path / "e.jsonl", [KINDS["demonstration"]] * 2)
    with pytest.raises(DataError, match=r"no labels \(rows: 2 of demonstration\); a reward model learns from"):
        train(config(tiny_model, only, tmp_path / "r2"))


def test_eval_data_is_measured_and_an_overlap_is_said(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    new = [{**row, "prompt": f"New {n}"} for n, row in enumerate(pair_rows(4))]
    other = write_rows(tmp_path / "e.jsonl", [*pair_rows(3), *new, "{torn"])
    run = train(config(tiny_model, pairs, tmp_path / "r", eval_data=str(other), max_steps=1))
    assert (results(run.path)["trained_on"], results(run.path)["held_out"]) == (40, 7)
    assert "3 prompts of eval_data are in the training data too" in (run.path / "log.txt").read_text()
    assert f"{other}:8" in (run.path / "skipped.jsonl").read_text()


def test_plain_prompts_may_be_what_a_user_says(tiny_model: Path, tmp_path: Path) -> None:
    plain = pair_rows(8)
    chat = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")},
        }
        for row in plain
    ]
    once: dict[str, Any] = {"held_out": 0, "max_steps": 1}
    a = train(config(tiny_model, write_rows(tmp_path / "p.jsonl", plain), tmp_path / "a", plain_prompts="user", **once))
    b = train(config(tiny_model, write_rows(tmp_path / "c.jsonl", chat), tmp_path / "b", **once))
    assert log(a.path) == log(b.path)
    assert json.loads((a.model_dir / "goodheart.json").read_text())["plain_prompts"] == "user"


def test_too_few_prompts_to_hold_some_out(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [KINDS["preference"]] * 5)
    with pytest.raises(DataError, match=r"cannot hold out a part of 1 conversation.*held_out=0"):
        train(config(tiny_model, data, tmp_path / "r"))


@pytest.mark.parametrize("changes", [{"tie_margin": 0.5}, {"label_smoothing": 0.1}])
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="belong to `ranking: pairs`"):
        config(tmp_path, tmp_path, tmp_path, ranking="plackett-luce", **changes)


def test_context_of_the_model_bounds_the_rows(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than the model's context of 128"):
        train(config(tiny_model, pairs, tmp_path / "r", max_length=500))


# Real data, stopping, processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["hh_helpful_base/test.jsonl.gz", "oasst_zh/oaast_rm_zh.json.gz"])
def test_real_comparisons(stories260k: Path, shared: Path, tmp_path: Path, source: str) -> None:
    some = [row.data for row in islice(read_rows(shared / "data" / source), 40)]
    data = write_rows(tmp_path / "d.jsonl", some)
    run = train(config(stories260k, data, tmp_path / "r", max_length=256, max_steps=2, learning_rate=1e-4))
    found = results(run.path)
    assert found["trained_on"] + found["held_out"] + found["skipped"] == 40
    assert found["trained_on"] > 8
    assert 0 <= found["accuracy"] <= 1
    assert found["truncated"] > 0
    assert math.isfinite(log(run.path)[-1]["loss"])


def test_killed_at_random_instants_equals_never_killed(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"heads": 2, "epochs": 6, "checkpoint_every": 2, "held_out": 0.25, "eval_every": 4}
    settings |= {"batch_size": 8, "learning_rate": 3e-3}
    train(config(tiny_model, pairs, tmp_path / "whole", **settings))
    command = ["reward", "--model", tiny_model, "--data", pairs, "--quiet", *options(**settings)]
    kills = killed_until_done(tmp_path / "killed" / "DONE", [*command, "--out", tmp_path / "killed"], seed=5)
    assert len({step for step in kills if step > 0}) >= 2
    assert_same_to_the_bit(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_equal_one(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"members": 2, "epochs": 2, "batch_size": 9, "held_out": 0.25, "learning_rate": 3e-3}
    alone = train(config(tiny_model, pairs, tmp_path / "alone", **settings))
    two = tmp_path / "two"
    sets = options(parallel="fsdp", max_tokens=200, **settings)
    in_processes(2, "reward", "--model", tiny_model, "--data", pairs, "--out", two, "--quiet", *sets)
    for a, b in zip(log(alone.path), log(two), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert scores_of(two, "Question 7", GOOD, BAD) == pytest.approx(
        scores_of(alone.path, "Question 7", GOOD, BAD), abs=1e-3
    )
