"""Reward functions that tests name by path."""

from __future__ import annotations


def vowels(prompts: list, completions: list, **columns: list) -> list[float]:
    """Share of vowels in the answer."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def every_other(prompts: list, completions: list, **columns: list) -> list[float | None]:
    """One, or no opinion, in turn."""
    return [1.0 if i % 2 else None for i in range(len(completions))]


def silent(prompts: list, completions: list, **columns: list) -> list[None]:
    """No opinion at all."""
    return [None] * len(completions)


def few_vowels(prompts: list, completions: list, **columns: list) -> list[float]:
    """The opposite of `vowels`: what an audit says of a policy that chases vowels."""
    return [-score for score in vowels(prompts, completions)]


def vowels_again(prompts: list, completions: list, **columns: list) -> list[float]:
    """An audit that agrees with the reward."""
    return vowels(prompts, completions)
