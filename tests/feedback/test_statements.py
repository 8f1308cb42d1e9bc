"""What a labeller's requests cost: ways to the database and back, which are most of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event

from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import next_task
from goodheart.feedback.labels import save
from goodheart.feedback.logins import open_session, session
from goodheart.feedback.store import Store
from goodheart.feedback.tasks import Task, save_draft
from tests.feedback.making import campaign


def test_how_many_statements_each_request_takes(store: Store) -> None:
    made, (person,) = campaign(store, 50, gold_share=0)
    token = open_session(store, person).token
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if not statement.startswith("BEGIN"):  # which SQLite alone is sent as a statement
            seen.append(statement.split()[0])

    def counted() -> list[str]:
        found = list(seen)
        seen.clear()
        return found

    event.listen(store.engine, "before_cursor_execute", note)
    assert session(store, token) is not None
    assert counted() == ["SELECT"]  # the session with its person
    task = next_task(store, made.id, person)
    assert isinstance(task, Task)
    # place with campaign and guidelines; what is open; the next item; then the task, the item's and the member's counts
    assert counted() == ["SELECT"] * 3 + ["INSERT", "UPDATE", "UPDATE"]
    save_draft(store, task.id, person, {"ranks": [0, 1]})
    assert counted() == ["SELECT", "SELECT", "UPDATE"]
    save(store, task.id, person, Answered([0, 1]))
    # place; task with item and an earlier save; the label in place of another; the task's and the item's counts
    assert counted() == ["SELECT", "SELECT", "UPDATE", "INSERT", "UPDATE", "UPDATE"]
