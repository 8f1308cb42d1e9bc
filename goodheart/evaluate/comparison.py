"""What the results of an evaluation say of two of its models: better or worse, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goodheart.evaluate.wording import known

Results = Mapping[str, Any]

THAN = {"better": "better than", "worse": "worse than", "unclear": "not clearly different from"}


def verdict(rate: Results) -> str:
    """`better`, `worse` or `unclear`, by the interval of a win rate."""
    if not known(rate):
        return "unclear"
    return "better" if rate["low"] > 0.5 else "worse" if rate["high"] < 0.5 else "unclear"


def doubtful_at_equal_length(record: Results) -> bool:
    """Whether a sure lead is not sure between answers of one length, or cannot be known there."""
    rate, equal = record["rate"], record["length_controlled"]
    return verdict(rate) == "better" and not (known(equal) and equal["low"] > 0.5)


def rivals(names: list[str]) -> list[str]:
    """Whom the last model is held against first: what it was made from (the one before it) and the base."""
    return [names[0]] if len(names) == 2 else [names[-2], names[0]]


def changes(found: Results, last: str, other: str) -> Results:
    """aspect -> difference last - other."""
    differences: Results = found["differences"].get(last, {}).get(other, {})
    return differences


def tone(change: Results, lower_is_better: bool) -> str:
    """`good` or `bad` where a difference is sure among all that are looked at, else `plain`."""
    if not change.get("sure", not change["low"] <= 0 <= change["high"]):
        return "plain"
    return "good" if (change["value"] < 0) == lower_is_better else "bad"
