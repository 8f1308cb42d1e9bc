"""The rules of a campaign as fields of a form: what is typed becomes settings, what is wrong is said beside its field.

Fields have the names of the settings. Those that hold more than one thing are typed as people write them:

    flags       harmful, wrong
    rubric      tone: Is it warm?                   a line each
    quotas      language: en = 200, zh = 100        a line each
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from goodheart.feedback.campaigns import CHANGEABLE, CampaignSettings
from goodheart.studio.manage.frame import Line, Lines
from goodheart.studio.marks import sound
from goodheart.studio.words import Words


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, what is typed into it, and the ends of a number."""

    name: str
    kind: str  # whole, number, line, lines, moment, tick
    least: float = 0
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Fields that belong together; `files`: uploads of a new campaign that stand above them."""

    name: str
    fields: tuple[Field, ...]
    files: tuple[str, ...] = ()


OVERLAP = Field("overlap", "whole", 1, 100)
GROUPS = (
    Group("asked", (Field("strength", "tick"), Field("blind", "tick"), Field("flags", "line"),
                    Field("rubric", "lines"), Field("at_once", "whole", 2, 50))),
    Group("agreement", (Field("until_agreement", "number", 0.5, 1), Field("max_overlap", "whole", 1, 100),
                        Field("max_skips", "whole", 1))),
    Group("gold", (Field("gold_share", "number", 0, 0.5), Field("gold_pause_below", "number", 0, 1),
                   Field("gold_window", "whole", 5, 1000)), ("gold",)),
    Group("rounds", (Field("training", "whole"), Field("qualification", "whole"),
                     Field("qualification_pass", "number", 0, 1)), ("training_items", "qualification_items")),
    Group("slices", (Field("slices", "line"), Field("quotas", "lines"), Field("languages", "line"))),
    Group("money", (Field("pay_per_hour", "number"), Field("budget", "number"), Field("deadline", "moment"),
                    Field("lock_minutes", "number", 0, 7 * 24 * 60))),
)  # fmt: skip
_FIELDS = {field.name: field for group in GROUPS for field in group.fields} | {OVERLAP.name: OVERLAP}
_SETTINGS = tuple(name for name in _FIELDS if name in CampaignSettings.model_fields)
_OFF = {"gold_share": 0.0, "gold_pause_below": 0.0}  # what an emptied field of a running campaign means
CHANGEABLE_GROUPS = tuple(
    Group(group.name, fields)
    for group in GROUPS
    if (fields := tuple(field for field in group.fields if field.name in CHANGEABLE))
)


@dataclass(slots=True)
class Typed:
    """What a form sends; an empty field and one that is missing are the same."""

    overlap: Line = ""
    strength: Line = ""
    blind: Line = ""
    flags: Line = ""
    rubric: Lines = ""
    at_once: Line = ""
    until_agreement: Line = ""
    max_overlap: Line = ""
    max_skips: Line = ""
    gold_share: Line = ""
    gold_pause_below: Line = ""
    gold_window: Line = ""
    training: Line = ""
    qualification: Line = ""
    qualification_pass: Line = ""
    slices: Line = ""
    quotas: Lines = ""
    languages: Line = ""
    pay_per_hour: Line = ""
    budget: Line = ""
    deadline: Line = ""
    lock_minutes: Line = ""


def typed(settings: CampaignSettings) -> Typed:
    """The fields filled in with what holds."""
    return Typed(**{name: _as_text(getattr(settings, name)) for name in _SETTINGS})


def _as_text(value: Any) -> str:
    if value is None or value is False:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M}"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_of_one(each)}" for name, each in value.items())
    return "1" if value is True else f"{value:.15g}"


def _of_one(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(f"{name} = {count}" for name, count in value.items())


def new_settings(name: str, given: Typed) -> CampaignSettings:
    """The settings of a new campaign; an empty field leaves a setting as it is by itself.

    Raises:
        ValidationError: what is wrong with which of them.
    """
    values = {field: _value(field, getattr(given, field)) for field in _SETTINGS}
    return CampaignSettings.model_validate({"name": name} | {field: v for field, v in values.items() if v is not None})


def changes(given: Typed, old: CampaignSettings) -> dict[str, Any]:
    """What a running campaign is changed to; an empty field takes its rule away.

    A field that says what it was filled in with changes nothing: what holds may be more than the field can tell, such
    as the seconds of a deadline or a comma in a flag.
    """
    found, filled = {}, typed(old)
    for name in CHANGEABLE.intersection(_SETTINGS):
        text = getattr(given, name)
        if as_sent(name, text) == as_sent(name, getattr(filled, name)):
            continue
        value = _value(name, text)
        found[name] = _OFF.get(name, CampaignSettings.model_fields[name].get_default()) if value is None else value
    return found


def as_sent(name: str, text: str) -> str:
    """A field's text, whichever line ends the browser gave it; it takes them out of a field of one line."""
    text = sound(text)
    return (text if _FIELDS[name].kind == "lines" else text.replace("\n", "")).strip()


def _value(name: str, text: str) -> Any:
    """What stands in a field, as far as it can be told from its kind; None where nothing does."""
    text, kind = text.strip(), _FIELDS[name].kind
    if kind == "tick":
        return bool(text)
    if kind == "line":
        return listed(text)
    if kind == "lines":
        parts = [line.partition(":") for line in text.splitlines() if line.strip()]
        return {key.strip(): _quota(rest) if name == "quotas" else rest.strip() for key, _, rest in parts}
    return with_zone(text) if kind == "moment" and text else text or None


def _quota(text: str) -> dict[str, str]:
    parts = [each.rpartition("=") for each in listed(text)]
    return {value.strip(): count.strip() for value, _, count in parts}


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [each.strip() for each in text.split(",") if each.strip()]


def with_zone(moment: str) -> str:
    """The moment of a date field, which knows no zone: UTC."""
    return f"{moment}Z" if len(moment) in (16, 19) else moment


def problems(error: ValidationError, words: Words) -> dict[str, str]:
    """What is wrong, by field ("" where none is to blame), in the visitor's language as far as it has words for it."""
    found: dict[str, str] = {}
    for each in error.errors():
        told = each.get("ctx", {})
        field = str(told.get("field") or (each["loc"] or ("",))[0])
        key = f"wrong.{each['type']}"
        said = words(key, **told) if words.maybe(key, "") else each["msg"].removeprefix("Value error, ")
        found.setdefault(field, said)
    return found
