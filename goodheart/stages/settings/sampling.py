"""How answers are drawn."""

from __future__ import annotations

from pydantic import Field

from goodheart.train.config import Settings


class SamplingSettings(Settings):
    """How answers are drawn."""

    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, ge=0)  # 0 = always the likeliest token
    top_k: int = Field(0, ge=0)  # 0 = off
    top_p: float = Field(1.0, gt=0, le=1)  # 1 = off
    min_p: float = Field(0.0, ge=0, lt=1)  # 0 = off
    stop: list[str] = Field(default_factory=list)  # an answer also ends before the first of these
