"""Rejection sampling: what is kept, what is counted, what is trained on, and that stopping it loses nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from goodheart.data.records import Answer, Message, Prompt
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import ConfigError, DataError, Interrupted, ModelError
from goodheart.stages import draw as drawing
from goodheart.stages import rejection as stage
from goodheart.stages.rejection import RejectionConfig, select, train
from goodheart.stages.sample import SampleConfig, sample
from goodheart.stages.selection import Candidate, at_least, best_of_each, distinct, top_share
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.sft import SFTConfig
from goodheart.stages.sft import train as sft
from tests.stages.commands import (
    assert_same_to_the_bit,
    in_processes,
    killed_until_done,
    options,
    results,
    start,
    write_rows,
)
from tests.stages.crash import pulled_plug

VOWELS = "tests.stages.rewards:vowels"


def config(model: Path, prompts: Path, out: Path, **changes: Any) -> RejectionConfig:
    settings: dict[str, Any] = {
        "model": str(model),
        "reward": VOWELS,
        "prompts": str(prompts),
        "out": out,
        "num_generations": 6,
        "sampling": {"max_new_tokens": 10},
        "batch_size": 4,
        "learning_rate": 3e-3,
        "quiet": True,
    }
    return RejectionConfig(**(settings | changes))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


# Selection -------------------------------------------------------------------------------------------------------


def candidates(*scored: tuple[str, str, float | None], round_: str = "") -> list[Candidate]:
    return [Candidate(Prompt(text=p), Answer(a), s, round=round_) for p, a, s in scored]


def texts(found: list[Candidate]) -> list[str]:
    return [each.answer.text for each in found]


FOUND = candidates(("p", "a", 1.0), ("p", "b", 3.0), ("p", "c", 3.0), ("q", "d", -1.0), ("q", "e", 2.0))


def test_what_each_way_of_keeping_keeps() -> None:
    assert texts(best_of_each(FOUND)) == ["b", "e"]  # the first of equals
    # 40 % of 5 are 2, 41 % are 2.05, rounded up: 3
    assert texts(top_share(FOUND, 0.4)) == ["b", "c"]
    assert texts(top_share(FOUND, 0.41)) == ["b", "c", "e"]
    assert texts(at_least(FOUND, 2.0)) == ["b", "c", "e"]
    twice = candidates(("p", "a", 1.0), ("q", "a", 1.0), ("p", "a", 1.0), ("p", "a ", 1.0))
    assert [(each.prompt.text, each.answer.text) for each in distinct(twice)] == [("p", "a"), ("q", "a"), ("p", "a ")]


def test_the_share_is_rounded_up_from_the_number_meant() -> None:
    """0.28 * 25 is 7.000000000000001 in floats; whole hundredths of n are compared with integers."""
    for n in (1, 3, 25, 50, 100):
        some = candidates(*(("p", str(i), float(i)) for i in range(n)))
        for hundredths in range(1, 101):
            assert len(top_share(some, hundredths / 100)) == -(-hundredths * n // 100), (n, hundredths)
    assert len(top_share(FOUND, 1e-12)) == 1


def test_of_equal_texts_the_best_is_kept() -> None:
    def found(*scored: tuple[float, str]) -> list[tuple[float | None, str]]:
        same = [Candidate(Prompt(text="p"), Answer("a", meta={"finish": end}), score) for score, end in scored]
        other = candidates(("p", "b", 0.0))
        first, second = distinct([same[0], *other, *same[1:]])
        assert second.answer.text == "b"  # its place stays that of the first
        return [(first.score, first.answer.meta["finish"])]

    assert found((1.0, "length"), (2.0, "eos")) == [(2.0, "eos")]
    assert found((2.0, "eos"), (1.0, "length")) == [(2.0, "eos")]
    assert found((1.0, "length"), (1.0, "stop"), (1.0, "eos")) == [(1.0, "stop")]  # the first that ended
    assert found((2.0, "length"), (1.0, "eos")) == [(2.0, "length")]


def test_prompts_that_differ_keep_an_answer_each() -> None:
    def asked(*prompts: Prompt) -> int:
        return len(best_of_each([Candidate(prompt, Answer("a"), 1.0) for prompt in prompts]))

    assert asked(Prompt(text="Spell: Polish"), Prompt(text="spell: polish")) == 2
    assert asked(Prompt(text="x = 1\n    y"), Prompt(text="x = 1\ny")) == 2
    assert asked(Prompt(text="user\x1fp"), Prompt(messages=(Message("user", "p"),))) == 2
    assert asked(Prompt(text="p", meta={"answer": 1}), Prompt(text="p", meta={"answer": 2})) == 2
    assert asked(Prompt(text="p", meta={"a": 1, "b": [2]}), Prompt(text="p", meta={"b": (2,), "a": 1})) == 1
    assert asked(Prompt(text="p", meta={"scores": [1]}), Prompt(text="p")) == 1  # of answers, not of the prompt


def test_everything_is_counted(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    drawn = candidates(
        *[("p", "a", 1.0), ("p", "a", 1.0), ("p", "b", 3.0)],
        *[("q", "c", -1.0), ("q", "d", 0.5), ("q", "e", 0.0)],
        *[("r", "f", None), ("r", "g", None), ("r", "h", None)],
    )
    earlier = candidates(("q", "old", 5.0), ("s", "older", 0.0), round_="runs/one")
    settings = config(tiny_model, prompts, tmp_path / "r", num_generations=3, threshold=1.0, history=["x"])
    selected, found = select(drawn, earlier, settings)
    assert texts(selected) == ["b", "old"]
    curve = found.pop("best_of")
    assert found == {
        "prompts": 4,
        "prompts_without": 2,  # r has no score, s does not reach the threshold
        "answers": 11,
        "no_opinion": 3,
        "distinct": 7,
        "selected": 2,
        "rejected": 5,
        "selected_of_earlier_rounds": 1,
        "score_all": pytest.approx((1 + 1 + 3 - 1 + 0.5 + 0) / 6),  # of this round's answers, equal ones each
        "score_selected": 4.0,
    }
    # p: 5/3 of one, of two (1 + 3 + 3) / 3, of three 3;  q: -1/6, (0.5 + 0.5 + 0) / 3, 0.5;  r has no scores
    assert [row["n"] for row in curve] == [1, 2, 3]
    assert [row["score"] for row in curve] == pytest.approx([0.75, (7 / 3 + 1 / 3) / 2, 1.75])
    assert curve[2]["kl_bound"] == pytest.approx(math.log(3) - 2 / 3)


def test_the_bound_is_told_where_it_holds(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    drawn = candidates(("p", "a", 1.0), ("p", "b", 3.0), ("q", "c", -1.0), ("q", "d", 0.5))

    def bound(drawn: list[Candidate], earlier: list[Candidate] | None = None, **changes: Any) -> float | None:
        settings = config(tiny_model, prompts, tmp_path / "r", num_generations=2, **changes)
        return select(drawn, earlier or [], settings)[1].get("kl_bound")

    assert bound(drawn) == pytest.approx(math.log(2) - 0.5)
    assert bound(drawn, keep="top") is None
    assert bound(drawn, threshold=-5.0) is None
    assert bound(drawn, candidates(("p", "x", 0.0), round_="runs/one")) is None
    assert bound(drawn + candidates(("p", "e", 1.0), ("p", "f", 3.0))) is None  # the same prompt twice: best of 4


def test_nothing_to_keep_is_an_error(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no answer reaches the threshold 7: the best of 5 has 3"):
        select(FOUND, [], config(tiny_model, prompts, tmp_path / "r", threshold=7.0))
    with pytest.raises(DataError, match="no opinion \\(None\\) on any of 1 answers"):
        select(candidates(("p", "a", None)), [], config(tiny_model, prompts, tmp_path / "r"))


# The run ---------------------------------------------------------------------------------------------------------


def test_the_best_answers_are_trained_on(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r"))
    drawn, selected, found = rows(run.path / "answers.jsonl"), rows(run.path / "selected.jsonl"), results(run.path)
    assert [row["prompt"] for row in drawn] == [row["prompt"] for row in rows(prompts)]
    for row, kept in zip(drawn, selected, strict=True):
        assert len(row["completions"]) == len(set(row["completions"])) == 6
        best = max(row["scores"])
        assert (kept["prompt"], kept["score"]) == (row["prompt"], best)
        assert kept["completion"] == row["completions"][row["scores"].index(best)]
    scores = [s for row in drawn for s in row["scores"]]
    assert found["score_all"] == pytest.approx(sum(scores) / 36)
    assert found["score_selected"] == pytest.approx(sum(row["score"] for row in selected) / 6)
    assert found["score_selected"] > found["score_all"] + 0.05
    assert found["best_of"][-1]["score"] == pytest.approx(found["score_selected"])
    assert found["kl_bound"] == pytest.approx(math.log(6) - 5 / 6)
    assert not (run.path / "drawn").exists()
    note = (run.path / "log.txt").read_text(encoding="utf-8")
    assert "kept 6 of 36 distinct answers" in note
    assert "KL of the kept from the drawn: 0.958 nats at most" in note
    # a second start has nothing to do
    before = (run.path / "answers.jsonl").stat().st_mtime_ns
    assert train(config(tiny_model, prompts, tmp_path / "r")).finished
    assert (run.path / "answers.jsonl").stat().st_mtime_ns == before


def test_it_trains_as_sft_does(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    """On answers that came to their own end, fine-tuning on selected.jsonl by hand gives the same weights."""
    ends = {"max_new_tokens": 60, "stop": ["t", "k"]}
    ours = train(config(tiny_model, prompts, tmp_path / "r", sampling=ends, num_generations=12))
    kept = rows(ours.path / "selected.jsonl")
    assert "length" not in {row["finish"] for row in kept}, "choose another seed or longer answers"
    data = write_rows(tmp_path / "d.jsonl", [{k: row[k] for k in ("prompt", "completion")} for row in kept])
    shared = {"batch_size": 4, "learning_rate": 3e-3, "quiet": True, "held_out": 0.0}
    theirs = sft(SFTConfig(model=str(tiny_model), data=str(data), out=tmp_path / "sft", **shared))
    for name, tensor in weights(ours.path).items():
        assert torch.equal(tensor, weights(theirs.path)[name]), name


def test_an_answer_that_was_cut_off_teaches_no_end(tiny_model: Path, tmp_path: Path) -> None:
    template = Template(load_tokenizer(tiny_model))

    class Told:
        run = type("Run", (), {"path": tmp_path})()

    kept = [
        Candidate(Prompt(text="The cat"), Answer(" likes", meta={"finish": finish}), 1.0)
        for finish in ("length", "eos")
    ]
    made = stage._rows(kept, template, 64, False, stage.Skipped(), Told())  # type: ignore[arg-type]
    cut, whole = made.groups[0][0], made.groups[1][0]
    assert whole.ids == [*cut.ids, template.eos_id]
    assert made.trained_tokens([1]) == made.trained_tokens([0]) + 1
    assert made.names([1]) == [f"{tmp_path / 'selected.jsonl'}:2"]


def test_the_reward_rises(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    """After a few rounds the model itself draws what the reward likes."""
    model = tiny_model
    means = []
    for turn in range(3):
        run = train(config(model, prompts, tmp_path / f"r{turn}", num_generations=40, epochs=10, seed=turn))
        means.append(results(run.path)["score_all"])
        model = run.path
    assert means[0] < means[1] < means[2]
    assert means[2] > means[0] + 0.06


def test_answers_of_earlier_rounds_compete(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    first = train(config(tiny_model, prompts, tmp_path / "a", num_generations=12))
    less = write_rows(tmp_path / "less.jsonl", rows(prompts)[:2])
    second = train(
        config(tiny_model, less, tmp_path / "b", num_generations=2, seed=9, history=[str(first.path)], keep="best")
    )
    kept = rows(second.path / "selected.jsonl")
    before = {row["prompt"]: row["score"] for row in rows(first.path / "selected.jsonl")}
    now = {row["prompt"]: max(row["scores"]) for row in rows(second.path / "answers.jsonl")}
    assert {row["prompt"] for row in kept} == set(before)  # prompts of earlier rounds too
    for row in kept:
        assert row["score"] == pytest.approx(max(before[row["prompt"]], now.get(row["prompt"], -1)))
        assert ("round" in row) == (row["score"] > now.get(row["prompt"], -1))
    assert results(second.path)["selected_of_earlier_rounds"] == sum("round" in row for row in kept) > 0
    # by another reward the old scores mean nothing: the answers are scored again
    other = train(
        config(
            tiny_model,
            less,
            tmp_path / "c",
            num_generations=2,
            history=[str(first.path)],
            reward="tests.stages.rewards:few_vowels",
        )
    )
    old = {row["prompt"]: min(row["scores"]) for row in rows(first.path / "answers.jsonl")}
    for row in rows(other.path / "selected.jsonl"):
        assert row["score"] >= -old[row["prompt"]] - 1e-9


def test_no_round_draws_what_was_drawn_before(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    """By a model that hardly moved, with the same seed: not the answers of `sample`, nor those of the last round."""
    still = {"learning_rate": 1e-9, "num_generations": 4}
    first = train(config(tiny_model, prompts, tmp_path / "a", **still))
    second = train(config(first.path, prompts, tmp_path / "b", history=[str(first.path)], **still))
    more = train(config(tiny_model, prompts, tmp_path / "c", history=[str(first.path)], **still))
    labelled = sample(
        SampleConfig(
            model=str(tiny_model),
            prompts=str(prompts),
            answers=4,
            sampling=SamplingSettings(max_new_tokens=10),
            out=tmp_path / "s.jsonl",
            quiet=True,
        )
    )
    files = [labelled, *(run.path / "answers.jsonl" for run in (first, second, more))]
    said = [[text for row in rows(file) for text in row["completions"]] for file in files]
    for a, b in itertools.combinations(said, 2):
        assert len(a) == len(b) == 24
        assert sum(x == y for x, y in zip(a, b, strict=True)) <= 2
    assert results(second.path)["distinct"] >= 46  # of 48
    # but whoever does the same again draws the same, from a copy of the model too; another seed draws others
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    again = train(config(moved, prompts, tmp_path / "again", **still))
    assert (again.path / "answers.jsonl").read_bytes() == (first.path / "answers.jsonl").read_bytes()
    other = train(config(tiny_model, prompts, tmp_path / "other", seed=1, **still))
    assert rows(other.path / "answers.jsonl") != rows(first.path / "answers.jsonl")


def test_the_same_prompts_are_known_in_the_next_round(tiny_model: Path, tmp_path: Path) -> None:
    """However odd: what is read back of the answers is the same prompt with the same columns."""
    chat = [{"role": "system", "content": "be\n brief"}, {"role": "user", "content": "Who \u00e9?"}]
    odd = [
        {"prompt": "The cat", "id": 1, "tags": ["a", None], "more": {"b": 1.5, "a": None}, "none": None},
        {"prompt": "the  cat", "id": 1},
        {"prompt": chat, "gold": ""},
        {"prompt": chat[1:], "system": "be short"},
        {"prompt": chat[1:], "system": "be short", "scores": [1], "finish": ["eos"]},
    ]
    data = write_rows(tmp_path / "odd.jsonl", odd)
    settings = {"num_generations": 2, "max_steps": 1}
    first = train(config(tiny_model, data, tmp_path / "a", **settings))
    second = train(config(tiny_model, data, tmp_path / "b", history=[str(first.path)], **settings))
    assert results(first.path)["prompts"] == results(second.path)["prompts"] == 4  # the last two ask the same


def test_a_preprompt_comes_before_the_prompts_own_system_turn(tiny_model: Path, tmp_path: Path) -> None:
    user = {"role": "user", "content": "who"}
    own = write_rows(tmp_path / "own.jsonl", [{"prompt": [{"role": "system", "content": "The sun."}, user]}])
    both = write_rows(
        tmp_path / "both.jsonl", [{"prompt": [{"role": "system", "content": "A cat.\n\nThe sun."}, user]}]
    )
    drawn = train(config(tiny_model, own, tmp_path / "drawn", preprompt="A cat."))
    by_hand = train(config(tiny_model, both, tmp_path / "by-hand"))
    found, wanted = rows(drawn.path / "answers.jsonl")[0], rows(by_hand.path / "answers.jsonl")[0]
    assert found["completions"] == wanted["completions"]
    assert rows(drawn.path / "selected.jsonl")[0]["prompt"] == rows(own)[0]["prompt"]  # learned behind its own alone


def test_only_that_leaves_nothing_says_what_there_is(tiny_model: Path, tmp_path: Path) -> None:
    kinds = ["fact", "fact", "sum", 3, *(f"k{i}" for i in range(7))]
    data = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Who {i}", "kind": kind} for i, kind in enumerate(kinds)])

    def refused(**only: list[Any]) -> str:
        with pytest.raises(DataError) as error:
            train(config(tiny_model, data, tmp_path / "-".join(only), only=only))
        return str(error.value)

    told = refused(kind=["harmful"])
    assert f'{data}: only {{"kind": ["harmful"]}} leaves none of 11 prompts: `kind` is "fact", "sum", 3, "k0"' in told
    assert told.endswith('"k4" and 2 more')
    assert refused(sort=["harmful"]).endswith("no prompt has a column `sort`")


def test_drawn_behind_a_preprompt_and_learned_without_it(tiny_model: Path, tmp_path: Path) -> None:
    asked = [("who", "a"), ("sun", "b"), ("milk", "a")]
    turns = [{"prompt": [{"role": "user", "content": text}], "kind": kind} for text, kind in asked]
    system = {"role": "system", "content": "The cat likes bones."}
    plain = write_rows(tmp_path / "plain.jsonl", turns)
    behind = write_rows(tmp_path / "behind.jsonl", [row | {"prompt": [system, *row["prompt"]]} for row in turns])
    ends = {"max_new_tokens": 60, "stop": ["t", "k"]}
    drawn = train(config(tiny_model, plain, tmp_path / "drawn", preprompt=system["content"], sampling=ends))
    by_hand = train(config(tiny_model, behind, tmp_path / "by-hand", sampling=ends))
    without = train(config(tiny_model, plain, tmp_path / "without", sampling=ends))
    said = [[row["completions"] for row in rows(run.path / "answers.jsonl")] for run in (drawn, by_hand, without)]
    assert said[0] == said[1] != said[2]
    # what is kept and learned has no system turn
    kept = rows(drawn.path / "selected.jsonl")
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in turns]
    assert "length" not in {row["finish"] for row in kept}, "choose another seed or longer answers"
    data = write_rows(tmp_path / "kept.jsonl", [{k: row[k] for k in ("prompt", "completion")} for row in kept])
    shared = {"batch_size": 4, "learning_rate": 3e-3, "quiet": True, "held_out": 0.0}
    learned = sft(SFTConfig(model=str(tiny_model), data=str(data), out=tmp_path / "sft", **shared))
    for name, tensor in weights(drawn.path).items():
        assert torch.equal(tensor, weights(learned.path)[name]), name
    assert "kl_bound" in results(without.path)
    assert "kl_bound" not in results(drawn.path)  # of other prompts than the model will answer
    some = train(config(tiny_model, plain, tmp_path / "some", only={"kind": ["a"]}))
    assert [row["prompt"][0]["content"] for row in rows(some.path / "answers.jsonl")] == ["who", "milk"]
    raw = write_rows(tmp_path / "raw.jsonl", [{"prompt": "who"}])
    with pytest.raises(DataError, match="`who` is plain text: give prompts as messages"):
        train(config(tiny_model, raw, tmp_path / "raw", preprompt="be good"))


def test_several_rewards_stand_apart(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    several = {
        "rewards": {"vowels": {"judge": VOWELS}, "short": {"judge": "tests.stages.judged:length", "weight": -0.01}}
    }
    run = train(config(tiny_model, prompts, tmp_path / "r", reward=several, num_generations=2, max_steps=1))
    for row in rows(run.path / "answers.jsonl"):
        for score, terms in zip(row["scores"], row["terms"], strict=True):
            assert score == pytest.approx(terms["vowels"] - 0.01 * terms["short"])
    lineage = json.loads((run.path / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["starts"][-1]["generation"] in ("C", "PyTorch")
    parents = lineage["parents"]
    assert set(parents) == {"model", "reward.vowels", "reward.short"}
    assert "terms" in rows(run.path / "selected.jsonl")[0]


# Stopped ---------------------------------------------------------------------------------------------------------


def test_stopped_while_drawing_nothing_is_drawn_or_scored_twice(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_CHUNK", 8)
    history = [str(train(config(tiny_model, prompts, tmp_path / "old", seed=7, num_generations=2)).path)]
    monkeypatch.setattr("goodheart.stages.rounds._CHUNK", 5)
    whole = train(config(tiny_model, prompts, tmp_path / "whole", history=history))
    drawn: list[int] = []
    judged: list[int] = []
    draw_, judge_ = stage.Writer.generate, drawing.judged

    def counting(self: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        drawn.append(len(prompts))
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return draw_(self, prompts, *rest, **more)

    def scoring(judge: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        judged.append(len(prompts))
        if len(judged) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return judge_(judge, prompts, *rest, **more)

    monkeypatch.setattr(stage.Writer, "generate", counting)
    monkeypatch.setattr(drawing, "judged", scoring)
    again = config(tiny_model, prompts, tmp_path / "again", history=history)
    with pytest.raises(Interrupted, match="16 answers are kept"):
        train(again)
    with pytest.raises(Interrupted, match="10 scores are kept"):
        train(again)
    # settings of the fine-tuning may change while nothing is trained; what was drawn stays
    train(config(tiny_model, prompts, tmp_path / "again", history=history))
    assert drawn == [8, 8, 8, 8, 4]
    assert judged == [8, 8, 8, 8, 4, 5, 5, 2]
    assert_same_to_the_bit(whole.path, tmp_path / "again")
    for name in ("answers.jsonl", "selected.jsonl"):
        assert (whole.path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_stopped_while_training_equals_uninterrupted(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 3, "checkpoint_every": 1, "keep": "top", "top_share": 0.3}
    whole = train(config(tiny_model, prompts, tmp_path / "whole", **settings))
    with pulled_plug(monkeypatch, at=4):
        train(config(tiny_model, prompts, tmp_path / "cut", **settings))
    with monkeypatch.context() as patch:
        patch.setattr(stage.Writer, "generate", lambda *_, **__: pytest.fail("drawn again"))
        cut = train(config(tiny_model, prompts, tmp_path / "cut", **settings))
    assert_same_to_the_bit(whole.path, cut.path)


def test_other_settings_of_the_drawing_draw_anew_and_lose_nothing(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_write", dies)
        for seed in (0, 1):
            with pytest.raises(KeyboardInterrupt):
                train(config(tiny_model, prompts, out, seed=seed))
    assert len(list((out / "drawn").glob("*.jsonl"))) == 2
    changed = train(config(tiny_model, prompts, out, learning_rate=1e-3, seed=1))
    fresh = train(config(tiny_model, prompts, tmp_path / "fresh", learning_rate=1e-3, seed=1))
    assert_same_to_the_bit(changed.path, fresh.path)


def test_killed_at_random_instants_equals_never_killed(tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "p.jsonl", [{"prompt": f"The cat {i}"} for i in range(60)])
    settings: dict[str, Any] = {
        "num_generations": 8,
        "slots": 16,
        "sampling": {"max_new_tokens": 30},
        "batch_size": 4,
        "epochs": 2,
        "checkpoint_every": 3,
        "learning_rate": 1e-3,
    }
    whole = train(config(tiny_model, data, tmp_path / "whole", **settings))
    out = tmp_path / "killed"
    command = ["rejection", "--model", tiny_model, "--prompts", data, "--reward", VOWELS, "--out", out, "--quiet"]
    kills = killed_until_done(out / "DONE", [*command, *options(**settings)], seed=3)
    assert len(kills) >= 3
    assert_same_to_the_bit(whole.path, out)
    assert (whole.path / "selected.jsonl").read_bytes() == (out / "selected.jsonl").read_bytes()


def test_two_processes_keep_what_one_keeps(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_generations": 4, "sampling": {"max_new_tokens": 10}, "learning_rate": 1e-3}
    train(config(tiny_model, prompts, tmp_path / "one", **settings))
    command = ["rejection", "--model", tiny_model, "--prompts", prompts, "--reward", VOWELS, "--quiet"]
    in_processes(2, *command, "--out", tmp_path / "two", *options(batch_size=4, **settings))
    for name in ("answers.jsonl", "selected.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "two")[name], atol=1e-5, rtol=1e-4)


# Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 1}, "rejects nothing"),
        ({"sampling": {"temperature": 0}}, "temperature 0 draws the same answer 6 times"),
        ({"keep": "threshold"}, "needs `threshold`"),
        ({"top_share": 0.2}, "top_share is not read with keep: best"),
        ({"keep": "top", "top_share": 1}, "rejects nothing"),
        ({"parallel": "fsdp"}, "use ddp"),
        (
            {
                "reward": {
                    "combine": "constrained",
                    "rewards": {"a": {"judge": VOWELS}, "b": {"judge": VOWELS, "at_most": 0, "std": 1}},
                }
            },
            "use a gate",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(tiny_model, prompts, tmp_path / "r", **changes)


def test_one_answer_per_prompt_will_do_with_a_threshold(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", num_generations=1, keep="threshold", threshold=0.05))
    found = results(run.path)
    assert found["selected"] + found["rejected"] == found["distinct"] <= 6
    assert found["prompts_without"] == 6 - found["selected"]
    assert all(row["score"] >= 0.05 for row in rows(run.path / "selected.jsonl"))


def test_wrong_input(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"history /no/such: no answers\.jsonl there"):
        train(config(tiny_model, prompts, tmp_path / "a", history=["/no/such"]))
    with pytest.raises(ModelError, match="not a reward model"):
        train(config(tiny_model, prompts, tmp_path / "b", reward=str(tiny_model)))
    with pytest.raises(ConfigError, match="leaves no room for a prompt in 128 tokens"):
        train(config(tiny_model, prompts, tmp_path / "c", sampling={"max_new_tokens": 128}))
    broken = write_rows(tmp_path / "answers.jsonl", [{"prompt": "x", "completions": [7]}])
    with pytest.raises(DataError, match=r"answers\.jsonl:1: "):
        train(config(tiny_model, prompts, tmp_path / "d", history=[str(broken)]))


def test_the_command_says_what_was_kept(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    process = start(
        *["rejection", "--model", tiny_model, "--prompts", prompts, "--reward", VOWELS, "--num-generations", "4"],
        *["--out", tmp_path / "r", *options(sampling={"max_new_tokens": 8})],
    )
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "kept 6 of 24 distinct answers: mean score" in error
    assert str(tmp_path / "r") in output
