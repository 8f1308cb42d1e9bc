"""What makes a finished output stand no more: the order of names, and settings that count or do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from goodheart.loop.code import changed
from goodheart.loop.registry import STAGES
from goodheart.loop.step import Step, difference, newly_usual
from goodheart.playground.population import Crowd
from goodheart.train.config import LoraSettings, Settings


class Block(Settings):
    a: int = 1
    b: int = 2


class Stage(Settings):
    out: str
    first: int = 3
    block: Block = Block()
    lora: LoraSettings | None = None
    crowd: Crowd = Crowd()


def identity(**settings: object) -> dict[str, object]:
    return {"stage": "x", "settings": settings, "inputs": {}, "code": {}}


def test_code_of_a_users_function_is_that_of_when_the_pipeline_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "my_reward.py"

    def read(score: float) -> Step:
        file.write_text(f"def score(prompts, answers):\n    return [{score}] * len(answers)\n", encoding="utf-8")
        kind = STAGES["score"]
        settings = kind.load_settings()(reward="my_reward:score", data="x.jsonl", out=Path("y.jsonl"))
        return Step("scores", "score", kind, settings, Path("y.jsonl"))

    first, second = read(1.0), read(2.0)  # the file is another before anybody asks the first one
    assert [Path(name).name for name in changed(first.code, second.code)] == ["my_reward.py"]


def test_the_order_of_names_counts_inside_blocks_only() -> None:
    old = identity(answers={"base": 1, "sft": 2, "ppo": 3}, other=1, crowd={"weights": {"a": 1, "b": 2}})
    assert (
        difference(old, identity(other=1, answers={"base": 1, "sft": 2, "ppo": 3}, crowd=old["settings"]["crowd"]))
        == ""
    )  # type: ignore[index]
    new = identity(answers={"ppo": 3, "base": 1, "sft": 2}, other=1, crowd={"weights": {"b": 2, "a": 1}})
    assert difference(old, new) == "order of answers; order of crowd.weights"
    less = identity(answers={"base": 1, "ppo": 3}, other=1, crowd=old["settings"]["crowd"])  # type: ignore[index]
    assert difference(old, less) == "answers.sft: 2 -> not set"


def test_settings_that_change_no_result_do_not_count() -> None:
    names = ("quiet", "log_every", "tensorboard", "keep_checkpoints", "checkpoint_every", "max_tokens")
    old, new = (identity(**dict.fromkeys(names, value), sampling={"max_tokens": value}) for value in (1, 2))
    assert difference(old, new) == "sampling.max_tokens: 1 -> 2"


def test_what_is_new_and_usual() -> None:
    assert list(newly_usual({"out": "x", "block": {"a": 5}}, Stage(out="x"))) == ["first", "block.b", "lora", "crowd"]
    # given now, though it has its own defaults
    assert "lora" not in list(newly_usual({"out": "x"}, Stage(out="x", lora=LoraSettings())))
    assert list(newly_usual({}, Stage(out="x", first=4, block=Block(a=2)))) == ["lora", "crowd"]
    old, new = identity(a=1), identity(a=1, block={"a": 1, "b": 2}, blocks=2)
    assert difference(old, new, usual=["block"]) == "blocks: not set -> 2"
