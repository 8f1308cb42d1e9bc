"""Killed under load again and again: what was acknowledged is there, once, and nothing stays stuck."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select

from bench.store_work import acknowledged, check_after_kills, fill, label_until_killed
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import next_task
from goodheart.feedback.labels import save
from goodheart.feedback.store import open_store, utcnow
from goodheart.feedback.tables import items
from goodheart.feedback.tasks import Task
from tests.feedback.conftest import NewPlace

KILLS = 6  # on each database; `python -m bench store kills` does more, for longer


def test_nothing_is_lost_doubled_or_stuck(new_place: NewPlace, tmp_path: Path) -> None:
    place, log, chance = new_place(), str(tmp_path / "acknowledged"), random.Random(0)
    store = open_store(place)
    campaign, people = fill(store, 100, done=0, people=4, overlap=2)
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["bench.store_work", "sqlalchemy.dialects.sqlite", "psycopg"])
    killed = 0
    for _ in range(KILLS):
        child = fork.Process(target=label_until_killed, args=(place, campaign, people, log))
        before = len(acknowledged(log))
        child.start()
        deadline = time.monotonic() + 20
        # Killed in the middle of work: not before it has begun to acknowledge.
        while len(acknowledged(log)) < before + 2 and time.monotonic() < deadline and child.is_alive():
            time.sleep(0.005)
        time.sleep(0.1 * chance.random())
        assert child.pid is not None
        killed += child.is_alive()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        check_after_kills(store, campaign, log)
    assert killed >= KILLS - 2, "the work was done before the kills were"
    later = utcnow() + timedelta(minutes=21)  # every lock of the killed has run out
    threads = [threading.Thread(target=finish, args=(place, campaign, person, later)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert check_after_kills(store, campaign, log)["kept"] == 200
    with store.read() as connection:
        assert set(connection.execute(select(items.c.state)).scalars()) == {"done"}
    store.close()


def finish(place: str, campaign: int, person: int, now: object) -> None:
    store = open_store(place)
    while isinstance(task := next_task(store, campaign, person, now=now), Task):  # type: ignore[arg-type]
        save(store, task.id, person, Answered([0, 1]), now=now)  # type: ignore[arg-type]
    store.close()
