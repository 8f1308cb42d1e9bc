"""From what several people said to a trained model, by every path: each label, majority, shares, trust, scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from typer.testing import CliRunner

from goodheart.cli import app
from goodheart.data.examples import comparisons
from goodheart.data.formats import read_records
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import DataError
from goodheart.losses.preference import ranked_pairs_loss
from goodheart.stages import dpo, kto, reward
from goodheart.stages.labels import LabelBatch
from tests.stages.commands import log, results, write_rows
from tests.stages.test_dpo import config as dpo_config
from tests.stages.test_kto import config as kto_config
from tests.stages.test_reward import BAD, FAIR, GOOD, scores_of
from tests.stages.test_reward import config as reward_config

CARELESS = ("eve", "sam", "tom")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs that two careful people see right and three careless ones wrong, in a file of columns of its own."""
    rows = [
        {
            "question": f"Q {n}",
            "one": GOOD,
            "two": BAD,
            "ann": "1",
            "bob": "1" if n % 4 else "=",
            **dict.fromkeys(CARELESS, "2"),
        }
        for n in range(24)
    ]
    return write_rows(tmp_path_factory.mktemp("crowd") / "crowd.jsonl", rows)


@pytest.fixture(scope="module")
def explained(crowd: Path) -> Path:
    means = '{1: [0, 1], 2: [1, 0], "=": [0, 0]}'
    mapping = crowd.with_name("map.yaml")
    mapping.write_text(
        f"prompt: question\nanswers: [one, two]\nlabel: [ann, bob, {', '.join(CARELESS)}]\nmeans: {means}\n"
    )
    crowd.with_name("trust.csv").write_text("rater,weight\nann,1\nbob,1\n*,0.1\n")
    return mapping


def converted(crowd: Path, out: Path, *options: str) -> Path:
    done = CliRunner().invoke(app, ["data", "convert", str(crowd), str(out), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize(
    ("labels", "right"), [("each", True), ("majority", True), ("soft", True), ("scores", True), ("distrust", False)]
)
def test_a_reward_model_follows_whom_is_trusted(
    tiny_model: Path, crowd: Path, explained: Path, tmp_path: Path, labels: str, right: bool
) -> None:
    trust = ["--weights", str(crowd.with_name("trust.csv"))] if right else []
    how = ["--labels", labels if right else "majority", "--to", "ratings" if labels == "scores" else "ranked"]
    data = converted(crowd, tmp_path / "d.jsonl", "--map", str(explained), *how, *trust)
    run = reward.train(reward_config(tiny_model, data, tmp_path / "r", epochs=6))
    found = results(run.path)
    assert found["kind"] == ("rating" if labels == "scores" else "preference")
    good, bad = scores_of(run.path, "Q 99", GOOD, BAD)
    assert (good > bad) is right
    # nothing about a prompt is on both sides: 5 labels or 2 scores of each, never parted
    assert found["held_out"] % {"each": 5, "scores": 2}.get(labels, 1) == 0


@pytest.mark.parametrize("labels", ["each", "majority", "soft"])
@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_policies_follow_whom_is_trusted(
    tiny_model: Path, crowd: Path, explained: Path, tmp_path: Path, stage: str, labels: str
) -> None:
    trust = ["--weights", str(crowd.with_name("trust.csv"))]
    to = ["--to", "kto" if stage == "kto" and labels != "each" else "trl-preference"]
    data = converted(crowd, tmp_path / "d.jsonl", "--map", str(explained), "--labels", labels, *trust, *to)
    if stage == "dpo":
        run = dpo.train(dpo_config(tiny_model, data, tmp_path / "r", epochs=4))
        last = log(run.path)[-1]["rewards/margins"] if labels != "each" else results(run.path)["margin_mean"] + 1
        assert last > 0
    else:
        run = kto.train(kto_config(tiny_model, data, tmp_path / "r", epochs=4))
        assert results(run.path)["trained_on"] > 20


def test_soft_labels_of_a_reward_model_by_hand(tiny_model: Path) -> None:
    """Loss p * -log s(d) + (1 - p) * -log s(-d); an order that is likelier wrong is turned round first."""
    prompt, answers = Prompt(text="Q"), (Answer(GOOD), Answer(BAD))
    soft = [
        Judgement(prompt, answers, (0, 1), probability=0.75),
        Judgement(prompt, answers, (0, 1), probability=0.25),  # the same as (1, 0) with 0.75
        Judgement(prompt, answers, (0, 1)),
    ]
    items = comparisons(soft, Template(load_tokenizer(tiny_model)), 128).items
    assert [(item.ranks, item.probability) for item in items] == [((0, 1), 0.75), ((1, 0), 0.75), ((0, 1), None)]
    batch = LabelBatch(items, torch.ones(3, 1), 0, torch.device("cpu"))
    flipped = batch.wrong_P(0.0)
    assert flipped is not None
    assert flipped.tolist() == [0.25, 0.25, 0.0]
    assert batch.wrong_P(0.1).tolist() == pytest.approx([0.25, 0.25, 0.1])  # type: ignore[union-attr]
    scores = torch.tensor([[2.0, 0.5]] * 3)
    loss, _ = ranked_pairs_loss(scores, batch.ranks_PK, batch.valid_PK, num_prompts=3, flipped_P=flipped)
    d = 1.5  # log s(1.5) = -0.2014, log s(-1.5) = -1.7014
    hand = [0.75 * 0.2014 + 0.25 * 1.7014, 0.25 * 0.2014 + 0.75 * 1.7014, 0.2014]
    assert loss.item() == pytest.approx(sum(hand) / 3, abs=1e-4)
    assert logsigmoid(torch.tensor(d)).item() == pytest.approx(-0.2014, abs=1e-4)
    hard = LabelBatch(items[2:], torch.ones(1, 1), 0, torch.device("cpu"))
    assert hard.wrong_P(0.1) is None


def test_a_soft_label_trains_as_its_share_of_hard_ones(tiny_model: Path, tmp_path: Path) -> None:
    """Three of four people for one answer, as one soft row or as two rows weighing 3 and 1: the same first loss."""
    pair = {"prompt": "Q", "completions": [GOOD, BAD]}
    soft = write_rows(tmp_path / "soft.jsonl", [{**pair, "ranks": [0, 1], "probability": 0.75}])
    hard = write_rows(
        tmp_path / "hard.jsonl", [{**pair, "ranks": [0, 1], "weight": 3}, {**pair, "ranks": [1, 0], "weight": 1}]
    )
    same: dict[str, Any] = {"held_out": 0, "max_steps": 1, "learning_rate": 1e-3}
    for train, config in ((reward.train, reward_config), (dpo.train, dpo_config)):
        losses = []
        for name, data in (("soft", soft), ("hard", hard)):
            run = train(config(tiny_model, data, tmp_path / f"{train.__module__}-{name}", **same))  # type: ignore[operator]
            losses.append(log(run.path)[0]["loss"])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_dpo_takes_probability_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    """At the start all rewards are 0, so the loss is log 2 whatever p; with a lead of 1: p and 1 - p tell."""
    rows = [{"prompt": "Q", "chosen": GOOD, "rejected": BAD, "probability": 0.75, "margin": 1.0}]
    data = write_rows(tmp_path / "d.jsonl", rows)
    run = dpo.train(dpo_config(tiny_model, data, tmp_path / "r", held_out=0, max_steps=1))
    # both orders have to lead by 1: -log s(-1) whichever is right
    assert log(run.path)[0]["loss"] == pytest.approx(math.log(1 + math.e), rel=1e-5)
    named = dpo.train(dpo_config(tiny_model, data, tmp_path / "n", held_out=0, max_steps=1, soft_labels="probability"))
    assert log(named.path)[0]["loss"] == log(run.path)[0]["loss"]


def test_losses_that_know_only_hard_labels_say_so(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "Q", "chosen": GOOD, "rejected": BAD, "probability": 0.75}] * 4)
    for n, changes in enumerate(
        ({"loss": "hinge"}, {"loss": "robust", "label_smoothing": 0.1}, {"ranking": "plackett-luce"})
    ):
        with pytest.raises(DataError, match=r"d\.jsonl:1: the row has a `probability`, and .* knows no soft labels"):
            dpo.train(dpo_config(tiny_model, data, tmp_path / f"d{n}", held_out=0, **changes))
    with pytest.raises(DataError, match="Plackett-Luce knows no soft labels: use `ranking: pairs`"):
        reward.train(reward_config(tiny_model, data, tmp_path / "r", held_out=0, ranking="plackett-luce"))


def test_a_ranking_cut_into_pairs_is_one_batch_element_again(tiny_model: Path, tmp_path: Path) -> None:
    """Pairs that share a group stay together (Ouyang et al. sec. 3.5), whichever file format they went through."""
    rows = [{"prompt": f"Q {n}", "completions": [GOOD, FAIR, BAD], "ranks": [0, 1, 2]} for n in range(8)]
    whole = write_rows(tmp_path / "whole.jsonl", rows)
    pairs = converted(whole, tmp_path / "pairs.csv", "--to", "trl-preference")
    assert len(pairs.read_text().splitlines()) == 1 + 8 * 3
    assert len(read_records(pairs, "preference").records) == 8
    runs = [
        reward.train(reward_config(tiny_model, data, tmp_path / name, max_steps=2, held_out=0))
        for name, data in (("a", whole), ("b", pairs))
    ]
    assert [row["loss"] for row in log(runs[0].path)] == [row["loss"] for row in log(runs[1].path)]
