"""Two transactions that meet at one item, each step where it hurts. SQLite has one writer: these need PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from bench.private_postgres import Server
from goodheart.errors import ConflictError
from goodheart.feedback import labels
from goodheart.feedback.answered import Answered
from goodheart.feedback.labels import save, undo
from goodheart.feedback.store import Store, open_store
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
