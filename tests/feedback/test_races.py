"""Two transactions that meet at one item, each step where it hurts. SQLite has one writer: these need PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from bench.private_postgres import Server
from goodheart.data.records import Judgement
from goodheart.errors import ConflictError
from goodheart.feedback import assignment, importing, labels
from goodheart.feedback.answered import Answered
from goodheart.feedback.labels import save, undo
from goodheart.feedback.store import Store, open_store, utcnow
from goodheart.feedback.tables import assignments, items
from goodheart.feedback.tables import labels as label_table
from tests.feedback.making import campaign, task

LATER = timedelta(hours=1)


@pytest.fixture
def store(postgres: Server, request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(postgres.new_schema(f"race{abs(hash(request.node.nodeid)) % 10**12}"))
    yield opened
    opened.close()


def meanwhile(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, act: Any, *, after: bool = False) -> None:
    """Once, right before (or after) a function is called, something else happens."""
    real = getattr(module, name)

    def with_it(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(module, name, real)
        if not after:
            act()
        found = real(*args, **more)
        if after:
            act()
        return found

    monkeypatch.setattr(module, name, with_it)


def wait_till_blocked(store: Store, seconds: float = 10) -> None:
    """Until a transaction waits for a lock."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    end = time.monotonic() + seconds
    while not store.ask(waiting)[0][0]:
        assert time.monotonic() < end, "nobody waits"
        time.sleep(0.01)


def test_a_label_that_is_changed_while_it_is_undone_stays_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, (person,) = campaign(store, 3)
    found = task(store, made.id, person)
    save(store, found.id, person, Answered((0, 1), request="one"))
    meanwhile(monkeypatch, labels, "seat_at", lambda: save(store, found.id, person, Answered((1, 0), request="two")))
    with pytest.raises(ConflictError, match="undo again"):
        undo(store, made.id, person)
    with store.read() as connection:
        row = connection.execute(select(items).where(items.c.id == found.item)).one()
        state = connection.execute(select(assignments.c.state).where(assignments.c.id == found.id)).scalar_one()
        live = connection.execute(select(label_table.c.ranks).where(label_table.c.live)).scalars().all()
    assert (row.done, row.held, row.state, state, live) == (1, 0, "done", "done", [[1, 0]])
    again = undo(store, made.id, person)
    assert again.draft is not None
    assert again.draft["ranks"] == [1, 0]


@pytest.mark.parametrize("others", [False, True], ids=["their lock alone", "also another's lock ran out"])
def test_who_comes_back_to_an_item_and_an_import_of_it_do_not_wait_in_a_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    made, (person, other) = campaign(store, 1, people=2, overlap=3)
    now = utcnow()
    found = task(store, made.id, person, now=now)
    assignment.release(store, made.id, now=now + LATER)
    if others:
        task(store, made.id, other, now=now)
    told: list[Any] = []

    def importing_it() -> None:
        try:
            judged = Judgement(found.prompt, found.answers, (0, 1), rater="elsewhere")
            told.append(importing.import_judgements(store, made.id, [judged]))
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=importing_it)

    def import_begins() -> None:
        thread.start()
        wait_till_blocked(store)

    # What comes back is locked before `hold`; what ran out is locked by `_release`.
    meanwhile(monkeypatch, assignment, "_release" if others else "hold", import_begins, after=others)
    back = assignment.next_task(store, made.id, person, now=now + LATER)
    thread.join()
    assert isinstance(told[0], importing.Imported), told
    # Where the import has their row, they are told to ask again rather than kept waiting.
    again = back if not others else assignment.next_task(store, made.id, person, now=now + LATER)
    assert isinstance(again, assignment.Task)
    assert again.id == found.id
    with store.read() as connection:
        row = connection.execute(select(items.c.done, items.c.held)).one()
    assert tuple(row) == (1, 1)
