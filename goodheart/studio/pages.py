"""Pages out of templates, and errors as pages or as JSON."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.studio.markdown import render
from goodheart.studio.marks import show, sound
from goodheart.studio.security import HEADERS
from goodheart.studio.visitors import TOKEN_COOKIE, visitor_of
from goodheart.studio.words import LANGUAGES

HERE = Path(__file__).parent
_ERRORS = frozenset({401, 403, 404, 405, 409, 413, 422, 429, 500})


@lru_cache(maxsize=1)
def static_version() -> str:
    """Changes with every change of a static file: browsers may keep the files of one version for ever."""
    digest = hashlib.sha256()
    for path in sorted((HERE / "static").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(HERE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"static": f"/static/{static_version()}", "languages": LANGUAGES}
    found.filters |= {
        "markdown": lambda text: Markup(render(text).html),  # made safe there
        "shown": lambda text: Markup(show(sound(text))),  # escaped there
        "json": _as_json,
    }
    return found


def _as_json(value: Any) -> Markup:
    """JSON inside a <script type="application/json">: nothing in it can end the element."""
    text = json.dumps(value)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def page(request: Request, template: str, status: int = 200, /, **context: Any) -> HTMLResponse:
    """A page with what every page knows: the visitor, their words (`t`) and whether there are accounts."""
    visitor = visitor_of(request)
    about = {"t": visitor.words, "visitor": visitor, "person": visitor.person, "path": request.url.path}
    about |= {"single_user": request.app.state.me is not None, "navigation": request.app.state.navigation}
    html = _templates().get_template(template).render(**about, **context)
    response = HTMLResponse(html, status)
    response.headers["Content-Language"] = visitor.words.language
    if visitor.is_new:
        set_cookie(request, response, TOKEN_COOKIE, visitor.csrf)
    return response


def set_cookie(request: Request, response: Response, name: str, value: str, days: float | None = None) -> None:
    """A cookie that scripts cannot read and other sites cannot send; `days` None: until the browser closes."""
    response.set_cookie(
        name,
        value,
        max_age=None if days is None else int(days * 86_400),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
        path="/",
    )


class Json(JSONResponse):
    """JSON in ASCII: a browser can read it whatever is in its texts, half surrogate pairs included."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def wants_json(request: Request) -> bool:
    return request.url.path.startswith("/api/")


def error_page(request: Request, status: int, detail: str | None = None) -> Response:
    """What went wrong, in the visitor's language, as a page or as `{"error": {"code", "message"}}`."""
    words = visitor_of(request).words
    known = status if status in _ERRORS else 500 if status >= 500 else 422
    message = words(f"error.{known}")
    if wants_json(request):
        said = detail if detail and words.language == "en" else f"{message} ({detail})" if detail else message
        return Json({"error": {"code": str(status), "message": sound(said)}}, status)
    return page(request, "error.html", status, status=status, message=message, detail=detail)


def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 401 and not wants_json(request):
        back = URL("/login").include_query_params(next=request.url.path) if request.method == "GET" else URL("/login")
        return RedirectResponse(str(back), 303)
    if error.detail == "csrf":
        response: Response = error_page(request, 403, visitor_of(request).words("error.csrf"))
    else:
        response = error_page(request, error.status_code)
    response.headers.update(error.headers or {})
    return response


def on_bad_request(request: Request, error: Exception) -> Response:
    """What does not fit the shape of a request; an address with words for a number is a page that is not there."""
    assert isinstance(error, RequestValidationError)
    in_path = any(each["loc"][:1] == ("path",) for each in error.errors())
    return error_page(request, 404 if in_path else 422)


def on_feedback_error(request: Request, error: Exception) -> Response:
    """An error of the store says by its kind what it means here."""
    assert isinstance(error, FeedbackError)
    status = 404 if isinstance(error, MissingError) else 409 if isinstance(error, ConflictError) else 422
    return error_page(request, status, str(error))


def broken(request: Request) -> Response:
    """Something went wrong here. Kept simple, since what went wrong may be needed for a page."""
    try:
        return error_page(request, 500)
    except Exception:
        return Json({"error": {"code": "500", "message": "internal error"}}, 500, HEADERS)
