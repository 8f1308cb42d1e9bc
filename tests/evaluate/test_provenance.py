"""Evaluations of what is no longer there, and judges that were trained to please."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from goodheart.evaluate.runs import read_story
from goodheart.evaluate.summary import summarise
from tests.evaluate.stories import evaluation, write_run

EARLIER, LATER = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"


def cautions(folder: Path) -> str:
    return " ".join(summarise(read_story(folder)).cautions)


def test_a_run_after_the_evaluation_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "evaluate", "evaluate", results=evaluation(), time=EARLIER)
    write_run(tmp_path / "sft", "sft", results={}, time=EARLIER)
    assert "evaluate again" not in cautions(tmp_path)
    write_run(tmp_path / "ppo", "ppo", results={}, time=LATER)
    assert "ppo was started after the evaluation, which says nothing of it: evaluate again." in cautions(tmp_path)
    assert "sft was started" not in cautions(tmp_path)


def test_answers_that_changed_are_told(tmp_path: Path) -> None:
    file = tmp_path / "all" / "ppo.jsonl"
    file.parent.mkdir()
    file.write_text("{}\n", encoding="utf-8")
    data = [
        {"path": "elsewhere/ppo.jsonl", "sha256": hashlib.sha256(b"{}\n").hexdigest()},
        {"path": "elsewhere/gone.jsonl", "sha256": "abcd" * 16},
    ]
    write_run(tmp_path / "all" / "evaluate", "evaluate", results=evaluation(), data=data)
    assert "evaluate again" not in cautions(tmp_path / "all")
    file.write_text("{} \n", encoding="utf-8")
    assert "The answers in ppo.jsonl are not those that were evaluated" in cautions(tmp_path / "all")
    assert "gone.jsonl" not in cautions(tmp_path / "all")


@pytest.mark.parametrize(
    ("judge", "reward", "same"),
    [
        ({"path": "runs/reward"}, {"path": "runs/reward"}, True),
        ({"path": "./runs/reward/model/"}, {"path": "runs/reward"}, True),
        ({"path": "copy", "sha256": "a"}, {"path": "runs/reward", "sha256": "a"}, True),
        ({"path": "copy", "sha256": "b"}, {"path": "runs/reward", "sha256": "a"}, False),
        ({"path": "copy", "sha256": None}, {"path": "runs/reward", "sha256": None}, False),
        ({"path": "mine.judge:score", "sha256": "a"}, {"path": "mine.judge:reward", "sha256": "a"}, False),
        ({"path": "mine.judge:score", "sha256": "a"}, {"path": "other:score", "sha256": "a"}, True),
    ],
)
def test_a_judge_that_was_optimised_proves_nothing(
    tmp_path: Path, judge: dict[str, Any], reward: dict[str, Any], same: bool
) -> None:
    write_run(tmp_path / "evaluate", "evaluate", results=evaluation(), parents={"score": judge})
    write_run(tmp_path / "ppo", "ppo", results={}, settings={"reward": reward["path"]}, parents={"reward": reward})
    assert ("is what ppo was trained to please" in cautions(tmp_path)) is same


def test_a_reward_that_is_examined_was_not_trained_on(tmp_path: Path) -> None:
    parents = {"score": {"path": "runs/reward"}, "reward": {"path": "runs/reward"}}
    write_run(
        tmp_path / "evaluate", "evaluate", results=evaluation(), settings={"reward": "runs/reward"}, parents=parents
    )
    assert "trained to please" not in cautions(tmp_path)
