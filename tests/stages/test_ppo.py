"""PPO on a two-layer model with random weights: it learns, its invariants hold, and stopping it loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from goodheart.errors import ConfigError, DataError, HealthError
from goodheart.models.load import load_causal, load_reward
from goodheart.stages import ppo_update
from goodheart.stages.ppo import PPOConfig, train
from goodheart.train.metrics import comparable, read_metrics
from tests.stages.crash import pulled_plug

VOWELS = "tests.stages.rewards:vowels"
ROOT = Path(__file__).resolve().parents[2]


def config(tiny_model: Path, prompts: Path, out: Path, **changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "model": str(tiny_model),
        "reward": VOWELS,
        "prompts": str(prompts),
        "out": out,
        "steps": 3,
        "batch_size": 16,
        "mini_batches": 2,
        "ppo_epochs": 2,
        "sampling": {"max_new_tokens": 12},
        "learning_rate": 3e-3,
        "quiet": True,
    }
    return PPOConfig(**(settings | changes))


def weights(run_path: Path) -> dict[str, torch.Tensor]:
    return load_file(run_path / "model" / "model.safetensors")


def test_the_reward_rises_and_kl_is_paid(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", steps=15, batch_size=32, kl_coef=0.005))
    rows = read_metrics(run.path)
    first, last = rows[0], rows[-1]
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)  # the policy starts as its reference
    assert last["objective/raw_scores"] > first["objective/raw_scores"] + 0.1
    assert last["objective/kl"] > 0.5
    assert all(row["sampler/logprob_diff_mean"] < 1e-4 for row in rows)
    # reward = scores - kl_coef * KL, whatever the numbers
    expected = last["objective/scores"] + last["objective/non_score_reward"]
    assert last["objective/rlhf_reward"] == pytest.approx(expected, rel=1e-5)
    assert last["objective/non_score_reward"] == pytest.approx(-0.005 * last["objective/kl"], rel=1e-5)
    assert (run.path / "samples.jsonl").read_text().count("completion") >= 4


def test_stopped_and_continued_equals_uninterrupted(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 4, "checkpoint_every": 1, "kl_target": 1.0, "kl_horizon": 100.0}
    whole = train(config(tiny_model, prompts, tmp_path / "whole", **settings))
    with pulled_plug(monkeypatch, at=2):
        train(config(tiny_model, prompts, tmp_path / "cut", **settings))
    cut = train(config(tiny_model, prompts, tmp_path / "cut", **settings))
    for name, tensor in weights(whole.path).items():
        assert torch.equal(tensor, weights(cut.path)[name]), name
    assert comparable(read_metrics(whole.path)) == comparable(read_metrics(cut.path))
    assert (whole.path / "samples.jsonl").read_text() == (cut.path / "samples.jsonl").read_text()


def test_two_processes_learn_what_one_does(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    command = [
        "-m", "goodheart.cli", "ppo", "--model", tiny_model, "--prompts", prompts, "--reward", VOWELS, "--quiet",
        "--set", "steps=2", "--set", "batch_size=8", "--set", "mini_batches=2", "--set", "sampling.max_new_tokens=8",
        "--set", "learning_rate=1e-3",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    one = [sys.executable, *command, "--out", tmp_path / "one"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"]
    two = [sys.executable, *launcher, *command, "--out", tmp_path / "two"]
    for line in (one, two):
        done = subprocess.run(
            [*map(str, line)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    a, b = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(a) == len(b) == 2
    for name in ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg", "val/ratio", "grad_norm"):
        for x, y in zip(a, b, strict=True):
            assert x[name] == pytest.approx(y[name], abs=2e-4), name


@pytest.mark.parametrize(
    "changes",
    [
        {"shared_trunk": True},
        {"lora": {"rank": 4, "alpha": 8.0}},
        {"shared_trunk": True, "lora": {"rank": 4, "alpha": 8.0}},
        {"whiten_rewards": True, "entropy_coef": 0.01, "missing_eos_penalty": 1.0},
        {"dtype": "bfloat16"},
        {"batch_size": 5, "mini_batches": 3, "max_tokens": 40},
    ],
    ids=["shared", "lora", "shared-lora", "extras", "bfloat16", "odd-sizes"],
)
def test_variants_run_and_keep_the_first_ratio_at_one(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", **changes))  # a first ratio off 1 would have raised
    assert len(read_metrics(run.path)) == 3
    assert abs(run.results["objective/kl"]) < 3  # after three small steps; an estimate from 16 answers has either sign
    assert max(row["sampler/logprob_diff_mean"] for row in read_metrics(run.path)) < 0.02


def test_lora_reference_is_the_model_without_its_adapter(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", lora={"rank": 4, "alpha": 8.0}, steps=4))
    assert read_metrics(run.path)[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert read_metrics(run.path)[-1]["objective/kl"] > 0.01
    assert (run.model_dir / "adapter_model.safetensors").exists()
    ids = torch.tensor([[1, 40, 41, 42]])
    assert not torch.equal(load_causal(run.model_dir)(ids), load_causal(tiny_model)(ids))


def test_micro_batches_do_not_change_the_result(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    whole = train(config(tiny_model, prompts, tmp_path / "a", steps=1, max_tokens=100_000))
    split = train(config(tiny_model, prompts, tmp_path / "b", steps=1, max_tokens=30))
    for name in ("loss/policy_avg", "loss/value_avg", "grad_norm", "policy/approxkl_avg", "objective/entropy"):
        assert read_metrics(whole.path)[0][name] == pytest.approx(read_metrics(split.path)[0][name], rel=1e-3, abs=1e-6)


def test_value_warm_up_leaves_the_policy_alone(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", steps=2, value_warmup=2))
    before = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(run.path).items())
    rows = read_metrics(run.path)
    assert rows[1]["loss/value_avg"] < rows[0]["loss/value_avg"]


def test_the_run_ends_when_kl_goes_over_its_limit(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", steps=30, kl_coef=0.0, learning_rate=1e-2, max_kl=0.5))
    assert "went over max_kl" in run.results["ended_early"]
    assert len(read_metrics(run.path)) < 30


def test_passes_end_when_the_policy_moved_too_far(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", steps=1, ppo_epochs=8, learning_rate=1e-2, target_kl=1e-4))
    row = read_metrics(run.path)[0]
    assert row["policy/stopped_early"] == 1
    assert row["policy/updates"] < 16


def test_adaptive_kl_raises_the_price_above_the_target(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    settings = {"steps": 4, "kl_target": 1e-3, "kl_horizon": 100.0, "learning_rate": 1e-2}
    rows = read_metrics(train(config(tiny_model, prompts, tmp_path / "r", **settings)).path)
    # over the target by far: each batch of 16 answers multiplies the price by 1 + 0.2 * 16 / 100
    assert rows[3]["kl_coef"] == pytest.approx(rows[2]["kl_coef"] * 1.032)


def test_answers_without_an_opinion_are_left_out(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", steps=1, reward="tests.stages.rewards:every_other"))
    assert read_metrics(run.path)[0]["objective/scores"] == 1  # a None counted as 0 would halve it
    with pytest.raises(DataError, match="no opinion"):
        train(config(tiny_model, prompts, tmp_path / "s", steps=1, reward="tests.stages.rewards:silent"))


def test_randomness_in_the_forward_pass_is_caught(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = ppo_update.completion_logprobs

    def noisy(*arguments: Any, **named: Any) -> Any:
        out = exact(*arguments, **named)
        return out._replace(logps_BT=out.logps_BT + 0.3)

    monkeypatch.setattr(ppo_update, "completion_logprobs", noisy)  # the update's pass alone, not the recording one
    with pytest.raises(HealthError, match=r"step 1: before the first update the probability ratio is 1\.3"):
        train(config(tiny_model, prompts, tmp_path / "r"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"max_new_tokens": 12, "top_p": 0.9}}, "must be off while training"),
        ({"sampling": {"max_new_tokens": 12, "temperature": 0}}, "temperature must be over 0"),
        ({"mini_batches": 99}, "mini_batches 99 is more than batch_size 16"),
        ({"parallel": "fsdp"}, "use parallel ddp"),
        ({"max_steps": 3}, "leave max_steps out"),
        ({"shared_trunk": True, "value_model": "reward"}, "shared_trunk"),
        ({"value_model": "reward", "reward": {"rewards": {"a": {"judge": VOWELS}}}}, "needs a single reward model"),
        ({"kl_coef": 0, "kl_target": 6.0}, "0 stays 0"),
        ({"kl_horizon": 100}, "kl_horizon 100 says how fast kl_coef adapts: set kl_target"),
    ],
)
def test_impossible_settings_are_refused_before_work_starts(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tiny_model, prompts, tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists()


def test_no_room_for_an_answer(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leaves no room for a prompt in 128 tokens"):
        train(config(tiny_model, prompts, tmp_path / "r", sampling={"max_new_tokens": 200}))


def test_value_model_from_a_reward_model_of_other_tokens_is_refused(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="use value_model: policy"):
        train(config(tiny_model, prompts, tmp_path / "r", value_model="reward"))


@pytest.fixture(scope="module")
def reward_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from goodheart.stages.reward import RewardConfig
    from goodheart.stages.reward import train as train_reward

    folder = tmp_path_factory.mktemp("reward")
    rows = [{"prompt": "The cat", "chosen": f" likes a{'a' * (i % 3)}", "rejected": f" x{i}zz"} for i in range(24)]
    rows += [{"prompt": "Who", "chosen": " aeiou", "rejected": " xyz"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {"model": str(tiny_model), "data": str(folder / "pairs.jsonl"), "out": folder / "run", "held_out": 0.0}
    return train_reward(RewardConfig(**settings, epochs=4, batch_size=8, learning_rate=3e-3, quiet=True)).path


def test_a_trained_reward_starts_the_value_model_and_scores_sampled_tokens(
    tiny_model: Path, prompts: Path, tmp_path: Path, reward_run: Path
) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "r", reward=str(reward_run), steps=8, kl_coef=0.005))
    rows = read_metrics(run.path)
    assert rows[-1]["objective/scores"] > rows[0]["objective/scores"]
    # scores are normalised by the reward model's own scale
    extra = load_reward(reward_run).extra
    expected = (rows[0]["objective/raw_scores"] - extra["score_mean"]) / extra["score_std"]
    assert rows[0]["objective/scores"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
