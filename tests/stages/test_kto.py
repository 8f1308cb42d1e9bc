"""KTO and BCO: the loss is the one stated, the baseline is that of the whole step, and thumbs are learned."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from goodheart.data.batches import Example
from goodheart.data.examples import Compared
from goodheart.data.formats import read_records, split_by_prompt
from goodheart.data.records import Thumb
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import DataError
from goodheart.models.load import new_model, save_causal
from goodheart.stages import kto as stage
from goodheart.stages.kto import KTOConfig, ranked_within_prompts, train
from goodheart.stages.mismatched import Mismatched, _rotated, behind
from tests.stages.commands import (
    assert_same_to_the_bit,
    in_processes,
    killed_until_done,
    log,
    options,
    results,
    write_rows,
)
from tests.stages.crash import died_after, pulled_plug
from tests.stages.test_dpo import logp
from tests.stages.test_reward import BAD, GOOD, pair_rows


def thumb_rows(count: int, downs: int = 2) -> list[dict[str, Any]]:
    """Every `downs`-th is down; longer answers are not better ones."""
    filler = [" The sun." * (n % 3) for n in range(count)]
    return [
        {"prompt": f"Question {n}", "completion": (GOOD if n % downs else BAD) + filler[n], "label": bool(n % downs)}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def thumbs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("thumbs") / "thumbs.jsonl", thumb_rows(48))


def config(model: Path, data: Path | list[str], out: Path, **changes: Any) -> KTOConfig:
    sources = data if isinstance(data, list) else str(data)
    settings: dict[str, Any] = {"model": str(model), "data": sources, "out": out, "held_out": 0.25}
    return KTOConfig(**(settings | {"batch_size": 8, "learning_rate": 1e-3, "quiet": True} | changes))


# Learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_thumbs_are_learned(tiny_model: Path, thumbs: Path, tmp_path: Path, loss: str) -> None:
    run = train(config(tiny_model, thumbs, tmp_path / "r", loss=loss, epochs=10, eval_every=10))
    rows, found = log(run.path), results(run.path)
    assert found["auc"] > 0.9
    assert found["trained_on"] + found["held_out"] == 48
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["rewards/margins"] > 0.3
    assert [row["step"] for row in rows if "eval/auc" in row] == [s for s in range(1, len(rows) + 1) if s % 10 == 0]
    good, bad = (logp(run.model_dir, "Question 99", a) - logp(tiny_model, "Question 99", a) for a in (GOOD, BAD))
    assert good > bad


def test_pairs_are_an_up_and_a_down(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", pair_rows(40))
    run = train(config(tiny_model, data, tmp_path / "r", epochs=6))
    found = results(run.path)
    assert found["trained_on"] + found["held_out"] == 80
    assert found["pairs"]["prompts"] == found["held_out"] / 2
    assert found["pairs_accuracy"] == found["pairs"]["accuracy"] > 0.9 > 0.6 > found["pairs"]["always_longest"]


def test_held_out_thumbs_of_a_prompt_are_compared() -> None:
    def item(prompt: str, target: float) -> Compared:
        return Compared((Example([1], [False]),), target=target, prompt_key=prompt, sizes=(3,))

    rankings, scores = ranked_within_prompts(
        [item("a", 0), item("b", 1), item("a", 1), item("c", 0), item("a", 0)], [1.0, 2.0, 3.0, 4.0, 5.0]
    )
    assert [r.ranks for r in rankings] == [(1, 0, 1)]
    assert scores == [[1.0, 3.0, 5.0]]


# The loss is the one stated --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "expected"), [("kto", 0.5), ("bco", math.log(2))])
def test_first_step_starts_at_the_reference(
    tiny_model: Path, thumbs: Path, tmp_path: Path, loss: str, expected: float
) -> None:
    run = train(config(tiny_model, thumbs, tmp_path / "r", loss=loss, max_steps=1, desirable_weight=1.0,
                       undesirable_weight=1.0))  # fmt: skip
    first = log(run.path)[0]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(first.get("kl", first.get("delta"))) < 1e-5
    assert max(abs(first["rewards/chosen"]), abs(first["rewards/rejected"])) < 1e-5


def test_first_loss_by_hand_with_its_baseline(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    spec = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 128}
    template = Template(load_tokenizer(tiny_model))
    save_causal(new_model(spec, vocab_size=template.vocab_size, seed=7), other)
    template.save(other)
    rows = [
        {"prompt": "Who", "completion": GOOD, "label": True, "weight": 2.0},
        {"prompt": "The cat", "completion": BAD, "label": False},
    ]
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = train(config(other, data, tmp_path / "r", held_out=0, reference=str(tiny_model), beta=0.3,
                       desirable_weight=1.5, undesirable_weight=1.0))  # fmt: skip

    def ratio(prompt: str, answer: str) -> float:
        return float(logp(other, prompt, answer) - logp(tiny_model, prompt, answer))

    kl = (ratio("Who", BAD) + ratio("The cat", GOOD)) / 2
    assert kl > 0.1  # or the clamp would hide it
    up = 1 - torch.sigmoid(torch.tensor(0.3 * (ratio("Who", GOOD) - kl)))
    down = 1 - torch.sigmoid(torch.tensor(-0.3 * (ratio("The cat", BAD) - kl)))
    assert log(run.path)[0]["kl"] == pytest.approx(kl, abs=1e-3)
    assert log(run.path)[0]["loss"] == pytest.approx((2 * 1.5 * up + down).item() / 3, rel=1e-4)


def test_answers_behind_other_prompts() -> None:
    def item(prompt: str, ids: list[int], start: int) -> Compared:
        example = Example(ids, [t >= start for t in range(len(ids))])
        return Compared((example,), target=1.0, prompt_key=prompt)

    items = [item("a", [1, 2, 11, 12], 2), item("a", [1, 2, 13], 2), item("b", [1, 3, 4, 14], 3)]
    made = Mismatched(items, [[0, 1, 2], [2, 0], [1, 2, 0]], 128)
    # a takes b's answer, the last one takes that of the first in the circle with another prompt
    assert [(e.ids, e.mask.count(True)) for e in made.examples[:3]] == [
        ([1, 2, 14], 1),
        ([1, 2, 14], 1),
        ([1, 3, 4, 11, 12], 2),
    ]
    assert made.steps[1] == [2, 0]  # what was made is not made again
    assert len(made.examples) == 3
    # one prompt alone has nothing to mix: the step before lends its rows, the first step takes those of the second
    assert Mismatched(items, [[0, 1, 2], [1], [0, 1]], 128).steps == [[0, 1, 2], [1, 0, 3], []]
    assert Mismatched(items, [[0], [2, 1]], 128).steps == [[0, 1, 2], [1, 2]]
    assert Mismatched(items, [[0]], 128).steps == [[]]
    assert behind(items[0].answers[0], items[2].answers[0], 2).mask == [False, False]  # no room
    assert Mismatched(items, [[0, 2]], 2).steps == [[]]


def test_partners_are_those_of_a_plain_search() -> None:
    draw = random.Random(0)
    for size in range(1, 9):
        for _ in range(30):
            items = [Compared((Example([1, 2], [False, True]),), prompt_key=draw.choice("abc")) for _ in range(size)]
            expected = []
            for i in range(size):
                others = [j % size for j in range(i + 1, i + size) if items[j % size].prompt_key != items[i].prompt_key]
                expected += [(i, others[0])] if others else []
            assert _rotated(items, range(size)) == expected


def test_the_baseline_of_a_last_step_of_one_row_is_the_current_kl(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", thumb_rows(9))
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0, epochs=4, learning_rate=5e-3))
    kls = [row["kl"] for row in log(run.path)]  # of 8 rows and of 1, in turn
    assert len(kls) == 8
    assert min(kls[3:]) > 0.1


def test_where_nothing_is_mismatched_no_kl_is_logged(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{**row, "prompt": "Who"} for row in thumb_rows(8)])
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0))
    assert all("kl" not in row for row in log(run.path))


def test_ties_and_answers_told_apart_by_the_cut_are_set_aside(tiny_model: Path, tmp_path: Path) -> None:
    start = GOOD + " The sun the sun the sun the sun"
    same = [{"prompt": f"Q {n}", "chosen": start + " A.", "rejected": start + " B."} for n in range(3)]
    ties = [{"prompt": f"r {n}", "completions": [GOOD, BAD], "ranks": [0, 0]} for n in range(2)]
    # as written the same: people disagree, and both thumbs count
    disputed = [{"prompt": "Who", "completion": " Me.", "label": label} for label in (True, False)]
    pairs = write_rows(tmp_path / "d.jsonl", [*same, *ties, *pair_rows(3)])
    thumbs = write_rows(tmp_path / "t.jsonl", disputed)
    run = train(config(tiny_model, [str(pairs), str(thumbs)], tmp_path / "r", held_out=0, max_length=20, max_steps=1))
    found = results(run.path)
    assert (found["trained_on"], found["skipped"]) == (6 + 2, 6 + 2)
    note = (run.path / "log.txt").read_text()
    assert "6 x the answers are the same within max_length" in note
    assert "2 x all answers tie or are the same: none is up or down" in note
    assert f"{pairs}:1" in (run.path / "skipped.jsonl").read_text()


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_held_out_thumbs_are_judged_against_the_baseline(
    tiny_model: Path, thumbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    given: list[list[float]] = []
    real = stage.thumb_report
    monkeypatch.setattr(stage, "thumb_report", lambda labels, scores: given.append(scores) or real(labels, scores))
    run = train(config(tiny_model, thumbs, tmp_path / "r", loss=loss, epochs=1))
    rows = [r for r in read_records(str(thumbs), "thumb").records if isinstance(r, Thumb)]
    _, aside = split_by_prompt(rows, 0.25, 0)
    prompt, answer = aside[0].prompt.text, aside[0].answer.text
    reward = 0.1 * float(logp(run.model_dir, prompt, answer) - logp(tiny_model, prompt, answer))
    if loss == "kto":
        baseline = 0.1 * log(run.path)[-1]["kl"]
    else:  # delta as the last step left it: half-way between the moving averages of the rewards
        means: dict[str, float] = {}
        for row in log(run.path):
            for name in {"rewards/chosen", "rewards/rejected"} & row.keys():
                means[name] = 0.9 * means.get(name, row[name]) + 0.1 * row[name]
        baseline = sum(means.values()) / 2
    assert abs(baseline) > 1e-3
    assert given[-1][0] == pytest.approx(reward - baseline, abs=2e-4)


def test_a_step_of_one_class_is_no_nan(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", thumb_rows(16, downs=8))
    run = train(config(tiny_model, data, tmp_path / "r", held_out=0, batch_size=3))
    rows = log(run.path)
    assert any("rewards/rejected" not in row for row in rows)
    assert any("rewards/margins" in row for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # 14 up, 2 down: 14 / (5.25 * 2) = 4/3
    assert (results(run.path)["desirable_weight"], results(run.path)["undesirable_weight"]) == (1.0, 5.25)


@pytest.mark.parametrize("changes", [{"max_tokens": 1}, {"max_tokens": 100}, {"activation_checkpointing": True}])
def test_memory_settings_change_nothing(
    tiny_model: Path, thumbs: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = train(config(tiny_model, thumbs, tmp_path / "plain", epochs=2))
    other = train(config(tiny_model, thumbs, tmp_path / "other", epochs=2, **changes))
    assert max(row["kl"] for row in log(plain.path)) > 0.01
    for a, b in zip(log(plain.path), log(other.path), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_an_adapter_starts_at_its_base(tiny_model: Path, thumbs: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, thumbs, tmp_path / "r", lora={"rank": 4}, epochs=10, learning_rate=1e-2))
    assert log(run.path)[0]["kl"] < 1e-5
    assert results(run.path)["auc"] > 0.9
    assert (run.model_dir / "adapter_config.json").is_file()


# What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0}, "greater than 0"),
        ({"batch_size": 1}, "needs `batch_size` of 2 or more"),
        ({"held_out": 0, "eval_every": 5}, "nothing to measure on"),
        ({"desirable_weight": 0}, "`desirable_weight` must be over 0"),
        ({"loss": "dpo"}, "Input should be"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(tmp_path, tmp_path, tmp_path, **changes)


@pytest.mark.parametrize(("label", "message"), [(True, "every thumb is up.*use sft"), (False, "every thumb is down")])
def test_thumbs_of_one_kind_are_refused(tiny_model: Path, tmp_path: Path, label: bool, message: str) -> None:
    rows = [{"prompt": f"Q {n}", "completion": GOOD, "label": label} for n in range(4)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=message):
        train(config(tiny_model, data, tmp_path / "r", held_out=0))


# Stopping, processes ---------------------------------------------------------------------------------------------


def test_killed_at_random_instants_equals_never_killed(tiny_model: Path, thumbs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 4, "checkpoint_every": 2, "held_out": 0.25, "eval_every": 4}
    settings |= {"batch_size": 8, "learning_rate": 1e-3}
    train(config(tiny_model, thumbs, tmp_path / "whole", **settings))
    command = ["kto", "--model", tiny_model, "--data", thumbs, "--quiet", *options(**settings)]
    kills = killed_until_done(tmp_path / "killed" / "DONE", [*command, "--out", tmp_path / "killed"], seed=5)
    assert len({step for step in kills if step > 0}) >= 2
    assert_same_to_the_bit(tmp_path / "whole", tmp_path / "killed")


def test_the_shift_of_bco_survives(
    tiny_model: Path, thumbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"loss": "bco", "epochs": 3, "checkpoint_every": 2}
    train(config(tiny_model, thumbs, tmp_path / "whole", **settings))
    with pulled_plug(monkeypatch, at=5):
        train(config(tiny_model, thumbs, tmp_path / "torn", **settings))
    train(config(tiny_model, thumbs, tmp_path / "torn", **settings))
    assert_same_to_the_bit(tmp_path / "whole", tmp_path / "torn")
    assert abs(log(tmp_path / "whole")[-1]["delta"]) > 1e-3


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_equal_one_also_when_continued(tiny_model: Path, thumbs: Path, tmp_path: Path, mode: str) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 9, "held_out": 0.25, "learning_rate": 1e-3}
    alone = train(config(tiny_model, thumbs, tmp_path / "alone", **settings))
    two = tmp_path / "two"
    sets = options(parallel=mode, max_tokens=200, checkpoint_every=3, keep_checkpoints=9, **settings)
    command = ["kto", "--model", tiny_model, "--data", thumbs, "--quiet", *sets]
    in_processes(2, *command, "--out", two)
    for a, b in zip(log(alone.path), log(two), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert results(two)["auc"] == pytest.approx(results(alone.path)["auc"], abs=0.02)
    if mode == "fsdp":  # that whole weights continue is shown above
        in_processes(2, *command, "--out", died_after(3, two, tmp_path / "torn"))
        assert "continuing from checkpoint step 3" in (tmp_path / "torn" / "log.txt").read_text()
        assert_same_to_the_bit(two, tmp_path / "torn")
