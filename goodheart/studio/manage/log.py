"""What was done in a campaign, or in the whole studio, by whom, when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from goodheart.feedback import audit, people
from goodheart.studio.manage.frame import manage_page
from goodheart.studio.visitors import Manager, Number, StoreOf
from goodheart.studio.words import Words

router = APIRouter()
_ON_A_PAGE = 100
_KINDS = ("role", "campaign", "member")  # whose words a value may be: manager, open, paused ...


@router.get("/c/{campaign}/audit")
def log_page(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    show: Annotated[str, Query(max_length=10)] = "campaign",
) -> Response:
    """The log of this campaign; with `show=all` that of the studio, accounts included."""
    every = show == "all"
    found = audit.entries(store, before=before, campaign=None if every else campaign, limit=_ON_A_PAGE)
    names = {person.id: person.name for person in people.listing(store)}
    shown = [
        (each, _action(visitor.words, each.action), _details(visitor.words, each.what, names, every)) for each in found
    ]
    older = found[-1].id if len(found) == _ON_A_PAGE else None
    return manage_page(request, store, campaign, "audit.html", entries=shown, older=older, every=every)


def _action(t: Words, action: str) -> str:
    return t.maybe(f"done.{action.replace(' ', '_')}", action)


def _details(t: Words, what: Mapping[str, Any], names: Mapping[int, str], every: bool) -> list[tuple[str, str]]:
    """What an entry tells, by name: people instead of their numbers, nothing that is not there."""
    found = []
    for key, value in what.items():
        if value is None or (key == "campaign" and not every):
            continue
        text = names.get(value, f"#{value}") if key == "person" else _value(t, value)
        found.append((t.maybe(f"detail.{key}", key), text))
    return found


def _value(t: Words, value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_value(t, each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(_value(t, each) for each in value)
    words = (t.maybe(f"{kind}.{value}", "") for kind in _KINDS)
    return next(filter(None, words), str(value))
