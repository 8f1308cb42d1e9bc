"""A studio to call without a network, one in a real server, and a real browser."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from goodheart.data.records import Answer, Message, Prompt
from goodheart.feedback import assignment, campaigns, labels, logins, membership, passwords, people
from goodheart.feedback.answered import Answered
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.items import NewItem
from goodheart.feedback.store import Store, open_store, utcnow
from goodheart.feedback.tasks import Task
from goodheart.studio.app import create_app

PASSWORD = "a long enough one"


def item(question: str, *answers: str, **more: Any) -> NewItem:
    said = tuple(Answer(text, model=f"secret-model-{k}") for k, text in enumerate(answers))
    return NewItem(Prompt(messages=(Message("user", question),)), said, **more)


def pairs(count: int) -> list[NewItem]:
    return [item(f"Question {i}?", f"First of {i}.", f"Second of {i}.") for i in range(count)]


@pytest.fixture(autouse=True)
def _quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", (2**4, 8, 1))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables and nothing in them: made once, copied for each test."""
    path = tmp_path_factory.mktemp("empty") / "labels.db"
    open_store(path).close()
    return path


@pytest.fixture(scope="session")
def labelled_database(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people on 24 pairs in two languages; two of them agree on everything."""
    path = shutil.copy(empty_database, tmp_path_factory.mktemp("labelled") / "labels.db")
    store = open_store(path)
    rows = [
        item(f"Question {i}?", f"First of {i}.", f"Second of {i}.", slice={"language": "en" if i % 2 else "zh"})
        for i in range(24)
    ]
    settings = CampaignSettings(name="helpful", overlap=3, pay_per_hour=36.0, languages=("en", "zh", "th"))
    label_all(
        store, campaigns.create(store, settings, rows, "Choose the *better* one."), ["ann", "bo", "zed"], by_letter
    )
    store.close()
    return path


def label_all(store: Store, campaign: Campaign, names: list[str], say: Callable[[str, Task], Answered]) -> None:
    """Everybody labels what they are given, one after the other, with a minute between two labels."""
    now = utcnow() - timedelta(hours=20)
    for name in names:
        person = people.find_person(store, name) or people.add_person(store, name)
        membership.join(store, campaign.id, person.id)
        while isinstance(task := assignment.next_task(store, campaign.id, person.id, now=now), Task):
            labels.save(store, task.id, person.id, say(name, task), now=now)
            now += timedelta(minutes=1)


def by_letter(name: str, task: Task) -> Answered:
    """Careful people prefer the first answer of the item; whose name begins with z takes what is shown first."""
    first = task.shown[0] if name.startswith("z") else 0
    return Answered([int(k != first) for k in range(len(task.answers))], 2, seconds=1.0 if name[0] == "z" else 9.0)


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Empty, or, for a test that asks for `labelled`, with that campaign in it."""
    filled = "labelled" in request.fixturenames
    database = request.getfixturevalue("labelled_database" if filled else "empty_database")
    opened = open_store(shutil.copy(database, tmp_path / "labels.db"))
    yield opened
    opened.close()


@pytest.fixture
def labelled(store: Store) -> Campaign:
    """See `labelled_database`."""
    return campaigns.get(store, "helpful")


@pytest.fixture
def campaign(store: Store) -> Campaign:
    return campaigns.create(store, CampaignSettings(name="helpful", overlap=2), pairs(6), "Choose the *better* one.")


@pytest.fixture
def alone(store: Store) -> Iterator[TestClient]:
    """Without accounts: the one person at the machine."""
    with TestClient(create_app(store, single_user=True), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture
def visit(store: Store) -> Iterator[Callable[..., TestClient]]:
    """With accounts: makes a browser for somebody who is logged in, or (without a name) for a stranger."""
    app = create_app(store, single_user=False)
    clients: list[TestClient] = []

    def make(name: str | None = None, role: str = "labeller", campaign: int | None = None) -> TestClient:
        client = TestClient(app, base_url="http://studio.test", follow_redirects=False)
        clients.append(client)
        if name is not None:
            person = people.find_person(store, name) or people.add_person(store, name, role, password=PASSWORD)
            if campaign is not None:
                membership.join(store, campaign, person.id)
            session = logins.open_session(store, person.id)
            client.cookies.set("goodheart_session", session.token)
            client.headers["X-CSRF-Token"] = session.csrf
        return client

    yield make
    for client in clients:
        client.close()


@dataclass
class Running:
    """A server in a thread."""

    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def serving(store: Store) -> Iterator[Callable[..., Running]]:
    """Starts the studio on a port of its own."""
    running: list[Running] = []

    def start(*, single_user: bool = True, port: int = 0) -> Running:
        app = create_app(store, single_user=single_user)
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        running.append(Running(f"http://127.0.0.1:{address[1]}", server, thread))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser. It lives no longer than a file of tests: while it does, nothing else can run an event loop."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        message = "no Chromium on this machine (apt-get install chromium): the pages are not tried in a browser"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a tab; at the end of the test it must have shown no error, run no foreign script, asked nobody else."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_tab(width: int = 1280, height: int = 800, **more: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **more)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("dialog", lambda dialog: _answer(wrong, dialog))
        page.on("pageerror", lambda error: wrong.append(f"error {error}"))
        page.on("console", lambda line: _note(wrong, line))
        page.on("request", lambda request: _note_request(wrong, request.url))
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert wrong == []


def _answer(wrong: list[str], dialog: Any) -> None:
    if dialog.type != "beforeunload":  # the page's own warning that something is not yet sent
        wrong.append(f"dialog {dialog.message}")
    dialog.accept()


def _note(wrong: list[str], line: Any) -> None:
    if line.type == "error" and "Failed to load resource" not in line.text:
        wrong.append(f"console {line.text}")


def _note_request(wrong: list[str], url: str) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        wrong.append(f"request to {url}")
