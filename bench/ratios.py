"""Contenders take turns, and only what is measured in one turn is divided: noise of the machine hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How many times less we need than the peer: the median over the turns, with the lowest and highest turn."""

    median: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, peer: Sequence[float], ours: Sequence[float]) -> Ratio:
        """peer, ours: the same quantity, one entry per turn."""
        each = [p / o for p, o in zip(peer, ours, strict=True)]
        return cls(statistics.median(each), min(each), max(each), len(each))

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}-{self.high:.2f})"
