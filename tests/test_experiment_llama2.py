"""The experiment beside the recipe of Llama 2: its measure, and what it takes from the recipe."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.llama2 import BESIDE, RECIPE, agreement, noise
from goodheart.loop.pipeline import Pipeline
from goodheart.loop.world import PlaygroundConfig, make


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ((1.0, 2.0, 9.0, 5.0), 4 / 5),  # wrong about the third and the fourth alone
        ((-1.0, -2.0, -9.0, -5.0), 1 / 5),
        ((3.0, 3.0, 3.0, 3.0), 1 / 2),  # ties count half
    ],
)
def test_agreement_counts_pairs_that_differ(proxy: tuple[float, ...], told: float) -> None:
    """Truth .10 .11 .50 .90: the first two are as good as each other, the other 5 of 6 pairs are told or not."""
    assert agreement(np.array(proxy), np.array([0.10, 0.11, 0.50, 0.90])) == pytest.approx(told)


def test_agreement_needs_answers_that_differ() -> None:
    assert math.isnan(agreement(np.array([1.0, 2.0]), np.array([0.5, 0.51])))


def test_noise_is_the_same_for_the_same_answer() -> None:
    first, other, again = noise(["a", "a", "a"], ["x", "y", "x"])
    assert first == again != other


def test_it_takes_from_the_recipe_what_the_recipe_makes(tiny_model: Path, tmp_path: Path) -> None:
    base, ours = tmp_path / "demo", tmp_path / "recipe"
    make(PlaygroundConfig(out=base / "world", documents=5, demonstrations=5))
    (base / "sft").symlink_to(tiny_model)
    recipe = Pipeline.load(RECIPE, [f"vars.base={base}", f"out={ours}"])
    ours.mkdir()
    for step in recipe.steps:
        step.output.touch()
    beside = Pipeline.load(BESIDE, [f"vars.base={base}", f"vars.recipe={ours}", f"out={tmp_path / 'beside'}"])

    def settings(pipeline: Pipeline, name: str, ours: str, theirs: str) -> dict[str, object]:
        found = next(step.settings for step in pipeline.steps if step.name == name).model_dump(mode="json")
        return {key: value for key, value in found.items() if key not in ("out", ours, theirs)}

    # one thing is changed at a time: all other settings are those of the recipe
    for mine, its, changed in (
        ("mixed-reward-0", "reward-helpful-0", "data"),
        ("mixed-1", "round-1", "reward"),
        ("mixed-helpful-labels-1", "helpful-labels-1", "answers"),
        ("mixed-safe-labels-1", "safe-labels-1", "answers"),
        ("test-mixed-1", "test-round-1", "model"),
    ):
        assert settings(beside, mine, changed, "") == settings(recipe, its, changed, "")
    again = settings(beside, "alone-2", "reward", "history")
    assert again == settings(recipe, "round-2", "reward", "history") | {"model": str(ours / "round-1")}
    first = settings(beside, "ppo-stale", "reward", "audit")
    assert first == settings(recipe, "ppo", "reward", "audit") | {"steps": 10, "schedule": "constant"}
