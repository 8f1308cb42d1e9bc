"""Stage `playground`: writes a small invented world whose true preferences are known."""

from __future__ import annotations

from pathlib import Path

from goodheart.loop.settings import PlaygroundConfig
from goodheart.playground.world import write_world

__all__ = ["PlaygroundConfig", "make"]


def make(config: PlaygroundConfig) -> Path:
    """Writes the world and returns its folder."""
    sizes = {"documents": config.documents, "demonstrations": config.demonstrations}
    given = {name: size for name, size in sizes.items() if size is not None}
    write_world(config.out, seed=config.seed, languages=tuple(config.language), **given)
    return config.out
