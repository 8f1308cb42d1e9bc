"""Stage `playground`: writes a small invented world whose true preferences are known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from goodheart.playground.world import write_world
from goodheart.train.config import Settings


class PlaygroundConfig(Settings):
    """Settings of the world."""

    out: Path  # folder to write: corpus, demonstrations, prompts; world.json last
    seed: int = 0
    language: list[Literal["en", "zh"]] = Field(default=["en"], min_length=1)
    documents: int | None = Field(None, ge=1)  # of the corpus; None = the world's own choice
    demonstrations: int | None = Field(None, ge=1)


def make(config: PlaygroundConfig) -> Path:
    """Writes the world and returns its folder."""
    sizes = {"documents": config.documents, "demonstrations": config.demonstrations}
    given = {name: size for name, size in sizes.items() if size is not None}
    write_world(config.out, seed=config.seed, languages=tuple(config.language), **given)
    return config.out
