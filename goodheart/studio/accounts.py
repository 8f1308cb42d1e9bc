"""Log-in, invitations, settings, and the list of one's campaigns."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import campaigns, logins, membership, people, personal_data
from goodheart.feedback.passwords import LEAST, Busy
from goodheart.studio.pages import page, set_cookie
from goodheart.studio.visitors import (
    LANGUAGE_COOKIE,
    SESSION_COOKIE,
    Anybody,
    ByForm,
    Manager,
    Number,
    SignedIn,
    StoreOf,
    Visitor,
    person_of,
)
from goodheart.studio.words import LANGUAGES

router = APIRouter()

# What a labeller may tell of themselves, all of it optional; kept with each label, so that groups can be told apart.
BACKGROUND = ("culture", "first_language", "country", "age_group", "gender", "education", "occupation")
_LONGEST_PASSWORD = 1000  # characters; hashing more would only cost time
_BUSY_SECONDS = 2  # after which whoever found too many hashing may come again
Text = Annotated[str, Form(max_length=_LONGEST_PASSWORD)]


@router.get("/")
def home(request: Request, visitor: SignedIn, store: StoreOf) -> Response:
    """The campaigns somebody labels in; managers see all."""
    person = person_of(visitor)
    mine = set(membership.campaigns_of(store, person.id))
    shown = [each for each in campaigns.listing(store) if each.id in mine or person.may("manager")]
    members = [membership.member(store, each.id, person.id) for each in shown]
    joins = request.app.state.me is not None  # where there are no accounts, labelling is joining
    return page(request, "home.html", campaigns=list(zip(shown, members, strict=True)), joins=joins)


@router.post("/c/{campaign}/join", dependencies=[ByForm])
def join(visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    """A manager becomes a labeller of a campaign, too."""
    person = person_of(visitor)
    membership.join(store, campaign, person.id, by=person.id)
    return RedirectResponse(f"/c/{campaign}/label", 303)


@router.get("/login")
def login_page(request: Request, visitor: Anybody, next: str = "/") -> Response:
    if visitor.person is not None:
        return RedirectResponse("/", 303)
    return page(request, "login.html", next=_within(next), name="", problem=None)


@router.post("/login", dependencies=[ByForm])
def log_in(
    request: Request, visitor: Anybody, store: StoreOf, name: Text = "", password: Text = "", next: Text = "/"
) -> Response:
    if request.app.state.me is not None:
        raise HTTPException(404)
    address = request.client.host if request.client else ""
    try:
        session = logins.log_in(store, name, password, address=address)
    except Busy as error:
        raise _come_again(_BUSY_SECONDS) from error
    except logins.TooMany:
        return _again(request, visitor, name, next, "login.too_many", 429)
    except FeedbackError:
        return _again(request, visitor, name, next, "login.wrong", 422)
    return _enter(request, session, _within(next))


def _again(request: Request, visitor: Visitor, name: str, next: str, problem: str, status: int) -> Response:
    return page(request, "login.html", status, next=_within(next), name=name, problem=visitor.words(problem))


def _come_again(seconds: float) -> HTTPException:
    return HTTPException(429, headers={"Retry-After": str(int(seconds) + 1)})


def _enter(request: Request, session: logins.Session, to: str) -> Response:
    response = RedirectResponse(to, 303)
    set_cookie(request, response, SESSION_COOKIE, session.token, logins.SESSION_DAYS)
    return response


def _within(path: str) -> str:
    """The path if it stays on this site, else the first page."""
    fits = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if fits else "/"


@router.post("/logout", dependencies=[ByForm])
def log_out(request: Request, visitor: Anybody, store: StoreOf) -> Response:
    token = request.cookies.get(SESSION_COOKIE)
    if token and visitor.person is not None and request.app.state.me is None:
        logins.log_out(store, token)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(SESSION_COOKIE, path="/")
    return response


@router.get("/invite/{token}")
def invite_page(request: Request, store: StoreOf, token: str) -> Response:
    return _invite_form(request, _found(request, store, token), token, None, 200, {})


@router.post("/invite/{token}", dependencies=[ByForm])
def accept(
    request: Request,
    visitor: Anybody,
    store: StoreOf,
    token: str,
    name: Text = "",
    password: Text = "",
    language: Text = "",
    culture: Text = "",
    first_language: Text = "",
    country: Text = "",
    age_group: Text = "",
    gender: Text = "",
    education: Text = "",
    occupation: Text = "",
) -> Response:
    found = _found(request, store, token)
    told = (culture, first_language, country, age_group, gender, education, occupation)
    about = {key: text.strip()[:100] for key, text in zip(BACKGROUND, told, strict=True) if text.strip()}
    given = {"name": name, "language": language, **about}
    if len(password) < LEAST:
        return _invite_form(request, found, token, visitor.words("invite.short", n=LEAST), 422, given)
    chosen = language if language in LANGUAGES else visitor.words.language
    try:
        person = logins.accept(store, token, name, password, language=chosen, attributes=about)
    except Busy as error:
        raise _come_again(_BUSY_SECONDS) from error
    except MissingError:
        return page(request, "invite_used.html", 404)
    except ConflictError:
        return _invite_form(request, found, token, visitor.words("invite.taken"), 409, given)
    except FeedbackError:
        return _invite_form(request, found, token, visitor.words("invite.bad_name"), 422, given)
    return _enter(request, logins.open_session(store, person.id), "/")


def _found(request: Request, store: StoreOf, token: str) -> logins.Invite | None:
    """The invitation of a link, None if it works no more; guessing tokens is slowed down."""
    if request.app.state.me is not None:
        raise HTTPException(404)
    wait = request.app.state.invite_limit.take(request.client.host if request.client else "")
    if wait is not None:
        raise _come_again(wait)
    try:
        return logins.look_up(store, token)
    except MissingError:
        return None


def _invite_form(
    request: Request, found: logins.Invite | None, token: str, problem: str | None, status: int, given: dict[str, Any]
) -> Response:
    """The form of an invitation, or the page that says it works no more."""
    if found is None:
        return page(request, "invite_used.html", 404)
    campaign = None if found.campaign is None else campaigns.get(request.app.state.store, found.campaign)
    context = {"invite": found, "campaign": campaign, "token": token, "least": LEAST, "background": BACKGROUND}
    return page(request, "invite.html", status, problem=problem, given=given, **context)


@router.get("/settings")
def settings_page(request: Request, visitor: SignedIn) -> Response:
    return page(request, "settings.html", saved=request.query_params.get("saved") == "1")


@router.post("/settings", dependencies=[ByForm])
def save_settings(request: Request, visitor: SignedIn, store: StoreOf, language: Text = "") -> Response:
    if language not in LANGUAGES:
        raise HTTPException(422)
    people.set_language(store, person_of(visitor).id, language)
    response = RedirectResponse("/settings?saved=1", 303)
    set_cookie(request, response, LANGUAGE_COOKIE, language, 365)
    return response


@router.post("/language", dependencies=[ByForm])
def choose_language(request: Request, language: Text = "", next: Text = "/login") -> Response:
    """The language of the pages before log-in."""
    if language not in LANGUAGES:
        raise HTTPException(422)
    response = RedirectResponse(_within(next), 303)
    set_cookie(request, response, LANGUAGE_COOKIE, language, 365)
    return response


@router.get("/settings/data")
def my_data(visitor: SignedIn, store: StoreOf) -> Response:
    """Everything that is kept about the visitor, as a file."""
    data = json.dumps(
        personal_data.export_person(store, person_of(visitor).id), ensure_ascii=True, indent=1, default=str
    )
    name = {"Content-Disposition": 'attachment; filename="my-data.json"'}
    return Response(data, media_type="application/json", headers=name)
