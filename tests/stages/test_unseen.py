"""What a stage is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from goodheart.errors import DataError
from goodheart.stages.dpo import DPOConfig
from goodheart.stages.kto import KTOConfig
from goodheart.stages.reward import RewardConfig, train
from goodheart.stages.settings.measured import MeasuredSettings
from goodheart.stages.sft import SFTConfig
from tests.stages.commands import write_rows


@pytest.mark.parametrize("kind", [SFTConfig, RewardConfig, DPOConfig, KTOConfig])
def test_measuring_on_nothing_is_refused(kind: type[MeasuredSettings], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`eval_every` has nothing to measure on"):
        kind(model="m", data="d", out=tmp_path, eval_every=5, held_out=0.0)
    assert kind(model="m", data="d", out=tmp_path, eval_every=5, held_out=0.0, eval_data="e").files() == ["d", "e"]
    assert kind(model="m", data=["d", "c"], out=tmp_path, eval_every=5).files() == ["d", "c"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": True}, "every thumb is up: nothing tells good from bad"),
        ({"label": False}, "every thumb is down"),
        ({"score": 2.5}, "every rating is 2.5: nothing tells"),
    ],
)
def test_a_reward_model_does_not_learn_from_labels_that_are_all_the_same(
    tiny_model: Path, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": f"Q {n}", "completion": "The cat", **row} for n in range(6)])
    with pytest.raises(DataError, match=message):
        train(RewardConfig(model=str(tiny_model), data=str(data), out=tmp_path / "r", held_out=0, quiet=True))
