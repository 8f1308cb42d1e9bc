"""What a pipeline is about to do, and whoever watches it being done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from goodheart.loop.gates import Gate, Verdict
from goodheart.loop.step import Step

Ending = Literal["done", "kept", "failed", "stopped"]


@dataclass
class Plan:
    """What `goodheart run` would do with a step, and why."""

    step: Step
    runs: bool
    reason: str
    beside: str = ""  # what else is to be said, where it is run alone


class View(Protocol):
    """Whoever wants to see a pipeline run."""

    def begins(self, plan: Plan) -> None: ...

    def ends(self, plan: Plan, state: Ending, seconds: float) -> None: ...

    def gate(self, gate: Gate, verdict: Verdict) -> None: ...


class Unseen:
    """Nobody looks."""

    def begins(self, plan: Plan) -> None:
        """Says nothing."""

    def ends(self, plan: Plan, state: Ending, seconds: float) -> None:
        """Says nothing."""

    def gate(self, gate: Gate, verdict: Verdict) -> None:
        """Says nothing."""
