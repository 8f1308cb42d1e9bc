"""What somebody says of the answers of an item, checked and made into the columns of a label."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from goodheart.errors import FeedbackError
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.tables import SOURCES

MOST_COMMENT = 10_000  # characters
RATINGS = (1, 5)  # lowest and highest of a rubric


@dataclass(frozen=True, slots=True)
class Answered:
    """What somebody says of the answers of an item, in the order of the item (not in the shown order)."""

    ranks: Sequence[int]  # one per answer, 0 is best, equal numbers tie
    strength: int | None = None  # 1 negligibly, 2 slightly, 3 better, 4 significantly
    flags: Mapping[str, Any] = field(default_factory=dict)  # {"harmful": [0, 2], "both_bad": True}
    ratings: Mapping[str, Sequence[int | None]] | None = None  # {"helpful": [5, 2]}: 1 to 5 for each answer
    comment: str | None = None
    seconds: float | None = None
    request: str = field(default_factory=lambda: secrets.token_hex(16))  # made once by the client for each save


def request_of(answered: Answered) -> str:
    """The name of this save.

    Raises:
        FeedbackError: it will not do for one.
    """
    name = answered.request
    if not 0 < len(name) <= 64 or not name.isascii() or not name.isprintable():
        raise FeedbackError("a request is named by 1 to 64 letters and digits, new for each save")
    return name


def label_columns(settings: CampaignSettings, item: Row[Any], answered: Answered, source: str) -> dict[str, Any]:
    """Columns of a label.

    Raises:
        FeedbackError: something does not fit the item or the campaign.
    """
    count = len(item.answers)
    if source not in SOURCES:
        raise FeedbackError(f"there is no source {source!r} of labels; use {', '.join(SOURCES)}")
    if answered.comment is not None and len(answered.comment) > MOST_COMMENT:
        raise FeedbackError(f"a comment of {len(answered.comment)} characters; {MOST_COMMENT} are the most")
    seconds = answered.seconds
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise FeedbackError(f"seconds must be 0 or more, found {seconds}")
    return {
        "ranks": _tiers(answered.ranks, count),
        "strength": _strength(settings, answered),
        "flags": _flags(settings, answered.flags, count),
        "ratings": _ratings(settings, answered.ratings, count),
        "comment": answered.comment or None,
        "seconds": seconds,
        "request": answered.request,
        "source": source,
    }


def _tiers(ranks: Sequence[int], count: int) -> list[int]:
    """Ranks without gaps: 0, 2, 2 becomes 0, 1, 1."""
    if len(ranks) != count or not all(type(rank) is int for rank in ranks):
        raise FeedbackError(
            f"ranks must be {count} whole numbers, one per answer, 0 the best; found {list(ranks)!r:.200}"
        )
    tiers = sorted(set(ranks))
    return [tiers.index(rank) for rank in ranks]


def _strength(settings: CampaignSettings, answered: Answered) -> int | None:
    strength = answered.strength
    if strength is None or not settings.strength or len(set(answered.ranks)) == 1:
        return None  # there is no degree to a tie
    if type(strength) is not int or not 1 <= strength <= 4:
        raise FeedbackError(f"strength must be 1, 2, 3 or 4 (negligibly ... significantly better), found {strength!r}")
    return strength


def _flags(settings: CampaignSettings, flags: Mapping[str, Any], count: int) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in flags.items():
        if name == "both_bad" and isinstance(value, bool):
            kept |= {name: True} if value else {}
        elif name in settings.flags and isinstance(value, list | tuple):
            if not all(type(index) is int and 0 <= index < count for index in value):
                raise FeedbackError(f"flag {name} names answers by 0 to {count - 1}; found {list(value)!r:.200}")
            kept |= {name: sorted(set(value))} if value else {}
        else:
            known = ", ".join(settings.flags)
            raise FeedbackError(f"flag {name!r} with {value!r:.100}: use {known} with a list of answers, or both_bad")
    return kept


def _ratings(settings: CampaignSettings, ratings: Mapping[str, Any] | None, count: int) -> dict[str, Any] | None:
    low, high = RATINGS
    for name, values in (ratings or {}).items():
        if name not in settings.rubric:
            raise FeedbackError(f"this campaign has no rubric {name!r}; it has {', '.join(settings.rubric) or 'none'}")
        fits = isinstance(values, list | tuple) and len(values) == count
        if not fits or not all(v is None or (type(v) is int and low <= v <= high) for v in values):
            raise FeedbackError(f"rubric {name}: {count} numbers from {low} to {high}, or null; found {values!r:.200}")
    return {name: list(values) for name, values in ratings.items()} if ratings else None
