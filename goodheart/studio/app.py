"""The web application of the studio, and the server that runs it.

    serve(open_store("goodheart.db"))        # http://127.0.0.1:8000, for the one person at this machine

Without accounts whoever can open the page is the manager, so it answers on this machine alone. With accounts people log
in, and it may be put on a network, behind a proxy that speaks HTTPS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Collection
from functools import partial

import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from goodheart.errors import ConfigError, FeedbackError
from goodheart.feedback import passwords, people
from goodheart.feedback.store import Store, open_store
from goodheart.studio import accounts, labelling, manage
from goodheart.studio.pages import (
    HERE,
    broken,
    on_bad_request,
    on_feedback_error,
    on_http_error,
    static_version,
)
from goodheart.studio.security import LOCAL_HOSTS, Guard, Limit, new_token
from goodheart.studio.workers import run as run_workers

INVITES_A_MINUTE = 30  # that one address may look at
THREADS = 10  # that answer requests; more only wait for each other's turn in the interpreter
ME = "me"  # name of the one person where there are no accounts


def create_app(
    store: Store, *, single_user: bool, hosts: Collection[str] | None = None, csrf: str | None = None, workers: int = 1
) -> FastAPI:
    """The application.

    Args:
        single_user: no log-in; whoever opens a page is the manager "me". Then only local host names are answered.
        hosts: names the studio is called by; None: any, with accounts.
        csrf: the token of the pages without log-in; None: a new one.
        workers: processes that serve the studio together; what each may do at a time is their share.
    """
    app = FastAPI(title="goodheart studio", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = store
    app.state.me = _me(store) if single_user else None
    app.state.csrf = csrf or new_token()
    app.state.navigation = manage.NAVIGATION
    app.state.invite_limit = Limit(max(1, INVITES_A_MINUTE // workers), 60.0)
    app.add_middleware(Guard, hosts=LOCAL_HOSTS if single_user else hosts, body_most=manage.BODY_MOST, broken=broken)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_request)
    app.add_exception_handler(FeedbackError, on_feedback_error)
    app.include_router(accounts.router)
    app.include_router(labelling.router)
    app.include_router(manage.router)
    app.mount(f"/static/{static_version()}", _Static(directory=HERE / "static"), name="static")
    return app


class _Static(StaticFiles):
    """Files under an address that changes with them, so browsers need not ask again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def _me(store: Store) -> people.Person:
    """The person of a studio without accounts: a manager, made at the first start."""
    found = people.find_person(store, ME)
    if found is None:
        return people.add_person(store, ME, "manager")
    if found.role != "manager":
        people.change_role(store, found.id, "manager")
    return people.get_person(store, found.id)


class _Server(uvicorn.Server):
    """Says when it answers: after the port is open, not before."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await super().startup(sockets=sockets)
        if self.started and self._ready is not None:
            self._ready()


def _config(app: ASGIApp, host: str, port: int, proxy: str | None) -> uvicorn.Config:
    """uvicorn by itself believes all that asks from this machine, where anybody could make addresses up."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy or "",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def serve(
    store: Store,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    accounts: bool = False,
    hosts: Collection[str] | None = None,
    proxy: str | None = None,
    workers: int = 1,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serves the studio until Ctrl-C; answers that are being saved are finished first.

    Args:
        host: address to listen on; 127.0.0.1 is this machine alone.
        accounts: people log in. Needed for any other host.
        hosts: names the studio is called by, such as labels.example.org; None: any, with accounts.
        proxy: address of the proxy in front, which tells by X-Forwarded-For and X-Forwarded-Proto who asks
            and whether over HTTPS; None: nobody is believed about that.
        workers: processes that answer; more than one needs PostgreSQL.
        ready: called once when it answers.

    Raises:
        ConfigError: another host without accounts, a port that is taken, or several processes on SQLite.
    """
    if workers > 1 and store.is_sqlite:
        raise ConfigError(
            f"workers {workers}: SQLite lets one write at a time, and several processes only wait for each other; "
            "leave workers at 1, or keep the labels in PostgreSQL (--db postgresql://...)"
        )
    if not accounts and host not in LOCAL_HOSTS:
        raise ConfigError(
            f"host {host}: without accounts whoever reaches the page is its manager; "
            "turn accounts on, or leave the host at 127.0.0.1"
        )
    try:
        if workers > 1:
            if not accounts:
                _me(store)  # once, before they all look
            place = store.engine.url.render_as_string(hide_password=False)
            job = partial(_serve_one, place, host, port, proxy, not accounts, hosts, new_token(), workers)
            with _listening(host, port) as listening:
                run_workers(job, listening, workers, ready)
            return
        app = create_app(store, single_user=not accounts, hosts=hosts)
        with _listening(host, port) as listening:
            _Server(_config(app, host, port, proxy), ready).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # the server has shut down; Ctrl-C is how one leaves
    finally:
        store.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            hint = "is a studio running already? Try another port"
            raise ConfigError(f"port {port} of {host} cannot be used ({os.strerror(error.errno)}); {hint}") from error
        raise ConfigError(
            f"host {host}: no address of this machine; 127.0.0.1 is this machine alone, 0.0.0.0 all its addresses"
        ) from error


def _serve_one(
    place: str,
    host: str,
    port: int,
    proxy: str | None,
    single_user: bool,
    hosts: Collection[str] | None,
    csrf: str,
    workers: int,
    listening: socket.socket,
    ready: Callable[[], None],
) -> None:
    """One of several servers, in a process of its own."""
    passwords.share(workers)
    with contextlib.closing(open_store(place)) as store:
        app = create_app(store, single_user=single_user, hosts=hosts, csrf=csrf, workers=workers)
        _Server(_config(app, host, port, proxy), ready).run(sockets=[listening])
