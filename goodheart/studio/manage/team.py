"""The people of a campaign: how well each of them labels; pause, go on, invite."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from goodheart.errors import FeedbackError
from goodheart.feedback import campaigns, logins, membership, people, quality
from goodheart.feedback.store import Store
from goodheart.studio.manage.frame import Line, back_to, manage_page
from goodheart.studio.visitors import ByForm, Manager, Number, StoreOf, person_of

router = APIRouter()
ROLES = ("labeller", "adjudicator", "manager")
_STATES = ("working", "paused", "removed")


@router.get("/c/{campaign}/people")
def team_page(request: Request, visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    return _page(request, store, campaign)


def _page(request: Request, store: Store, campaign: int, status: int = 200, **context: Any) -> Response:
    campaigns.get(store, campaign)
    rows = quality.person_rows(store, campaign)
    here = {row.member.person.id for row in rows if row.member is not None}
    others = [p for p in people.listing(store) if p.id not in here and p.disabled_at is None]
    shown = {"rows": rows, "others": others, "roles": ROLES, "link": None, "problem": None}
    shown["invites"] = logins.open_invites(store, campaign=campaign)
    return manage_page(request, store, campaign, "people.html", status, **{**shown, **context})


@router.post("/c/{campaign}/people", dependencies=[ByForm])
def add_member(request: Request, visitor: Manager, store: StoreOf, campaign: Number, person: Line = "") -> Response:
    """Somebody with an account becomes a labeller of this campaign."""
    if not (person.isascii() and person.isdecimal() and len(person) < 10):
        return _page(request, store, campaign, 422, problem=visitor.words("error.422"))
    membership.join(store, campaign, int(person), by=person_of(visitor).id)
    return back_to(campaign, "/people")


@router.post("/c/{campaign}/people/{person}/state", dependencies=[ByForm])
def set_state(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    person: Number,
    state: Line = "",
    reason: Line = "",
) -> Response:
    """Pauses a member with a reason that they are told, lets them go on, or removes them."""
    if state not in _STATES:
        return _page(request, store, campaign, 422, problem=visitor.words("error.422"))
    membership.set_member(store, campaign, person, state, reason.strip() or None, by=person_of(visitor).id)
    return back_to(campaign, "/people")


@router.post("/c/{campaign}/invites", dependencies=[ByForm])
def invite(
    request: Request, visitor: Manager, store: StoreOf, campaign: Number, role: Line = "labeller", name: Line = ""
) -> Response:
    """Makes a link for one person and shows it, this once."""
    campaigns.get(store, campaign)
    if request.app.state.me is not None:
        return _page(request, store, campaign, 422, problem=visitor.words("manage.no_accounts"))
    try:
        by = person_of(visitor).id
        token = logins.invite(store, role, campaign=campaign, name=name.strip() or None, by=by)
    except FeedbackError as error:
        return _page(request, store, campaign, 422, problem=str(error))
    link = f"{request.url.scheme}://{request.url.netloc}/invite/{token}"
    return _page(request, store, campaign, link=link)


@router.post("/c/{campaign}/invites/{key}/revoke", dependencies=[ByForm])
def revoke(visitor: Manager, store: StoreOf, campaign: Number, key: str) -> Response:
    """A link that was given to the wrong one works no more."""
    logins.revoke(store, campaign, key, by=person_of(visitor).id)
    return back_to(campaign, "/people")
