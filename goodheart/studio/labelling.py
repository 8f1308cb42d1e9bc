"""The page on which answers are compared, and what its scripts talk to."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from goodheart.errors import MissingError
from goodheart.feedback import assignment, campaigns, guidelines, known, label_rows, labels, tasks
from goodheart.feedback.assignment import Idle
from goodheart.feedback.progress import by_day, done_share
from goodheart.feedback.store import utcnow
from goodheart.feedback.tables import PHASES
from goodheart.feedback.tasks import Task
from goodheart.studio.differences import marked
from goodheart.studio.markdown import SHOWN_MOST, render
from goodheart.studio.marks import sound
from goodheart.studio.pages import Json, page
from goodheart.studio.places import Label, as_shown, as_stored, words_of
from goodheart.studio.visitors import ByPage, Membership, Number, SignedIn, StoreOf, membership, person_of
from goodheart.studio.words import Words

router = APIRouter()

REASONS = ("unclear", "expertise", "language", "distressing", "broken", "other")
_HELP = (  # keys, and the words for what they do
    (("1", "…", "9"), "help.place"),
    (("=", "t"), "help.tie"),
    (("1", "2", "3", "4"), "help.strength"),
    (("←", "→"), "help.arrows"),
    (("Shift+↑", "Shift+↓"), "help.move"),
    (("Shift+1", "…"), "help.flag"),
    (("b",), "help.both_bad"),
    (("⏎",), "help.submit"),
    (("u",), "help.undo"),
    (("⌫",), "help.back"),
    (("s",), "help.skip"),
    (("c",), "help.comment"),
    (("d",), "help.difference"),
    (("r",), "help.raw"),
    (("a",), "help.all"),
    (("g",), "help.guidelines"),
)
_DRAFT_MOST = 50_000  # characters of a draft as JSON


class Skip(BaseModel):
    """Why a task is put aside."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request: str = Field(pattern=r"^[A-Za-z0-9-]{8,64}$")
    reason: str = Field(min_length=1, max_length=40)
    more: str = Field("", max_length=1000)


class Draft(BaseModel):
    """A half-made answer, in the page's own form."""

    model_config = ConfigDict(extra="forbid")

    answer: dict[str, Any]
    seconds: float = Field(0.0, ge=0, le=86_400, allow_inf_nan=False)


@router.get("/c/{campaign}/label")
def label_page(request: Request, visitor: SignedIn, member: Membership, store: StoreOf, campaign: Number) -> Response:
    found = campaigns.get(store, campaign)
    settings, words = found.settings, visitor.words
    setup = {
        "campaign": campaign,
        "person": member.person.id,
        "csrf": visitor.csrf,
        "language": words.language,
        "words": words.scripts(),
        "strength": settings.strength,
        "flags": settings.flags,
        "rubric": [{"name": name, "about": about} for name, about in settings.rubric.items()],
        "lock_minutes": settings.lock_minutes,
    }
    help_lines = [(keys, words(key)) for keys, key in _HELP]
    return page(request, "label.html", campaign=found, setup=setup, help=help_lines, reasons=REASONS)


@router.get("/c/{campaign}/guidelines")
def guidelines_page(request: Request, member: Membership, store: StoreOf, campaign: Number) -> Response:
    found = campaigns.get(store, campaign)
    return page(request, "guidelines.html", campaign=found, guideline=guidelines.current(store, campaign))


@router.get("/c/{campaign}/me")
def my_page(request: Request, visitor: SignedIn, member: Membership, store: StoreOf, campaign: Number) -> Response:
    found = campaigns.get(store, campaign)
    mine = list(label_rows.live_labels(store, campaign, person=member.person.id, phases=None))
    timed = [row.seconds for row in mine if row.seconds is not None]
    days = by_day(store, campaign, utcnow().date(), person=member.person.id, phases=PHASES)
    numbers = {"labels": len(mine), "seconds": median(timed) if timed else None, "hours": sum(timed) / 3600}
    seen, right = known.known_right(store, campaign, member.person.id, "training")
    return page(request, "me.html", campaign=found, member=member, numbers=numbers, days=days, seen=seen, right=right)


@router.get("/api/c/{campaign}/task")
def next_task(
    request: Request,
    visitor: SignedIn,
    store: StoreOf,
    campaign: Number,
    besides: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    """The task to work on; with `besides`, the one to prefetch while that one is worked on."""
    person = person_of(visitor).id
    found: Task | Idle | None = None
    with contextlib.suppress(MissingError):
        found = assignment.next_task(store, campaign, person, besides=besides)
    if found is None or (isinstance(found, Idle) and found.why in ("not_a_member", "removed")):
        membership(request, visitor, campaign)  # raises 404, or lets them join where there are no accounts
        found = assignment.next_task(store, campaign, person, besides=besides)
    if isinstance(found, Idle):
        return Json({"task": None, "idle": idle(found, visitor.words)})
    return Json({"task": as_shown(found), "idle": None})


@router.get("/api/c/{campaign}/guidelines")
def current_guidelines(member: Membership, store: StoreOf, campaign: Number) -> Response:
    found = guidelines.current(store, campaign)
    return Json({"id": found.id, "version": sound(found.name), "html": render(found.text).html})


@router.get("/api/c/{campaign}/me")
def my_numbers(
    member: Membership, store: StoreOf, campaign: Number, since: Annotated[datetime | None, Query()] = None
) -> Response:
    """What the visitor did since a moment (their midnight), for the line at the top of the page."""
    try:
        start = (since or datetime.now(UTC) - timedelta(days=1)).astimezone(UTC)
    except (OverflowError, ValueError) as error:  # at the ends of the calendar
        raise HTTPException(422) from error
    mine = list(label_rows.live_labels(store, campaign, person=member.person.id, phases=None, since=start))
    timed = [row.seconds for row in mine if row.seconds is not None]
    seen, right = known.known_right(store, campaign, member.person.id, "training")
    share = done_share(store, campaign)
    return Json({"count": len(mine), "seconds": timed, "training": {"seen": seen, "right": right}, "share": share})


@router.put("/api/tasks/{task}/draft", dependencies=[ByPage])
def save_draft(visitor: SignedIn, store: StoreOf, task: Number, draft: Draft) -> Response:
    kept = draft.model_dump()
    if len(Json(kept).body) > _DRAFT_MOST:
        raise HTTPException(413)
    expires = tasks.save_draft(store, task, person_of(visitor).id, kept)
    return Json({"expires_at": expires.isoformat()})


@router.post("/api/tasks/{task}/label", dependencies=[ByPage])
def save_label(visitor: SignedIn, store: StoreOf, task: Number, label: Label) -> Response:
    """Keeps an answer. The same request sent again is the same answer."""
    saved = labels.save(store, task, person_of(visitor).id, partial(as_stored, label))
    told = None
    if saved.feedback is not None:
        ranks = [saved.feedback.ranks[index] for index in saved.shown]
        told = {"right": saved.feedback.right, "ranks": ranks, "why": render(saved.feedback.why or "").html}
    return Json({"label": saved.label, "member": saved.member, "feedback": told})


@router.post("/api/tasks/{task}/skip", dependencies=[ByPage])
def skip_task(visitor: SignedIn, store: StoreOf, task: Number, skip: Skip) -> Response:
    if skip.reason not in REASONS:
        raise HTTPException(422)
    more = sound(skip.more).strip()
    tasks.skip(store, task, person_of(visitor).id, f"{skip.reason}: {more}" if more else skip.reason)
    return Json({"skipped": True})


@router.post("/api/c/{campaign}/undo", dependencies=[ByPage])
def undo(visitor: SignedIn, member: Membership, store: StoreOf, campaign: Number) -> Response:
    """The newest label is withdrawn, and its task given back with what was said."""
    return Json({"task": as_shown(labels.undo(store, campaign, member.person.id)), "idle": None})


@router.get("/api/tasks/{task}/difference")
def differences(
    visitor: SignedIn, store: StoreOf, task: Number, a: Annotated[int, Query(ge=0)], b: Annotated[int, Query(ge=0)]
) -> Response:
    """Two answers, by place on the page, with what differs marked."""
    found = tasks.get_task(store, task, person_of(visitor).id)
    if max(a, b) >= len(found.shown):
        raise HTTPException(404)
    left, right = (sound(words_of(found.answers[found.shown[place]].turns()))[:SHOWN_MOST] for place in (a, b))
    return Json({"sides": marked(left, right)})


def idle(found: Idle, words: Words) -> dict[str, Any]:
    """Why there is nothing to do, in words."""
    text = words(f"idle.{found.why}.text")
    reason = words("idle.reason", reason=sound(found.reason)) if found.reason else None
    return {"why": found.why, "title": words(f"idle.{found.why}.title"), "text": text, "reason": reason}
