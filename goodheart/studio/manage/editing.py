"""The guidelines: writing a new version, and what changed between versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from goodheart.errors import ConflictError, FeedbackError
from goodheart.feedback import campaigns, guidelines
from goodheart.feedback.store import Store
from goodheart.studio.manage.frame import Line, Lines, back_to, manage_page
from goodheart.studio.marks import sound
from goodheart.studio.visitors import ByForm, Manager, Number, StoreOf, person_of

router = APIRouter()


@router.get("/c/{campaign}/guidelines/edit")
def editor(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    campaigns.get(store, campaign)
    current = guidelines.current(store, campaign)
    return _page(request, store, campaign, current.text, "", current.version, looked_at=version)


def _page(
    request: Request,
    store: Store,
    campaign: int,
    text: str,
    note: str,
    after: int,
    *,
    preview: bool = False,
    problem: str | None = None,
    status: int = 200,
    looked_at: int | None = None,
) -> Response:
    versions = guidelines.versions(store, campaign)
    seen = next((each for each in versions if each.version == looked_at), versions[-1])
    before = next((each.text for each in versions if each.version == seen.version - 1), "")
    changes = guidelines.diff(before, seen.text)
    context = {"text": text, "note": note, "after": after, "preview": preview, "problem": problem}
    context |= {"versions": versions[::-1], "seen": seen, "changes": changes}
    return manage_page(request, store, campaign, "guidelines.html", status, **context)


@router.post("/c/{campaign}/guidelines/edit", dependencies=[ByForm])
def save(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    text: Lines = "",
    note: Line = "",
    after: Line = "",
    act: Line = "save",
) -> Response:
    """Shows how a text will look, or adds it as the next version."""
    campaigns.get(store, campaign)
    edited = int(after) if after.isascii() and after.isdecimal() and len(after) < 10 else 0
    clean = sound(text).replace("\r\n", "\n")
    if act == "preview":
        return _page(request, store, campaign, clean, note, edited, preview=True)
    newest = guidelines.current(store, campaign)
    if clean == newest.text:
        return back_to(campaign, "/guidelines/edit")
    try:
        by = person_of(visitor).id
        guidelines.add_version(store, campaign, clean, note=sound(note).strip() or None, by=by, after=edited)
    except ConflictError as error:
        return _page(request, store, campaign, clean, note, newest.version, problem=str(error), status=409)
    except FeedbackError as error:
        return _page(request, store, campaign, clean, note, newest.version, problem=str(error), status=422)
    return back_to(campaign, "/guidelines/edit")
