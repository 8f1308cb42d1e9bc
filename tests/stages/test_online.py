"""Online preference learning on a two-layer model with random weights: methods learn, invariants hold."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from goodheart.data.template import Template
from goodheart.errors import ConfigError, DataError
from goodheart.models.load import load_causal
from goodheart.stages import online
from goodheart.stages.online import OnlineConfig, train
from goodheart.stages.online_answers import Contest
from goodheart.stages.online_update import Lesson
from goodheart.stages.settings.online import RECIPES
from goodheart.train.config import build
from goodheart.train.metrics import read_metrics
from tests.stages.commands import assert_same_to_the_bit, in_processes, log, options, start, write_rows
from tests.stages.crash import pulled_plug

VOWELS = "tests.stages.rewards:vowels"
MORE_VOWELS = "tests.stages.comparers:more_vowels"


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few demonstrations."""
    rows = [
        ("The cat", " likes milk."),
        ("The dog likes", " bones."),
        ("Who", " likes the sun?"),
        ("Bones", " and milk"),
    ]
    return write_rows(
        tmp_path_factory.mktemp("shown") / "shown.jsonl", [{"prompt": p, "completion": c} for p, c in rows]
    )


def config(tiny_model: Path, prompts: Path, out: Path, **changes: Any) -> OnlineConfig:
    settings: dict[str, Any] = {
        "model": str(tiny_model),
        "reward": VOWELS,
        "prompts": str(prompts),
        "out": out,
        "steps": 2,
        "batch_size": 16,
        "sampling": {"max_new_tokens": 8},
        "learning_rate": 3e-3,
        "quiet": True,
    }
    return OnlineConfig(**{name: value for name, value in (settings | changes).items() if value is not None})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Contest, Lesson]]:
    """What the updates of a run learn from."""
    found: list[tuple[Contest, Lesson]] = []
    real = online.lesson

    def spy(contest: Contest, *arguments: Any) -> Lesson:
        learnt = real(contest, *arguments)
        found.append((contest, learnt))
        return learnt

    monkeypatch.setattr(online, "lesson", spy)
    return found


# It learns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "online-dpo"},
        {"recipe": "online-dpo", "num_generations": 4, "pairs": "all", "loss": "hinge"},
        {"recipe": "online-dpo", "num_generations": 4, "loss": "ipo"},
        {"recipe": "online-dpo", "reward": MORE_VOWELS},
        {"recipe": "online-dpo", "opponent": "previous", "sync_every": 3, "loss": "sigmoid"},
        {"recipe": "xpo", "bonus": 1e-3},
        {"recipe": "nash-md", "beta": 0.02},
    ],
    ids=lambda c: "-".join(str(value).rpartition(":")[2] for value in c.values()),
)
def test_the_reward_rises(tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings: Any = {"steps": 10, "batch_size": 64, "learning_rate": 2e-2, "audit": {"judge": VOWELS, "every": 10}}
    if changes.get("reward") is None:
        settings["audit"] = {"judge": "tests.stages.rewards:vowels_again", "every": 10}
    run = train(config(tiny_model, prompts, tmp_path / "r", **settings | changes))
    looks = [json.loads(line) for line in (run.path / "audit.jsonl").read_text().splitlines()]
    assert looks[-1]["audit"] > looks[0]["audit"] + 0.05
    assert looks[-1]["kl"] > 0.5
    rows = read_metrics(run.path)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)  # the policy starts as its reference
    assert max(row["sampler/logprob_diff_mean"] for row in rows) < 1e-4
    if changes["recipe"] != "nash-md":
        assert rows[-1]["rewards/accuracies"] >= 0.5
    if changes["recipe"] == "xpo":  # the bonus is on all answers, the pairs leave out ties
        assert all(row["loss"] == pytest.approx(row["loss/dpo"] + row["loss/xpo"], abs=1e-6) for row in rows)
    if changes["recipe"] in ("xpo", "nash-md"):
        assert rows[-1]["objective/win_rate"] > 0.55  # over the start, or what is half of it
    assert (run.path / "samples.jsonl").read_text().count("completion") >= 4


def test_self_play_goes_toward_the_demonstrations(tiny_model: Path, shown: Path, tmp_path: Path) -> None:
    settings: Any = {"reward": None, "recipe": "spin", "steps": 8, "batch_size": 32, "learning_rate": 1e-2}
    run = train(config(tiny_model, shown, tmp_path / "r", sync_every=4, **settings))
    rows = read_metrics(run.path)
    assert rows[-1]["logps/chosen"] > rows[0]["logps/chosen"] + 3
    assert [row["rewards/margins"] == pytest.approx(0, abs=1e-5) for row in rows] == [True] + [False] * 3 + [True] + [
        False
    ] * 3  # the reference became the policy before the fifth step
    assert "reward" not in json.loads((run.path / "lineage.json").read_text())["parents"]
    assert rows[0]["judge/ties"] == 0


# Step 0 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "expected"), [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", 25.0)]
)  # ipo: (1 / (2 * 0.1))^2
def test_before_the_first_update_policy_and_reference_agree(
    tiny_model: Path, prompts: Path, tmp_path: Path, loss: str, expected: float
) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", loss=loss, steps=1))
    row = read_metrics(run.path)[0]
    assert row["loss"] == pytest.approx(expected, abs=1e-4)
    for name in ("rewards/margins", "rewards/chosen", "rewards/rejected", "objective/kl"):
        assert row[name] == pytest.approx(0, abs=1e-4), name
    assert row["grad_norm"] > 0.01


def test_the_pair_is_what_the_judge_preferred(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = seen(monkeypatch)
    train(config(tiny_model, prompts, tmp_path / "r", num_generations=4, steps=1))
    contest, learnt = lessons[0]
    batch = contest.batch
    for p in range(4):
        rows = range(p * 4, p * 4 + 4)
        assert len({batch.prompts[i].text for i in rows}) == 1
        scores = [sum(c in "aeiou" for c in batch.answers[i].text) / max(1, len(batch.answers[i].text)) for i in rows]
        assert contest.scores_PK[p].tolist() == pytest.approx(scores)
        chosen = [k for k in range(4) if learnt.chosen_PK[p, k]]
        assert sorted(chosen) == sorted({scores.index(max(scores)), scores.index(min(scores))})
        assert learnt.used_PK[p].sum() == 2  # the others need no pass with gradients


# Splits, processes, crashes ----------------------------------------------------------------------------------------

SPLITS: list[dict[str, Any]] = [
    {"recipe": "online-dpo", "num_generations": 4, "mini_batches": 2},
    {"recipe": "online-dpo", "num_generations": 4, "pairs": "all", "reward": "tests.stages.rewards:longer_without_e"},
    {"recipe": "xpo", "bonus": 0.1},
    {"recipe": "nash-md", "num_generations": 4},
]


@pytest.mark.parametrize("changes", SPLITS, ids=lambda c: "-".join(str(v) for v in list(c.values())[:3]))
def test_every_micro_batch_split_learns_the_same(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, split = (
        train(config(tiny_model, prompts, tmp_path / name, max_tokens=tokens, **changes))
        for name, tokens in (("whole", 16384), ("split", 30))
    )
    assert_close(whole.path, split.path)


def test_two_processes_learn_what_one_does(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 12, "num_generations": 4, "learning_rate": 3e-3}
    settings |= {"sampling": {"max_new_tokens": 8}, "bonus": 0.1, "opponent": "reference", "pairs": "all"}
    arguments = ["online", "--model", tiny_model, "--prompts", prompts, "--quiet", "--reward", VOWELS]
    arguments += options(**settings)
    alone = start(*arguments, "--out", tmp_path / "one")
    in_processes(2, *arguments, "--out", tmp_path / "two")
    assert alone.wait(timeout=240) == 0
    assert_close(tmp_path / "one", tmp_path / "two")


def assert_close(a: Path, b: Path) -> None:
    """Weights and metrics are the same but for the order of sums."""
    for name, tensor in weights(a / "model").items():
        torch.testing.assert_close(tensor, weights(b / "model")[name], atol=2e-4, rtol=0)
    for x, y in zip(log(a), log(b), strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name] == pytest.approx(y[name], abs=1e-3, rel=1e-3), name
    assert log(a)[0]["grad_norm"] == pytest.approx(log(b)[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "online-dpo", "num_generations": 4, "mini_batches": 2},
        {"recipe": "online-dpo", "opponent": "previous", "sync_every": 3},
        {"recipe": "spin", "sync_every": 3, "reward": None},
        {"recipe": "nash-md"},
    ],
    ids=lambda c: f"{c['recipe']}-{c.get('opponent', '')}",
)
def test_stopped_and_continued_equals_uninterrupted(
    tiny_model: Path, shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    settings: Any = {"steps": 5, "checkpoint_every": 1} | changes
    whole = train(config(tiny_model, shown, tmp_path / "whole", **settings))
    with pulled_plug(monkeypatch, at=4):  # after the refresh: the reference is neither the start nor the policy
        train(config(tiny_model, shown, tmp_path / "cut", **settings))
    cut = train(config(tiny_model, shown, tmp_path / "cut", **settings))
    assert_same_to_the_bit(whole.path, cut.path)
    assert (whole.path / "samples.jsonl").read_text() == (cut.path / "samples.jsonl").read_text()


# No pair -----------------------------------------------------------------------------------------------------------


def test_ties_give_no_gradient(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", reward="tests.stages.rewards:always_a_third"))
    for row in read_metrics(run.path):
        assert row["judge/ties"] == 1
        assert row["judge/compared"] == row["policy/updates"] == 0
        assert "loss" not in row
    before, after = weights(tiny_model), weights(run.model_dir)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_opinion_is_no_pair(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = seen(monkeypatch)
    run = train(config(tiny_model, prompts, tmp_path / "r", reward="tests.stages.rewards:zero_one_none", steps=1))
    _, learnt = lessons[0]  # 0 1 | None 0 | 1 None | 0 1 | None 0 | 1 None | 0 1 | None 0
    whole = [p for p in range(8) if p % 3 == 0]
    assert [p for p in range(8) if learnt.used_PK[p].any()] == whole
    assert all(learnt.ranks_PK[p].tolist() == [1, 0] for p in whole)
    row = read_metrics(run.path)[0]
    assert row["judge/no_opinion"] == pytest.approx(5 / 16)
    assert row["judge/compared"] == pytest.approx(3 / 8)
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the mean over pairs, not over prompts
    with pytest.raises(DataError, match="no opinion"):
        train(config(tiny_model, prompts, tmp_path / "s", reward="tests.stages.rewards:silent"))


def test_the_same_words_are_no_pair(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = seen(monkeypatch)
    settings: Any = {"reward": "tests.stages.comparers:first_is_best", "sampling": {"max_new_tokens": 1}}
    run = train(config(tiny_model, prompts, tmp_path / "r", batch_size=256, num_generations=4, steps=1, **settings))
    contest, learnt = lessons[0]
    texts = [answer.text for answer in contest.batch.answers]
    same = 0
    for p in range(64):
        own = texts[p * 4 : p * 4 + 4]
        for i in range(4):
            for j in range(i + 1, 4):
                same += own[i] == own[j]
                assert own[i] != own[j] or learnt.ranks_PK[p, i] == learnt.ranks_PK[p, j]
    assert same > 3
    assert read_metrics(run.path)[0]["judge/same"] == pytest.approx(same / (64 * 6))


# Judges ------------------------------------------------------------------------------------------------------------


def test_a_judge_that_only_compares(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    by_score = train(config(tiny_model, prompts, tmp_path / "s", reward="tests.stages.judged:length"))
    assert "objective/scores" in read_metrics(by_score.path)[0]
    run = train(config(tiny_model, prompts, tmp_path / "r", reward="tests.stages.comparers:silent_on_cats", steps=1))
    row = read_metrics(run.path)[0]
    assert 0 < row["judge/no_opinion"] < 1
    assert row["objective/scores"] == pytest.approx(0.5)  # of two answers one wins
    with pytest.raises(DataError, match=r"comparers:wrong: ranks \[0\] for 2 answers"):
        train(config(tiny_model, prompts, tmp_path / "w", reward="tests.stages.comparers:wrong"))
    with pytest.raises(ConfigError, match="only compares"):
        train(config(tiny_model, prompts, tmp_path / "p", reward=MORE_VOWELS, missing_eos_penalty=1.0))


def test_several_rewards_are_told_apart(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    reward = {
        "rewards": {"vowels": {"judge": VOWELS}, "short": {"judge": "tests.stages.judged:length", "weight": -0.01}}
    }
    row = read_metrics(train(config(tiny_model, prompts, tmp_path / "r", reward=reward)).path)[0]
    assert row["rewards/short/mean"] > 1
    assert row["objective/scores"] == pytest.approx(row["rewards/vowels/mean"] - 0.01 * row["rewards/short/mean"])


def test_scores_that_are_no_log_odds_win_or_lose(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = seen(monkeypatch)
    for preference in ("auto", "soft"):
        train(config(tiny_model, prompts, tmp_path / preference, recipe="nash-md", preference=preference, steps=1))
    (hard, by_place), (soft, again) = lessons
    assert torch.equal(hard.scores_PK, soft.scores_PK)
    for p, (own, other) in enumerate(hard.scores_PK.tolist()):
        assert float(by_place.wins_PK[p, 0]) == (own > other) + 0.5 * (own == other)
        assert float(again.wins_PK[p, 0]) == pytest.approx(1 / (1 + math.exp(other - own)))
        assert by_place.used_PK[p].tolist() == [True, False]  # the opponent's answers need no pass with gradients


# Opponents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opponent", ["reference", "mixture", "previous", "a model"])
def test_the_opponent_writes_half_of_the_answers(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opponent: str
) -> None:
    first = train(config(tiny_model, prompts, tmp_path / "first", steps=4, learning_rate=2e-2))
    lessons = seen(monkeypatch)
    sync = {"sync_every": 2} if opponent == "previous" else {}
    named = str(first.path) if opponent == "a model" else opponent
    settings: Any = {"opponent": named, "steps": 3, "learning_rate": 2e-2, "num_generations": 4, **sync}
    train(config(tiny_model, prompts, tmp_path / "r", **settings))
    for step, (contest, _) in enumerate(lessons):
        batch = contest.batch
        by_policy = load_causal(tiny_model, dtype=torch.float32)  # of the first step
        logps = sampled(batch.ids_BT, batch.mask_BT, by_policy)
        agree = (logps - batch.sampler_logps_BT).abs().amax(1) < 1e-4
        own = contest.own_PK.flatten()
        assert own.tolist() == [True, True, False, False] * 4
        if step == 0:
            assert agree[own].all()
            assert agree[~own].all() == (opponent != "a model")  # the others all are the start, so far
        if opponent == "reference":
            assert agree[~own].all()
        if step == 2 and opponent in ("mixture", "previous"):
            assert not agree[~own].any()


def sampled(ids_BT: torch.Tensor, mask_BT: torch.Tensor, model: Any) -> torch.Tensor:
    from goodheart.models.causal import completion_logprobs

    with torch.no_grad():
        return completion_logprobs(model, ids_BT, mask_BT).logps_BT


def test_an_opponent_with_another_tokenizer_is_refused(
    tiny_model: Path, stories260k: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="another tokenizer"):
        train(config(tiny_model, prompts, tmp_path / "r", opponent=str(stories260k)))


@pytest.mark.parametrize("recipe", ["online-dpo", "xpo", "nash-md", "spin"])
def test_adapters(tiny_model: Path, shown: Path, tmp_path: Path, recipe: str) -> None:
    settings: Any = {"lora": {"rank": 4, "alpha": 8.0}, "recipe": recipe, "steps": 3, "learning_rate": 1e-2}
    settings |= {"reward": None} if recipe == "spin" else {}
    run = train(config(tiny_model, shown, tmp_path / "r", **settings))
    rows = read_metrics(run.path)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert max(row["sampler/logprob_diff_mean"] for row in rows) < 1e-4
    assert (run.model_dir / "adapter_model.safetensors").exists()


def test_bfloat16(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", recipe="nash-md", dtype="bfloat16", max_tokens=100))
    assert read_metrics(run.path)[0]["objective/kl"] == pytest.approx(0, abs=0.05)


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_settings_of_a_recipe_are_written_down(tiny_model: Path, shown: Path, tmp_path: Path, recipe: str) -> None:
    given = config(tiny_model, shown, tmp_path / "r", recipe=recipe, reward=None if recipe == "spin" else VOWELS)
    run = train(given)
    written = yaml.safe_load((run.path / "config.yaml").read_text())
    assert {name: written[name] for name in RECIPES[recipe]} == RECIPES[recipe]
    assert build(OnlineConfig, file=run.path / "config.yaml") == given


def test_the_guard_works(tiny_model: Path, tmp_path: Path) -> None:
    asked = [
        f"{who} {what}" for who in ("The cat", "The dog", "The sun", "Who") for what in ("likes", "and", "is", "of")
    ]
    many = write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in asked])
    audit = {"judge": "tests.stages.rewards:few_vowels", "every": 4, "count": 16, "answers": 4}
    settings: Any = {"steps": 40, "batch_size": 64, "num_generations": 4, "learning_rate": 2e-2, "sync_every": 2}
    run = train(config(tiny_model, many, tmp_path / "r", audit=audit, **settings))
    looks = [json.loads(line) for line in (run.path / "audit.jsonl").read_text().splitlines()]
    assert run.results["ended_early"].startswith("audit: the audit score fell from")
    assert run.results["goodhart"]["kept_step"] == 0
    assert looks[-1]["kl"] > 0.5  # from the start, though the reference follows the policy
    start_weights, kept = weights(tiny_model), weights(run.model_dir)
    assert all(torch.equal(start_weights[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 1}, "num_generations 1: an answer alone"),
        ({"num_generations": 3}, "batch_size 16 is no multiple of num_generations 3"),
        ({"num_generations": 3, "batch_size": 18, "opponent": "reference"}, "half of the answers are the opponent's"),
        ({"mini_batches": 9}, "mini_batches 9 is more than the 8 prompts a step"),
        ({"target_kl": 0.1}, "leave it out"),
        ({"beta": 0}, "beta"),
        ({"beta": -1}, "beta"),
        ({"loss": "simpo"}, "loss"),
        ({"opponent": " "}, "opponent is empty"),
        ({"opponent": "MODEL"}, "opponent is the model itself"),
        ({"opponent": "previous"}, "previous needs sync_every"),
        ({"opponent": "reference", "sync_every": 3}, "is opponent previous"),
        ({"reference": "elsewhere", "sync_every": 3}, "leave `reference` out"),
        ({"sync_every": 0}, "sync_every"),
        ({"recipe": "xpo", "opponent": "self"}, "bonus is on the reference's answers"),
        ({"recipe": "nash-md", "opponent": "self"}, "plays against somebody else"),
        ({"recipe": "nash-md", "opponent": "reference", "bonus": 0.1}, "not to nash-md"),
        ({"recipe": "nash-md", "pairs": "all"}, "pairs is not read"),
        ({"recipe": "nash-md", "mixture_coef": 1.0}, "mixture_coef"),
        ({"preference": "hard"}, "preference is not read with loss sigmoid"),
        ({"mixture_coef": 0.2}, "mixture_coef is not read with opponent self"),
        ({"recipe": "spin"}, "recipe spin learns from demonstrations"),
        ({"reward": "demonstration", "opponent": "reference"}, "opponent self"),
        ({"reward": "demonstration", "missing_eos_penalty": 1.0}, "demonstrations have no score"),
        ({"sampling": {"top_p": 0.9}}, "must be off while training"),
        ({"sampling": {"top_k": 50}}, "must be off while training"),
        ({"sampling": {"min_p": 0.1}}, "must be off while training"),
        ({"sampling": {"temperature": 0}}, "temperature must be over 0"),
        ({"parallel": "fsdp"}, "use parallel ddp"),
        ({"max_steps": 3}, "leave max_steps out"),
        ({"audit": {"judge": VOWELS}}, "is a reward that is trained on"),
    ],
)
def test_impossible_settings_are_refused_before_work_starts(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {name: str(tiny_model) if value == "MODEL" else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        config(tiny_model, prompts, tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


def test_demonstrations_that_cannot_be_used_are_set_aside(tiny_model: Path, tmp_path: Path) -> None:
    rows: Sequence[Any] = [
        {"prompt": "Who", "completion": " likes the sun?"},
        {"prompt": "The cat likes " * 60, "completion": " milk"},
    ]
    file = write_rows(tmp_path / "shown.jsonl", rows)
    run = train(config(tiny_model, file, tmp_path / "r", recipe="spin", reward=None))
    assert run.results["prompts"] == 1
    assert run.results["skipped"] == 1
    assert "longer than" in (run.path / "skipped.jsonl").read_text()
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        train(config(tiny_model, file, tmp_path / "s", recipe="spin", reward=None, sampling={"max_new_tokens": 200}))


def test_a_demonstration_is_read_as_an_answer_would_be(
    tiny_model: Path, shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = seen(monkeypatch)
    train(config(tiny_model, shown, tmp_path / "r", recipe="spin", reward=None, num_generations=4, steps=1))
    contest, learnt = lessons[0]
    template = Template.load(tiny_model)
    for p in range(4):
        row = p * 4
        ids = contest.batch.ids_BT[row][contest.batch.mask_BT[row]].tolist()
        assert ids[-1] in template.eos_ids
        assert template.decode(ids[:-1]) == contest.batch.answers[row].text
        assert learnt.ranks_PK[p].tolist() == [0, 1, 1, 1]
        assert contest.own_PK[p].tolist() == [False, True, True, True]
