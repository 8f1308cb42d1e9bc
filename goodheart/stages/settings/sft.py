"""Settings of supervised fine-tuning."""

from __future__ import annotations

from goodheart.stages.settings.measured import MeasuredSettings


class SFTConfig(MeasuredSettings):
    """Settings of supervised fine-tuning; `data` are demonstrations, of preference pairs the chosen answers."""

    pack: bool = False  # several conversations in a row, each seeing only itself; pays on GPUs
