"""Sampler and trainer that differ: losses weighed by importance in bfloat16, and nothing of it in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from goodheart.errors import ConfigError
from goodheart.losses.policy import sequence_ratio
from goodheart.stages import grpo, ppo, updates
from goodheart.stages.rollouts import Rollouts
from goodheart.stages.settings.grpo import GRPOConfig
from goodheart.stages.settings.online import OnlineConfig
from goodheart.stages.settings.ppo import PPOConfig
from goodheart.train.config import build
from goodheart.train.metrics import comparable, read_metrics
from goodheart.train.parallel import World
from goodheart.train.run import Run
from tests.stages.crash import pulled_plug

WEIGHTS = ("sampler/importance_mean", "sampler/importance_capped", "sampler/importance_max")


@pytest.fixture
def train(tiny_model: Path, prompts: Path, tmp_path: Path) -> Callable[..., Run]:
    """Two steps of ppo, or of grpo, in a folder of that name."""

    def run(stage: str, name: str, **changes: Any) -> Run:
        settings: dict[str, Any] = {
            "model": str(tiny_model),
            "reward": "tests.stages.rewards:vowels",
            "prompts": str(prompts),
            "out": tmp_path / name,
            "steps": 2,
            "batch_size": 16,
            "mini_batches": 2,
            "sampling": {"max_new_tokens": 8},
            "learning_rate": 3e-3,
            "quiet": True,
        }
        if stage == "ppo":
            return ppo.train(PPOConfig(**(settings | {"ppo_epochs": 2} | changes)))
        return grpo.train(GRPOConfig(**(settings | {"num_generations": 4} | changes)))

    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


def same(one: Run, other: Run) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_weights_and_their_metrics_by_hand() -> None:
    # p_old / p_sampler = 1.5, 0.5, 4 (capped to 2), and one on padding: mean (1.5 + 0.5 + 2) / 3, one of three capped
    old_BT, sampler_BT = torch.tensor([[1.5, 0.5], [8.0, 9.0]]).log(), torch.tensor([[1.0, 1.0], [2.0, 1.0]]).log()
    mask_BT = torch.tensor([[True, True], [True, False]])
    batch: Any = SimpleNamespace(old_logps_BT=old_BT, sampler_logps_BT=sampler_BT, mask_BT=mask_BT)
    found = updates.weigh(batch, 2.0, torch.bfloat16, World())
    torch.testing.assert_close(batch.importance_BT, torch.tensor([[1.5, 0.5], [2.0, 0.0]]))
    assert found == pytest.approx(dict(zip(WEIGHTS, (4 / 3, 1 / 3, 4.0), strict=True)))
    # As one ratio of each answer: sqrt(1.5 * 0.5) = 0.866, and 4
    found = updates.weigh(batch, 5.0, torch.bfloat16, World(), sequence_ratio)
    torch.testing.assert_close(batch.importance_BT, torch.tensor([[0.75**0.5, 0.75**0.5], [4.0, 0.0]]))
    assert found["sampler/importance_capped"] == 0
    batch.mask_BT = torch.zeros_like(mask_BT)
    assert updates.weigh(batch, 2.0, torch.bfloat16, World()) == {}  # nothing is learnt from


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("ppo", {}), ("ppo", {"shared_trunk": True}), ("grpo", {}), ("grpo", {"recipe": "gspo"})],
    ids=["ppo", "shared-trunk", "grpo", "gspo"],
)
def test_nothing_is_weighed_in_float32(train: Callable[..., Run], stage: str, changes: dict[str, Any]) -> None:
    on, off = (train(stage, name, importance_cap=cap, **changes) for name, cap in (("on", 2.0), ("off", None)))
    assert same(on, off)
    assert comparable(read_metrics(on.path)) == comparable(read_metrics(off.path))
    assert not [name for row in read_metrics(on.path) for name in WEIGHTS if name in row]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("ppo", {}),
        ("ppo", {"sampling": {"max_new_tokens": 8, "temperature": 0.5}}),
        ("grpo", {"recipe": "rloo"}),
        ("grpo", {"recipe": "gspo", "epsilon": 0.1, "epsilon_high": 0.2}),  # its own range is below rounding
    ],
    ids=["ppo", "cold", "rloo", "gspo"],
)
def test_bfloat16_is_weighed(train: Callable[..., Run], stage: str, changes: dict[str, Any]) -> None:
    on, off = (
        train(stage, name, dtype="bfloat16", importance_cap=cap, **changes)
        for name, cap in (("on", 2.0), ("off", None))
    )
    for row in read_metrics(on.path):
        # Sampler and trainer differ by rounding: no ratio is far from 1. One taken at another temperature would be.
        assert row["sampler/importance_mean"] == pytest.approx(1, abs=0.005)
        assert 1 < row["sampler/importance_max"] < 1.1
        assert row["sampler/importance_capped"] == 0
    assert not same(on, off)
    assert not [name for row in read_metrics(off.path) for name in WEIGHTS if name in row]


def test_a_token_counts_by_its_weight(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights of 0 for all tokens: what is left of PPO's loss is that of the values, which have a trunk of their own.
    real = updates.weigh

    def nothing(batch: Rollouts, *arguments: Any) -> dict[str, float]:
        found = real(batch, *arguments)
        assert batch.importance_BT is not None
        batch.importance_BT = torch.zeros_like(batch.importance_BT)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(updates, "weigh", nothing)
        run = train("ppo", "r", dtype="bfloat16", steps=1)
    row = read_metrics(run.path)[0]
    assert row["loss/policy_avg"] == 0 < row["loss/value_avg"]
    warm = train("ppo", "warm", dtype="bfloat16", steps=1, value_warmup=1)  # the value model alone
    assert read_metrics(warm.path)[0]["loss/value_avg"] == row["loss/value_avg"]
    assert same(run, warm)


def test_stopped_and_continued_equals_uninterrupted(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"dtype": "bfloat16", "checkpoint_every": 1, "steps": 3}
    whole = train("ppo", "whole", **settings)
    with pulled_plug(monkeypatch, at=1):
        train("ppo", "cut", **settings)
    cut = train("ppo", "cut", **settings)
    assert same(whole, cut)
    assert comparable(read_metrics(whole.path)) == comparable(read_metrics(cut.path))


def test_impossible_caps_are_refused(tmp_path: Path) -> None:
    given = {"model": "m", "reward": "r", "prompts": "p", "out": tmp_path}
    with pytest.raises(ConfigError, match=r"`importance_cap`.*greater than or equal to 1 \(got 0.5\)"):
        build(PPOConfig, overrides=given, sets=["importance_cap=0.5"])
    with pytest.raises(ConfigError, match="unknown key `importance_cap`"):  # it compares answers
        build(OnlineConfig, overrides=given, sets=["importance_cap=2"])
    with pytest.raises(ConfigError, match="here it is `importance_cap`"):
        build(GRPOConfig, overrides=given, sets=["vllm_importance_sampling_clip_max=3"])
