"""Who is asking: the person behind a request, their language and their CSRF token; and what their role lets them do.

Endpoints ask for what they need by dependency:

    def page(visitor: SignedIn) -> Response: ...        # anybody who is logged in; others are sent to the log-in page
    def people(visitor: Manager) -> Response: ...       # for others the page does not exist (404)

Every request that changes something must carry the token of its session: the header `X-CSRF-Token`, or the field `csrf`
of a form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Form, Header, Path, Request
from starlette.exceptions import HTTPException

from goodheart.errors import MissingError
from goodheart.feedback import logins
from goodheart.feedback.membership import Member, join, member
from goodheart.feedback.people import Person
from goodheart.feedback.store import Store
from goodheart.studio.security import new_token, same
from goodheart.studio.words import Words, wanted

SESSION_COOKIE = "goodheart_session"
LANGUAGE_COOKIE = "goodheart_language"
TOKEN_COOKIE = "goodheart_form"  # CSRF token of pages before log-in


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who asks for a page; `person` is None before log-in."""

    person: Person | None
    csrf: str
    words: Words
    is_new: bool = False  # the token is not yet in a cookie


async def store_of(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def visitor_of(request: Request) -> Visitor:
    """The visitor of a request, looked up once."""
    known: Visitor | None = getattr(request.state, "visitor", None)
    if known is None:
        known = request.state.visitor = _look_up(request)
    return known


def _look_up(request: Request) -> Visitor:
    cookie = request.cookies.get(LANGUAGE_COOKIE)
    accepted = request.headers.get("accept-language")
    me: Person | None = request.app.state.me
    if me is not None:
        return Visitor(me, request.app.state.csrf, Words.of(wanted(cookie, accepted)))
    token = request.cookies.get(SESSION_COOKIE)
    session = logins.session(request.app.state.store, token) if token else None
    if session is not None:
        return Visitor(session.person, session.csrf, Words.of(wanted(session.person.language or cookie, accepted)))
    form = request.cookies.get(TOKEN_COOKIE)
    return Visitor(None, form or new_token(), Words.of(wanted(cookie, accepted)), is_new=form is None)


# What asks no database is `async`: FastAPI sends each function that is not to a thread of its own, and back.
Anybody = Annotated[Visitor, Depends(visitor_of)]


async def signed_in(visitor: Anybody) -> Visitor:
    """Raises 401 before log-in; the error page leads to the log-in page."""
    if visitor.person is None:
        raise HTTPException(401)
    return visitor


SignedIn = Annotated[Visitor, Depends(signed_in)]


async def manager(visitor: SignedIn) -> Visitor:
    """Raises 404 for people who are not managers: what they may not see does not exist for them."""
    return _at_least(visitor, "manager")


async def adjudicator(visitor: SignedIn) -> Visitor:
    """Raises 404 for people who are neither adjudicators nor managers."""
    return _at_least(visitor, "adjudicator")


def _at_least(visitor: Visitor, role: str) -> Visitor:
    if visitor.person is None or not visitor.person.may(role):
        raise HTTPException(404)
    return visitor


async def sent_by_page(visitor: Anybody, x_csrf_token: Annotated[str | None, Header()] = None) -> None:
    """A write by a script of our pages; raises 403 without its token."""
    if not same(x_csrf_token, visitor.csrf):
        raise HTTPException(403, "csrf")


async def sent_by_form(visitor: Anybody, csrf: Annotated[str, Form()] = "") -> None:
    """A write by a form of our pages; raises 403 without its token."""
    if not same(csrf, visitor.csrf):
        raise HTTPException(403, "csrf")


Number = Annotated[int, Path(ge=1, le=2**31 - 1)]  # of a campaign, an item or a task


def membership(request: Request, visitor: SignedIn, campaign: Number) -> Member:
    """The visitor's place in a campaign; raises 404 where they have none, whether or not there is such a campaign.

    Without accounts the one person joins what they open.
    """
    store, person = request.app.state.store, person_of(visitor)
    found = member(store, campaign, person.id)
    if found is None and request.app.state.me is not None:
        try:
            join(store, campaign, person.id)
        except MissingError as error:
            raise HTTPException(404) from error
        found = member(store, campaign, person.id)
    if found is None or found.state == "removed":
        raise HTTPException(404)
    return found


def person_of(visitor: Visitor) -> Person:
    assert visitor.person is not None
    return visitor.person


Adjudicator = Annotated[Visitor, Depends(adjudicator)]
Manager = Annotated[Visitor, Depends(manager)]
Membership = Annotated[Member, Depends(membership)]
StoreOf = Annotated[Store, Depends(store_of)]
ByPage = Depends(sent_by_page)
ByForm = Depends(sent_by_form)
