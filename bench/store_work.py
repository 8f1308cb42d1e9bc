"""Work on a store of labels, for `bench store` and the tests: big campaigns made quickly, labellers that get killed."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import select, update

from goodheart.data.records import Answer, Message, Prompt
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import next_task
from goodheart.feedback.bulk import insert_rows
from goodheart.feedback.campaigns import CampaignSettings, create
from goodheart.feedback.items import NewItem
from goodheart.feedback.labels import save
from goodheart.feedback.membership import join
from goodheart.feedback.people import add_person
from goodheart.feedback.store import Store, open_store, utcnow
from goodheart.feedback.tables import assignments, items, labels
from goodheart.feedback.tasks import Task, save_draft

_ROWS = 5000


def new_items(count: int, words: int = 0) -> Iterator[NewItem]:
    """Pairs of answers of about so many words each (6 letters and a space)."""
    chance = random.Random(0)
    for i in range(count):
        said = [" ".join(f"{chance.randrange(10**6):06d}" for _ in range(words)) for _ in range(2)]
        answers = tuple(Answer(f"answer {k} {text}", model=f"model-{k}") for k, text in enumerate(said))
        yield NewItem(Prompt((Message("user", f"question {i} " + said[0][: 2 * words]),)), answers)


def fill(
    store: Store, count: int, *, done: int, people: int, overlap: int = 1, words: int = 0
) -> tuple[int, list[int]]:
    """A campaign of `count` items, the first `done` of which (in the order of handing out) have all their labels.

    Returns its id and its people. Labels are put in past the rules, in bulk.
    """
    campaign = create(store, CampaignSettings(name="big", overlap=overlap, gold_share=0), new_items(count, words)).id
    everybody = [add_person(store, f"person {i}").id for i in range(people)]
    for person in everybody:
        join(store, campaign, person)
    start = utcnow() - timedelta(days=30)
    with store.begin() as connection:
        order = list(connection.execute(select(items.c.id).order_by(items.c.place).limit(done)).scalars())
        for begin in range(0, len(order), _ROWS // overlap):
            part = order[begin : begin + _ROWS // overlap]
            pairs = [(item, everybody[(item + k) % people]) for item in part for k in range(overlap)]
            given = [
                {"item_id": item, "person_id": person, "campaign_id": campaign, "shown": [0, 1], "given_at": start,
                 "expires_at": start, "state": "done"} for item, person in pairs
            ]  # fmt: skip
            insert_rows(connection, assignments, given)
            said = [
                {"campaign_id": campaign, "item_id": item, "person_id": person, "request": f"r{item}",
                 "ranks": [(item + person) % 2, (item + person + 1) % 2], "strength": 1 + item % 4,
                 "flags": {"harmful": [0]} if item % 10 == 0 else {}, "shown": [0, 1], "seconds": 20.0, "gold": False,
                 "source": "person", "kind": "label", "live": True, "created_at": start + timedelta(seconds=item)}
                for item, person in pairs
            ]  # fmt: skip
            insert_rows(connection, labels, said)
            full = items.c.id.in_(part)
            connection.execute(update(items).where(full).values(done=overlap, state="done"))
    if not store.is_sqlite:  # as its own housekeeping does after a while
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")
    return campaign, everybody


def label_until_killed(place: str, campaign: int, people: list[int], log: str) -> None:
    """Labels with one thread per person until there is nothing left or somebody kills this process.

    Each label is written down in the file `log` after `save` has come back, never before.
    """
    store = open_store(place)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def labelling(person: int) -> None:
        while isinstance(task := next_task(store, campaign, person), Task):
            save_draft(store, task.id, person, {"ranks": [0, 1]})
            answered = Answered([0, 1])
            saved = save(store, task.id, person, answered)
            # One short write to a file opened for appending: whole or not at all, and it outlives this process.
            os.write(file, f"{saved.label} {task.item} {person} {answered.request}\n".encode())

    threads = [threading.Thread(target=labelling, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def acknowledged(log: str) -> list[tuple[int, int, int, str]]:
    """What `label_until_killed` wrote down: label, item, person, request."""
    with contextlib.suppress(FileNotFoundError), open(log) as file:
        rows = [line.split() for line in file]
        return [(int(row[0]), int(row[1]), int(row[2]), row[3]) for row in rows]
    return []


def check_after_kills(store: Store, campaign: int, log: str) -> dict[str, int]:
    """`check_kept` of what `label_until_killed` wrote down."""
    return check_kept(store, campaign, acknowledged(log))


def check_kept(store: Store, campaign: int, told: list[tuple[int, int, int, str]]) -> dict[str, int]:
    """What must be true after however many kills; returns what was counted.

    Args:
        told: acknowledged labels: label, item, person, request.

    Raises:
        AssertionError: a label was lost or doubled, or the counts are wrong.
    """
    with store.read() as connection:
        kept = connection.execute(select(labels).where(labels.c.campaign_id == campaign)).all()
        held = connection.execute(select(assignments).where(assignments.c.campaign_id == campaign)).all()
        counts = connection.execute(select(items).where(items.c.campaign_id == campaign)).all()
    found = {(row.id, row.item_id, row.person_id, row.request) for row in kept if row.live}
    lost = [row for row in told if row not in found]
    assert not lost, f"{len(lost)} acknowledged labels are lost: {lost[:3]}"
    live = [(row.item_id, row.person_id) for row in kept if row.live]
    done = Counter(item for item, _ in live)
    assert len(set(live)) == len(live) == len(kept), "labels are doubled"
    for row in counts:
        assert row.done == done[row.id], "labels are counted wrongly"
        assert row.done + row.held <= row.wanted, "more labels than wanted"
    given = sum(row.state == "given" for row in held)
    assert sum(row.held for row in counts) == given, "items are held by nobody"
    return {"acknowledged": len(told), "kept": len(live), "held": given}


def timed_labelling(place: str, campaign: int, people: list[int], each: int, pause: float) -> dict[str, list[float]]:
    """Seconds of every `next_task` and every `save` of people who label at the same time, `pause` seconds apart."""
    store = open_store(place)
    times: dict[str, list[float]] = {"next_task": [], "save": []}

    def labelling(person: int) -> None:
        chance = random.Random(person)
        time.sleep(chance.random() * pause)
        for _ in range(each):
            begin = time.perf_counter()
            task = next_task(store, campaign, person)
            times["next_task"].append(time.perf_counter() - begin)
            assert isinstance(task, Task), task
            time.sleep(pause * (0.5 + chance.random()))
            begin = time.perf_counter()
            save(store, task.id, person, Answered([0, 1], strength=2, seconds=1.0))
            times["save"].append(time.perf_counter() - begin)

    threads = [threading.Thread(target=labelling, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    return times
