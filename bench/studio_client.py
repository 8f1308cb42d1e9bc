"""Labellers who work on a studio over HTTP, hundreds in one process: for `bench studio` and its test.

Plain HTTP/1.1 on asyncio streams. The measured server shares its cores with these people, so they must cost little.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import insert

from goodheart.feedback.membership import join_in
from goodheart.feedback.passwords import hash_token, new_token
from goodheart.feedback.people import insert_person
from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tables import sessions

_AGAIN_S = 0.1  # between two tries to reach a server that is gone
_ANSWERED_S = 60.0  # no answer for so long is an error


@dataclass(frozen=True)
class Ticket:
    """A labeller who is logged in."""

    person: int
    cookie: str
    csrf: str


def admit(store: Store, campaign: int, count: int) -> list[Ticket]:
    """Makes labellers of a campaign with a session each, past the log-in: its passwords are slow on purpose."""
    now = utcnow()
    times = {"created_at": now, "expires_at": now + timedelta(days=1), "seen_at": now}
    tickets = []
    with store.begin() as connection:
        for number in range(count):
            person = insert_person(connection, f"visitor {number}", "labeller", None)
            join_in(connection, campaign, person)
            tickets.append(Ticket(person, new_token(), new_token()))
        rows = [{"token_hash": hash_token(t.cookie), "person_id": t.person, "csrf": t.csrf, **times} for t in tickets]
        connection.execute(insert(sessions), rows)
    return tickets


@dataclass
class Seen:
    """What all labellers of a run saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"fetch": [], "draft": [], "save": []})
    errors: list[str] = field(default_factory=list)
    acknowledged: list[tuple[int, int, int, str]] = field(default_factory=list)  # label, task, person, request
    again: int = 0  # saves that were sent once more, after an answer that did not come
    counts: bool = False  # false until everybody has begun: until then nothing is timed


class Gone(Exception):
    """No answer: the server was not there, or went away before it answered."""


class Browser:
    """One labeller's connection, opened again where the server has closed it, as browsers do."""

    def __init__(self, port: int, ticket: Ticket) -> None:
        self._port, self._ticket = port, ticket
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON of the answer.

        Raises:
            Gone: there was none.
        """
        sent = b"" if body is None else json.dumps(body).encode()
        lines = (
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self._port}",
            f"Cookie: goodheart_session={self._ticket.cookie}",
            f"X-CSRF-Token: {self._ticket.csrf}",
            "Content-Type: application/json",
            f"Content-Length: {len(sent)}",
        )
        request = "\r\n".join((*lines, "", "")).encode() + sent
        kept = self._writer is not None and self._reader is not None and not self._reader.at_eof()
        try:
            return await asyncio.wait_for(self._ask(request, kept), _ANSWERED_S)
        except (OSError, EOFError, TimeoutError) as error:
            self.close()
            if kept and not isinstance(error, TimeoutError):  # it was closed just as we wrote: once more, on a new one
                return await self.ask(method, path, body)
            raise Gone(repr(error)) from error

    async def _ask(self, request: bytes, kept: bool) -> tuple[int, Any]:
        if not kept:
            self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        _, _, rest = head.partition("\r\ncontent-length:")
        content = await self._reader.readexactly(int(rest.partition("\r\n")[0]))
        return int(head.split(" ", 2)[1]), json.loads(content)

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.close()
        self._reader = self._writer = None


@dataclass
class Crowd:
    """People who label one campaign until `stop` is set.

    Args:
        pause: seconds they think, on average; exponential, as the times between independent events are.
        patient: whether they send anew, with the same request name, what a dead server did not answer.
    """

    port: int
    campaign: int
    tickets: Sequence[Ticket]
    pause: float
    patient: bool = False
    seen: Seen = field(default_factory=Seen)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self) -> None:
        await asyncio.gather(*(self._labelling(ticket) for ticket in self.tickets))

    async def _labelling(self, ticket: Ticket) -> None:
        browser, chance = Browser(self.port, ticket), random.Random(ticket.person)
        await self._think(chance.random() * self.pause)  # they do not all begin in the same instant
        while not self.stop.is_set():
            answer = await self._timed(browser, "fetch", "GET", f"/api/c/{self.campaign}/task")
            if answer is None or answer["task"] is None:
                await self._think(1.0)
                continue
            task = answer["task"]["id"]
            draft = {"answer": {"ranks": [0, 1]}, "seconds": 1.0}
            await self._timed(browser, "draft", "PUT", f"/api/tasks/{task}/draft", draft)
            await self._think(chance.expovariate(1 / self.pause) if self.pause else 0.0)
            if self.stop.is_set():
                break
            said = {"request": f"{chance.getrandbits(96):024x}", "ranks": [0, 1], "strength": 2, "seconds": self.pause}
            kept = await self._timed(browser, "save", "POST", f"/api/tasks/{task}/label", said)
            if kept is not None:
                self.seen.acknowledged.append((kept["label"], task, ticket.person, str(said["request"])))
        browser.close()

    async def _think(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)

    async def _timed(
        self, browser: Browser, kind: str, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Any:
        """The answer's JSON, None where it was an error; the patient send until they are answered."""
        while True:
            began = time.perf_counter()
            try:
                status, answer = await browser.ask(method, path, body)
            except Gone as error:
                if self.patient and (kind == "save" or not self.stop.is_set()):
                    self.seen.again += kind == "save"
                    await asyncio.sleep(_AGAIN_S)
                    continue
                status, answer = 0, str(error)
            if self.seen.counts:
                self.seen.seconds[kind].append(time.perf_counter() - began)
            if status == 200:
                return answer
            self.seen.errors.append(f"{kind}: {status} {answer!r:.200}")
            return None
