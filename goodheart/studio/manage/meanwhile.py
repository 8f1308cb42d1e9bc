"""What other managers changed in the rules of a campaign while somebody had the form of them open.

The form sends along what its fields were filled in with. Where that holds no more nothing is saved: the page comes back
with what was typed, and tells the others' changes beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from fastapi import Form

from goodheart.feedback.campaigns import CampaignSettings
from goodheart.studio.manage.rules import CHANGEABLE_GROUPS, Typed, as_sent, typed

Opened = Annotated[str, Form(max_length=1_000_000)]  # what `filled_in` gave
_FIELDS = tuple(field for group in CHANGEABLE_GROUPS for field in group.fields)


@dataclass(frozen=True, slots=True)
class Other:
    """A rule that somebody else changed. Texts are those of its field."""

    name: str
    is_tick: bool
    before: str  # when the form was opened
    now: str
    typed: str | None  # here; None: nothing was


def filled_in(settings: CampaignSettings) -> str:
    """What the form's fields are filled in with, for the form to send it back."""
    filled = asdict(typed(settings))
    return json.dumps({field.name: filled[field.name] for field in _FIELDS})


def others(opened: str, given: Typed, now: CampaignSettings) -> list[Other]:
    """What somebody else changed since the form was opened, but for what both changed alike.

    Args:
        opened: what `filled_in` gave then; empty, or no longer readable: nothing is known of it.
    """
    before, holds, sent = _read(opened), asdict(typed(now)), asdict(given)
    found = []
    for field in _FIELDS:
        name = field.name
        was, is_now, here = (as_sent(name, text) for text in (before.get(name, holds[name]), holds[name], sent[name]))
        if is_now not in (was, here):
            found.append(Other(name, field.kind == "tick", was, is_now, None if here == was else here))
    return found


def _read(opened: str) -> Mapping[str, str]:
    try:
        found = json.loads(opened or "{}")
    except (ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def kept(given: Typed, found: Sequence[Other]) -> Typed:
    """What was typed; where nothing was, what others have put there."""
    return replace(given, **{other.name: other.now for other in found if other.typed is None})
