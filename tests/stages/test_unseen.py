"""What a stage is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from goodheart.stages.dpo import DPOConfig
from goodheart.stages.kto import KTOConfig
from goodheart.stages.reward import RewardConfig
from goodheart.stages.sft import SFTConfig
from goodheart.stages.unseen import MeasuredSettings


@pytest.mark.parametrize("kind", [SFTConfig, RewardConfig, DPOConfig, KTOConfig])
def test_measuring_on_nothing_is_refused(kind: type[MeasuredSettings], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`eval_every` has nothing to measure on"):
        kind(model="m", data="d", out=tmp_path, eval_every=5, held_out=0.0)
    assert kind(model="m", data="d", out=tmp_path, eval_every=5, held_out=0.0, eval_data="e").files() == ["d", "e"]
    assert kind(model="m", data=["d", "c"], out=tmp_path, eval_every=5).files() == ["d", "c"]
