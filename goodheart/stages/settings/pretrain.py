"""Settings of domain pre-training."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from goodheart.train.config import TrainingSettings


class PretrainConfig(TrainingSettings):
    """Settings of domain pre-training."""

    data: str | list[str]  # files, folders or Hub ids with a `text` column, or plain .txt
    held_out: float = Field(0.05, ge=0, lt=1)  # share of the documents kept for the loss on unseen text
    eval_every: int | None = Field(None, ge=1)  # steps; None = at the end only
    pack: bool = True  # several documents in a row, each seeing only itself
    new_model: dict[str, Any] | None = None  # sizes of a model from scratch; `model` then names its tokenizer folder
    learning_rate: float = Field(5e-4, gt=0)

    @model_validator(mode="after")
    def _adapters_need_a_model(self) -> PretrainConfig:
        if self.new_model is not None and self.lora is not None:
            raise ValueError("`lora` adapts a trained model, but `new_model` starts from random weights: leave one out")
        return self
