"""What stands around every page: headers, host and origin checks, limits of size and of attempts, CSRF tokens.

The pages load nothing from elsewhere and hold no script or style of their own text (Content-Security-Policy with
'self' alone), so that a text that slips through the rendering still cannot run, call out or be framed.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("goodheart.studio")
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BODY_MOST = 1 << 20  # bytes of a request; 1 MiB
_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'; "
    "img-src 'self' data:; require-trusted-types-for 'script'; trusted-types goodheart"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Guard:
    """ASGI middleware around everything: refuses foreign hosts and origins and too large bodies, sets the headers.

    Args:
        hosts: names under which the studio may be called, without port; None for all. Without log-in it must be the
            local ones: otherwise any web page could reach it through a name that it makes point to 127.0.0.1.
        body_most: bytes of a request body, by the beginning of its path; others may have `BODY_MOST`.
        broken: the page that says that something went wrong here; the error itself goes to the log alone.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None,
        body_most: Mapping[str, int],
        broken: Callable[[Request], Response],
    ) -> None:
        self._app, self._hosts, self._body_most, self._broken = app, hosts, body_most, broken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is not None:
            await _answer(scope, send, *refused)
            return
        body = _Body(receive, self._most(scope["path"]))

        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        try:
            await self._app(scope, body.receive, with_headers)
        except Exception:
            _LOG.exception("%s %s", scope["method"], scope["path"])
            if started:
                raise
            await self._broken(Request(scope))(scope, receive, with_headers)

    def _most(self, path: str) -> int:
        return next((most for start, most in self._body_most.items() if path.startswith(start)), BODY_MOST)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return 421, "host", "this studio is not called by that name"
        length = headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) > self._most(scope["path"]):
            return 413, "too_large", "the request is too large"
        if scope["method"] in UNSAFE:
            origin = headers.get("origin")
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "origin", "the request comes from another web site"
            if origin is not None and _network(origin) != host.lower():
                return 403, "origin", "the request comes from another web site"
        return None


class _Body:
    """Counts the bytes of a request body that comes without a length."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left = receive, most

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413)
        return message


def _name(host: str) -> str:
    """`localhost:8000` -> `localhost`, `[::1]:8000` -> `[::1]`."""
    return (host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]).lower()


def _network(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _answer(scope: Scope, send: Send, status: int, code: str, message: str) -> None:
    """A refusal in JSON: what is refused here was not sent by a page of the studio."""
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close", **HEADERS}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def new_token() -> str:
    return secrets.token_urlsafe(32)


def same(given: str | None, known: str | None) -> bool:
    """Whether two tokens are equal, in time that does not depend on where they differ."""
    return bool(given and known) and hmac.compare_digest(str(given).encode("utf-8", "replace"), str(known).encode())


@dataclass
class Limit:
    """At most so many attempts of one key in a window of time.

    Example: `Limit(10, 60.0).take("203.0.113.7")` is None, or the seconds to wait.
    """

    most: int
    seconds: float
    _seen: dict[str, deque[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str, now: float | None = None) -> float | None:
        """Counts one attempt; the seconds until the next is allowed if this one is not."""
        now = time.monotonic() if now is None else now
        with self._lock:
            if len(self._seen) > 10_000:
                self._forget(now)
            times = self._seen.setdefault(key, deque())
            while times and times[0] <= now - self.seconds:
                times.popleft()
            if len(times) >= self.most:
                return times[0] + self.seconds - now
            times.append(now)
            return None

    def _forget(self, now: float) -> None:
        for key in [key for key, times in self._seen.items() if not times or times[-1] <= now - self.seconds]:
            del self._seen[key]
