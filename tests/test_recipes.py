"""Every recipe is sound, and runs from end to end on a model and data that are tiny."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from goodheart.data.files import read_rows
from goodheart.loop.pipeline import Pipeline
from goodheart.loop.world import PlaygroundConfig, make

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ON_A_DEMO = ("instructgpt", "llama2", "dpo", "kto-thumbs", "grpo")
NEW_TOKENS = 4
# What makes any stage of its kind quick; sizes only.
QUICK: dict[str, dict[str, Any]] = {
    "sample": {"limit": 12, "answers": 2, "sampling.max_new_tokens": NEW_TOKENS},
    "simulate": {"limit": 6},
    "reward": {"max_steps": 2, "batch_size": 4},
    "dpo": {"max_steps": 2, "batch_size": 4},
    "kto": {"max_steps": 2, "batch_size": 4},
    "rejection": {"max_steps": 2, "num_generations": 2, "sampling.max_new_tokens": NEW_TOKENS},
    "grpo": {"steps": 1, "batch_size": 8, "num_generations": 4, "sampling.max_new_tokens": NEW_TOKENS},
    "ppo": {"steps": 1, "batch_size": 8, "sampling.max_new_tokens": NEW_TOKENS},
    "evaluate": {"resamples": 1000, "reward_prompts": 4},
}
AUDITED = {"audit.count": 4, "audit.every": 1}


@pytest.fixture(scope="module")
def demo(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes take from a finished demo, with a model that knows nothing and labels that are made up."""
    base = tmp_path_factory.mktemp("demo")
    for name in ("sft", "reward"):  # grpo's reward is only looked for
        shutil.copytree(tiny_model, base / name)
    make(PlaygroundConfig(out=base / "world", documents=20, demonstrations=10))
    for name in ("train", "validation", "test"):
        file = base / "world" / f"prompts-{name}.jsonl"
        asked = [row.data for row in read_rows(str(file))]
        harmful = [row for row in asked if row["kind"] == "harmful"][:12]
        write(file, [*harmful, *(row for row in asked if row["kind"] != "harmful")][:24])
    asked = [row.data for row in islice(read_rows(str(base / "world" / "prompts-train.jsonl")), 20)]
    said = ["I will not help with that.", "I do not know.", "One could go on for hours."]
    write(base / "labels.jsonl", [row | {"completions": said, "ranks": [0, 1, 2]} for row in asked])
    return base


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(recipe: str, base: Path, out: Path, *sets: str) -> Pipeline:
    return Pipeline.load(RECIPES / f"{recipe}.yaml", [f"vars.base={base}", f"out={out}", *sets])


def quick(loaded: Pipeline) -> list[str]:
    """Settings that make every stage of a recipe quick. What is left out are the gates: nothing learns in two steps."""
    sets = ["gates=[]"]
    for step in loaded.steps:
        sizes = QUICK[step.kind_name] | (AUDITED if step.kind_name in ("ppo", "grpo") else {})
        sets += [f"stages.{step.name}.{name}={value}" for name, value in sizes.items()]
    return sets


def test_these_are_the_recipes() -> None:
    """hh-small is on real data; tests/loop/test_reading.py reads it."""
    assert {file.stem for file in RECIPES.glob("*.yaml")} == {*ON_A_DEMO, "hh-small"}


@pytest.mark.parametrize("recipe", ON_A_DEMO)
def test_it_is_sound(recipe: str, demo: Path, tmp_path: Path) -> None:
    loaded = load(recipe, demo, tmp_path / "out", "seed=5")
    assert all(plan.runs for plan in loaded.plan())
    assert {step.settings.seed for step in loaded.steps if hasattr(step.settings, "seed")} == {5}
    last = loaded.steps[-1]
    assert last.kind_name == "evaluate"
    assert next(iter(last.settings.answers)) == "start"  # compared with what it started from
    assert loaded.gates
    # it is judged by prompts and by a judge that nothing was trained on
    test = str(demo / "world" / "prompts-test.jsonl")
    for step in loaded.steps:
        trained = step.kind_name not in ("sample", "evaluate", "simulate")
        named = [text for _, text, _ in step.kind.inputs(step.settings.model_dump(mode="json"))]
        assert not (trained and test in named), step.name
        assert str(getattr(step.settings, "reward", None)) != last.settings.score


@pytest.mark.parametrize("recipe", ["dpo", "kto-thumbs", "instructgpt", "grpo"])
def test_it_runs(recipe: str, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["vars.reward=tests.stages.rewards:vowels"] if recipe == "grpo" else []
    loaded = load(recipe, demo, out, *given, *quick(load(recipe, demo, out)))
    loaded.run()
    found = loaded.results()["evaluate"]
    assert found["prompts"] == 12
    assert set(found["models"]) == set(loaded.steps[-1].settings.answers)
    assert not any(plan.runs for plan in loaded.plan())
