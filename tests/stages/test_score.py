"""Scoring rows: which columns come, which stay, and how far the scores agree with the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from goodheart.data.formats import read_rows, write_rows
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import DataError, ModelError
from goodheart.judges.load import load_judge
from goodheart.judges.reward import RewardJudge
from goodheart.models.load import load_reward, new_reward, save_reward
from goodheart.stages.score import ScoreConfig, Scored, score
from tests.stages import commands

LENGTH = "tests.stages.judged:length"


@pytest.fixture(scope="module")
def reward(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a random head, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("reward") / "rm"
    template = Template(load_tokenizer(tiny_model))
    save_reward(new_reward(tiny_model, seed=4), folder, {"score_mean": 1.0, "score_std": 2.0})
    template.save(folder)
    return folder


def scored(data: Path, out: Path, reward: Path | str = LENGTH, **changes: Any) -> tuple[list[dict[str, Any]], Scored]:
    found = score(ScoreConfig(reward=str(reward), data=str(data), out=out, quiet=True, **changes))
    return [row.data for row in read_rows(out)], found


# Columns ---------------------------------------------------------------------------------------------------------


def test_each_kind_of_row_gets_its_columns_and_keeps_its_own(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}]
    rows = [
        {"id": 7, "prompt": "a", "completion": "four", "source": "x"},
        {"prompt": "a", "chosen": "four", "rejected": "sixsix", "margin": 0.5},
        {"prompt": "a", "completions": ["1", "", "333"], "models": ["m", "m", "n"]},
        {"prompt": "a", "completions": ["1", "22", "333"], "ranks": [1, 0, 1]},
        {"prompt": chat, "completion": [{"role": "assistant", "content": "yes"}], "label": True},
        {"messages": [*chat, {"role": "assistant", "content": "seventy"}]},
    ]
    data = commands.write_rows(tmp_path / "d.jsonl", rows)
    found, summary = scored(data, tmp_path / "s.jsonl")
    expected = [
        {"score": 4.0},
        {"score_chosen": 4.0, "score_rejected": 6.0},
        {"scores": [1.0, 0.0, 3.0]},
        {"scores": [1.0, 2.0, 3.0]},
        {"score": 3.0},
        {"score": 7.0},
    ]
    assert found == [row | new for row, new in zip(rows, expected, strict=True)]
    assert [list(row)[: len(given)] for row, given in zip(found, rows, strict=True)] == [list(given) for given in rows]
    assert summary.rows == 6


def test_the_better_answer_is_the_chosen_one_wherever_it_stands(tmp_path: Path) -> None:
    row = {"prompt": "a", "response_0": "bad bad", "response_1": "good", "better_response_id": 1}
    found, summary = scored(commands.write_rows(tmp_path / "d.jsonl", [row]), tmp_path / "s.jsonl")
    assert (found[0]["score_chosen"], found[0]["score_rejected"]) == (4.0, 7.0)
    assert summary.accuracy == 0.0


def test_a_column_of_the_same_name_is_not_lost(tmp_path: Path) -> None:
    data = commands.write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "four", "score": 9.5}])
    once, _ = scored(data, tmp_path / "once.jsonl")
    assert once == [{"prompt": "a", "completion": "four", "score": 4.0, "score_given": 9.5}]
    # scored again: what people gave stays, not what the first judge gave
    again, _ = scored(tmp_path / "once.jsonl", tmp_path / "again.jsonl")
    assert again[0]["score_given"] == 9.5


def test_the_functions_columns_come_from_the_row(tmp_path: Path) -> None:
    data = commands.write_rows(
        tmp_path / "d.jsonl", [{"prompt": "a", "completion": "four", "bonus": b} for b in (10, 20)]
    )
    found, _ = scored(data, tmp_path / "s.jsonl", "tests.stages.judged:bonus")
    assert [row["score"] for row in found] == [14.0, 24.0]


def test_no_opinion_is_null_and_does_not_count(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": c, "rejected": r} for c, r in (("aaa", "b"), ("aaa", "a"))]
    found, summary = scored(
        commands.write_rows(tmp_path / "d.jsonl", rows), tmp_path / "s.jsonl", "tests.stages.judged:no_opinion_on_b"
    )
    assert [row["score_rejected"] for row in found] == [None, 1.0]
    assert (summary.accuracy, summary.pairs["pairs"]) == (1.0, 1)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".json", ".jsonl.gz"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    data = tmp_path / f"d{suffix}"
    write_rows(data, [{"prompt": "a", "completion": "x" * n, "n": n} for n in range(1, 4)])
    found, _ = scored(data, tmp_path / f"s{suffix}")
    assert [float(row["score"]) for row in found] == [1.0, 2.0, 3.0]
    assert [int(row["n"]) for row in found] == [1, 2, 3]


def test_rows_keep_their_order_over_files_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goodheart.stages.score._CHUNK", 3)
    files = [
        commands.write_rows(tmp_path / f"{name}.jsonl", [{"prompt": name, "completion": "x" * n} for n in range(1, 6)])
        for name in "ab"
    ]
    found = score(ScoreConfig(reward=LENGTH, data=[str(f) for f in files], out=tmp_path / "s.jsonl", quiet=True))
    rows = [row.data for row in read_rows(found.out)]
    assert [(row["prompt"], row["score"]) for row in rows] == [(name, float(n)) for name in "ab" for n in range(1, 6)]


# Agreement -------------------------------------------------------------------------------------------------------


def test_accuracy_weighs_each_prompt_once_and_the_ruler_stands_beside_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "chosen": "longer", "rejected": "short"},  # right
        {"prompt": "q", "completions": ["aaa", "a", "aa"], "ranks": [0, 1, 2]},  # 3>1 and 3>2 right, 1>2 wrong: 2/3
        {"prompt": "r", "chosen": "same", "rejected": "emas"},  # half
        {"prompt": "r", "chosen": "a", "rejected": "bb"},  # wrong: prompt r is right in 1/4
        {"prompt": "s", "completions": ["a", "b"], "ranks": [0, 0]},  # a tie says nothing
    ]
    _, found = scored(commands.write_rows(tmp_path / "d.jsonl", rows), tmp_path / "s.jsonl")
    assert found.accuracy == pytest.approx((1 + 2 / 3 + 1 / 4) / 3)
    assert (found.pairs["prompts"], found.pairs["pairs"], found.pairs["ties"]) == (3, 6, 1)
    assert found.pairs["always_longest"] == pytest.approx(found.accuracy)  # this judge is a ruler
    assert "accuracy 0.639 (95 % interval" in found.summary()
    assert "on 6 pairs of 3 prompts" in found.summary()
    assert "always longest 0.639" in found.summary()


def test_agreement_with_ratings_and_thumbs(tmp_path: Path) -> None:
    ratings = [{"prompt": "a", "completion": "x" * n, "score": s} for n, s in ((1, 0.5), (2, 3.0), (3, 2.0), (9, 4.0))]
    _, found = scored(commands.write_rows(tmp_path / "r.jsonl", ratings), tmp_path / "s.jsonl")
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 (0 + 1 + 1 + 0) / (4 * 15) = 0.8
    assert "rank correlation 0.800 with the scores in 4 rows" in found.summary()
    assert found.accuracy is None
    thumbs = [
        {"prompt": "a", "completion": "x" * n, "label": up} for n, up in ((1, False), (2, True), (3, False), (4, True))
    ]
    _, found = scored(commands.write_rows(tmp_path / "t.jsonl", thumbs), tmp_path / "u.jsonl")
    # of the four (up, down) pairs 2>1, 4>1, 4>3 are right, 2>3 is not
    assert "area under the ROC curve 0.750" in found.summary()
    assert "on 4 thumbs" in found.summary()


# Reward models ---------------------------------------------------------------------------------------------------


def test_a_reward_model_scores_what_the_judge_scores(reward: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Who" + " really" * (n % 5), "completion": " likes" + " milk" * (n % 7)} for n in range(40)]
    data = commands.write_rows(tmp_path / "d.jsonl", rows)
    found, _ = scored(data, tmp_path / "s.jsonl", reward)
    template, model = Template(load_tokenizer(reward)), load_reward(reward)
    for row in found:
        ids = template.text_ids(row["prompt"] + row["completion"])
        alone = model(torch.tensor([ids]), torch.tensor([len(ids)])).item()
        assert row["score"] == pytest.approx(alone, abs=1e-5)
    # neither the company in a batch nor the padding changes a score
    one_by_one, _ = scored(data, tmp_path / "t.jsonl", reward, max_tokens=1)
    assert [r["score"] for r in one_by_one] == pytest.approx([r["score"] for r in found], abs=1e-5)


def test_a_run_folder_is_as_good_as_its_model(reward: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(reward)
    data = commands.write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "chosen": "cat", "rejected": "dog"}])
    run, _ = scored(data, tmp_path / "a.jsonl", tmp_path / "run")
    folder, _ = scored(data, tmp_path / "b.jsonl", reward)
    assert run == folder


def test_scores_of_what_was_sampled(reward: Path, tiny_model: Path, tmp_path: Path) -> None:
    from goodheart.stages.sample import SampleConfig, sample

    prompts = commands.write_rows(tmp_path / "p.jsonl", [{"prompt": "The cat"}, {"prompt": "Who"}])
    out = tmp_path / "answers.jsonl"
    sample(
        SampleConfig(model=str(tiny_model), prompts=str(prompts), out=out, sampling={"max_new_tokens": 6}, quiet=True)
    )
    drawn = [row.data for row in read_rows(out)]
    drawn[1]["completions"][2] = ""  # a model may say nothing at all
    found, summary = scored(commands.write_rows(out, drawn), tmp_path / "s.jsonl", reward)
    assert [len(row["scores"]) for row in found] == [4, 4]
    assert summary.pairs == {}
    assert not summary.skipped.total
    assert {**found[0], "scores": 0} == {**drawn[0], "scores": 0}
    # scored answers are a ranking: the judge agrees with itself
    _, again = scored(tmp_path / "s.jsonl", tmp_path / "again.jsonl", reward)
    assert again.accuracy == 1.0


def test_how_prompts_were_read_in_training_is_how_they_are_read(tiny_model: Path, tmp_path: Path) -> None:
    Template(load_tokenizer(tiny_model)).save(tmp_path)
    save_reward(new_reward(tiny_model, seed=4), tmp_path, {"plain_prompts": "user"})
    judge = load_judge(str(tmp_path))
    assert isinstance(judge, RewardJudge)
    assert judge.template.plain_prompts == "user"
    chat = [
        {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "A cat"}]}
    ]
    a, _ = scored(commands.write_rows(tmp_path / "chat.jsonl", chat), tmp_path / "a.jsonl", tmp_path)
    plain = [{"prompt": "Who?", "completion": "A cat"}]
    b, _ = scored(commands.write_rows(tmp_path / "plain.jsonl", plain), tmp_path / "b.jsonl", tmp_path)
    assert a[0]["score"] == b[0]["score"]


# Rows set aside --------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_scored_are_listed(reward: Path, tmp_path: Path) -> None:
    data = commands.write_rows(
        tmp_path / "d.jsonl",
        [
            {"prompt": "a", "completion": "cat"},
            "{torn",
            {"prompt": "a"},
            {"prompt": "The cat likes milk. " * 40, "completion": "cat"},
            {"prompt": "a", "completion": ""},
            {"prompt": "a", "completion": "dog"},
        ],
    )
    found, summary = scored(data, tmp_path / "s.jsonl", reward)
    assert [row["completion"] for row in found] == ["cat", "dog"]
    assert summary.listed == tmp_path / "s.skipped.jsonl"
    listed = {json.loads(line)["where"]: json.loads(line)["reason"] for line in summary.listed.read_text().splitlines()}
    assert set(listed) == {f"{data}:{line}" for line in (2, 3, 4, 5)}
    assert listed[f"{data}:3"] == "the row has no answer to score"
    assert listed[f"{data}:4"] == "prompt leaves no room for an answer within max_length"
    assert "set aside 4 rows" in summary.summary()


def test_nothing_to_score_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    data = commands.write_rows(tmp_path / "d.jsonl", [{"prompt": "a"}])
    with pytest.raises(DataError, match="no usable row; set aside: 1 x the row has no answer"):
        scored(data, tmp_path / "s.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_language_model_is_no_reward_model(tiny_model: Path, tmp_path: Path) -> None:
    data = commands.write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ModelError, match="not a reward model"):
        scored(data, tmp_path / "s.jsonl", tiny_model)


def test_real_pairs_by_their_length(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "hh_helpful_rejection_sampled"
    found, summary = scored(data, tmp_path / "s.jsonl")
    assert 1000 < summary.rows < 1346
    assert summary.skipped.counts["chosen and rejected are identical"] == 14
    assert summary.accuracy == pytest.approx(summary.pairs["always_longest"])
    assert all(row["score_chosen"] <= len(row["chosen"]) for row in found)


def test_the_command_prints_the_accuracy(tmp_path: Path) -> None:
    data = commands.write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "chosen": "good", "rejected": "no"}] * 3)
    process = commands.start("score", "--reward", LENGTH, "--data", data, "--out", tmp_path / "s.jsonl")
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert output.splitlines()[0] == f"3 rows written to {tmp_path / 's.jsonl'}"
    assert output.splitlines()[1].startswith("accuracy 1.000 (95 % interval")
    assert error.startswith("scoring 3 rows")
    assert "left" not in error
