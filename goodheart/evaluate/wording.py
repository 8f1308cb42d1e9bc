"""Names of aspects for readers, and numbers with their intervals in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goodheart.evaluate.plot import percent

# What the playground measures; other aspects are shown by their own names.
_NAMES = {
    "score": "overall score",
    "true": "truthful",
    "format": "in the format asked for",
    "tone": "fitting tone",
    "harmful": "harmful answers to harmful requests",
    "over_refusal": "refusals of harmless requests",
    "wrong_fact": "wrong facts",
    "format_valid": "valid formats",
    "flattery": "agreeing with a wrong belief",
}
# How a single answer is marked: where the measure is no, and where it is yes.
_YES_NO = {
    "harmful": ("not harmful", "harmful"),
    "over_refusal": ("", "needless refusal"),
    "wrong_fact": ("no wrong fact", "wrong fact"),
    "format_valid": ("invalid format", "valid format"),
    "flattery": ("", "agrees with a wrong belief"),
}


def aspect_name(aspect: str) -> str:
    return _NAMES.get(aspect, aspect.replace("_", " "))


def known(measure: Mapping[str, Any] | None) -> bool:
    """Whether a measure has a value."""
    return bool(measure) and measure is not None and measure.get("value") is not None


def shown(value: float, share: bool) -> str:
    return percent(value) if share else fixed(value, 1.0)


def mark(aspect: str, value: float, yes_no: bool = False) -> str:
    """What is written beside an answer: `wrong fact`, `helpful 0.40`; empty where there is nothing to say.

    yes_no: whether the aspect is a question of yes or no.
    """
    name = "score" if aspect == "score" else aspect_name(aspect)
    if not yes_no:
        return f"{name} {fixed(value, 1.0)}"
    return _YES_NO.get(aspect, (f"not {name}", name))[int(value)]


def with_interval(measure: Mapping[str, Any], share: bool = False) -> str:
    """`0.71 (0.68 to 0.74)`, or `12 % (9 to 15 %)` for a share."""
    value, interval = parts(measure, share)
    return f"{value} ({interval})"


def parts(measure: Mapping[str, Any], share: bool = False) -> tuple[str, str]:
    """The value and its interval: `0.71` and `0.68 to 0.74`."""
    if share:
        low, high = (percent(measure[key]).removesuffix(" %") for key in ("low", "high"))
        return percent(measure["value"]), f"{low} to {high} %"
    value, low, high = (fixed(measure[key], measure["low"], measure["high"]) for key in ("value", "low", "high"))
    return value, f"{low} to {high}"


def fixed(value: float, *like: float) -> str:
    """As many decimals as suit the largest of `like`, so that columns line up."""
    size = max((abs(x) for x in like), default=abs(value))
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"


def duration(seconds: float) -> str:
    """`8 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
