"""Rewards that tests of scoring name by path."""

from __future__ import annotations


def length(prompts: list, completions: list, **columns: list) -> list[float]:
    """Characters of the answer."""
    return [float(len(c if isinstance(c, str) else c[-1]["content"])) for c in completions]


def bonus(prompts: list, completions: list, bonus: list, **columns: list) -> list[float]:
    """What the row's own column says, plus the length."""
    return [b + n for b, n in zip(bonus, length(prompts, completions), strict=True)]


def no_opinion_on_b(prompts: list, completions: list, **columns: list) -> list[float | None]:
    """The length, but nothing on answers with a b."""
    return [None if "b" in c else float(len(c)) for c in completions]
