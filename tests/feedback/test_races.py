"""Two transactions that meet at one item, each step where it hurts. SQLite has one writer: these need PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from bench.private_postgres import Server
from goodheart.data.records import Judgement
from goodheart.errors import ConflictError
from goodheart.feedback import assignment, campaigns, importing, labels, personal_data
from goodheart.feedback.answered import Answered
from goodheart.feedback.expired import release
from goodheart.feedback.labels import save, undo
from goodheart.feedback.membership import join
from goodheart.feedback.people import add_person
from goodheart.feedback.store import Store, open_store, utcnow
from goodheart.feedback.tables import assignments, items, people
from goodheart.feedback.tables import labels as label_table
from tests.feedback.making import campaign, known, pairs, task

LATER = timedelta(hours=1)


@pytest.fixture
def store(postgres: Server, request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(postgres.new_schema(f"race{abs(hash(request.node.nodeid)) % 10**12}"))
    yield opened
    opened.close()


def meanwhile(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, act: Any) -> None:
    """Once, right before a function is called, something else happens."""
    real = getattr(module, name)

    def with_it(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(module, name, real)
        act()
        return real(*args, **more)

    monkeypatch.setattr(module, name, with_it)


def wait_till_blocked(store: Store, seconds: float = 10) -> None:
    """Until a transaction waits for a lock."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    end = time.monotonic() + seconds
    while not store.ask(waiting)[0][0]:
        assert time.monotonic() < end, "nobody waits"
        time.sleep(0.01)


def at_statement(store: Store, *words: str, act: Callable[[], None]) -> None:
    """Once, right before a statement with these words is sent, something else happens."""
    first = threading.Lock()

    def before(_: Any, __: Any, statement: str, *___: Any) -> None:
        if all(each in statement for each in words) and first.acquire(blocking=False):
            act()

    event.listen(store.engine, "before_cursor_execute", before)


class Started:
    """Something that is done in a thread of its own."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act, self._found = act, list[Any]()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._act())
        except BaseException as error:
            self._found.append(error)

    def is_over(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> Any:
        """What came of it, errors too."""
        self._thread.join()
        return self._found[0]


# An import is about to lock items, and has locked them.
ITEMS_LOCKED = ("FROM items", "items.key IN", "ORDER BY items.id FOR UPDATE")
ITEMS_HELD = ("FROM labels", "labels.item_id IN", "labels.person_id IS NOT NULL")


def by_rater(item: int, rater: str) -> Judgement:
    """A label made elsewhere on one of the items of `pairs`."""
    found = next(each for number, each in enumerate(pairs(item + 1)) if number == item)
    return Judgement(found.prompt, found.answers, (0, 1), rater=rater)


def counts(store: Store) -> list[tuple[int, int, int]]:
    """Of each item: labels and holders as they are counted, and the labels that count."""
    live = select(func.count()).where(label_table.c.item_id == items.c.id, label_table.c.live).scalar_subquery()
    with store.read() as connection:
        rows = connection.execute(select(items.c.done, items.c.held, live).order_by(items.c.id))
        return [(row[0], row[1], row[2]) for row in rows]


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


def test_who_comes_back_to_an_item_and_an_import_of_it_do_not_wait_in_a_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, (person,) = campaign(store, 1, overlap=3)
    now = utcnow()
    found = task(store, made.id, person, now=now)
    release(store, made.id, now=now + LATER)
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

    meanwhile(monkeypatch, assignment, "hold", import_begins)  # what comes back is locked before it
    back = assignment.next_task(store, made.id, person, now=now + LATER)
    thread.join()
    assert isinstance(told[0], importing.Imported), told
    assert isinstance(back, assignment.Task)
    assert back.id == found.id
    with store.read() as connection:
        row = connection.execute(select(items.c.done, items.c.held)).one()
    assert tuple(row) == (1, 1)


def test_two_who_end_locks_do_not_wait_in_a_ring(store: Store) -> None:
    """Each ends the lock on an item that the other is about to be given."""
    made, (first, second, third, fourth) = campaign(store, 2, people=4, training=2, lock_minutes=60)
    campaigns.add_items(store, made.id, known(2, "training"))
    start = utcnow()
    held = task(store, made.id, first, now=start)  # until 60 minutes later
    for person in (second, third):
        found = task(store, made.id, person, now=start)
        assert found.item == held.item
        save(store, found.id, person, Answered((0, 1)), now=start)
    task(store, made.id, second, now=start + timedelta(minutes=30))  # the other item, until 90 minutes later
    begun: list[Started] = []

    def another() -> None:
        now = start + timedelta(minutes=95)
        begun.append(Started(lambda: assignment.next_task(store, made.id, fourth, now=now)))
        begun[0].is_over(0.5)

    at_statement(store, "UPDATE items SET held=(items.held + ", act=another)  # after locks were ended
    given = assignment.next_task(store, made.id, third, now=start + timedelta(minutes=65))
    assert isinstance(given, assignment.Task), given
    other = begun[0].result()
    assert isinstance(other, assignment.Task), other
    training = store.ask(select(items.c.id).where(items.c.phase == "training"))
    assert {given.item, other.item} == {number for (number,) in training}


def test_who_joins_in_the_middle_of_an_import_of_their_labels_does_not_wait_in_a_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_AT_ONCE", 1)
    made, _ = campaign(store, 1, people=0, overlap=5)
    person = add_person(store, "p0").id

    def take_part() -> Any:
        join(store, made.id, person)
        found = assignment.next_task(store, made.id, person)
        return save(store, found.id, person, Answered((1, 0))) if isinstance(found, assignment.Task) else found

    begun: list[Started] = []
    at_statement(store, *ITEMS_LOCKED, act=lambda: begun.append(Started(take_part)))
    done = importing.import_judgements(store, made.id, [by_rater(0, "one"), by_rater(0, "p0")])
    assert done.labels == 2
    assert not isinstance(begun[0].result(), BaseException), begun[0].result()
    assert counts(store) == [(2, 0, 2)]


def test_an_adjudicator_who_decides_anew_and_is_erased_does_not_wait_in_a_ring(store: Store) -> None:
    campaign(store, 1)
    judge = add_person(store, "judge", role="adjudicator").id
    item = store.ask(select(items.c.id))[0][0]
    labels.adjudicate(store, item, judge, Answered((0, 1)))
    begun: list[Started] = []

    def erased() -> None:
        begun.append(Started(lambda: personal_data.erase(store, judge)))
        wait_till_blocked(store)

    at_statement(store, "INSERT INTO labels", act=erased)
    labels.adjudicate(store, item, judge, Answered((1, 0)))
    assert begun[0].result() is None
    assert [name for (name,) in store.ask(select(people.c.name).where(people.c.id == judge))] == [f"erased-{judge}"]


@pytest.mark.parametrize(
    ("second", "expected"), [("somebody else", (3, 0, 3)), ("p0", (2, 0, 2))], ids=["others' labels", "their own label"]
)
def test_a_save_and_an_import_of_its_item_do_not_wait_in_a_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch, second: str, expected: tuple[int, int, int]
) -> None:
    """Where the item is given to somebody while the import, which has it in two of its parts, is under way."""
    monkeypatch.setattr(importing, "_AT_ONCE", 1)
    made, (person,) = campaign(store, 1, overlap=5)
    begun: list[Started] = []

    def give() -> None:
        begun.append(Started(lambda: assignment.next_task(store, made.id, person)))
        begun[0].is_over(0.5)  # where the import has their place, it will be given when that is over

    def save_it() -> None:
        if begun[0].is_over(0):
            found = begun[0].result()
            begun.append(Started(lambda: save(store, found.id, person, Answered((1, 0)))))
            wait_till_blocked(store)

    at_statement(store, *ITEMS_LOCKED, act=give)
    at_statement(store, *ITEMS_HELD, act=save_it)
    done = importing.import_judgements(store, made.id, [by_rater(0, "one"), by_rater(0, second)])
    assert done.labels == 2
    ends = [each.result() for each in begun]
    assert not [each for each in ends if isinstance(each, BaseException)], ends
    assert counts(store) == [expected]


def test_locks_that_ran_out_and_an_import_of_their_items_do_not_wait_in_a_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was given while the import was under way, the others, on an item that it comes to later, before."""
    monkeypatch.setattr(importing, "_AT_ONCE", 1)
    made, (one, other) = campaign(store, 2, people=2, overlap=5)
    now = utcnow()
    late, theirs = task(store, made.id, one, now=now), task(store, made.id, other, now=now)
    assert late.item == theirs.item
    order = [1, 0] if "question 0" in str(late.prompt) else [0, 1]  # the item that both have comes last
    begun: list[Started] = []

    def give() -> None:
        assert task(store, made.id, other, besides=theirs.id, now=now).item != late.item

    def let_go() -> None:
        begun.append(Started(lambda: release(store, made.id, now=now + LATER)))
        begun[0].is_over(0.3)  # or waits for the import

    at_statement(store, *ITEMS_LOCKED, act=give)
    at_statement(store, *ITEMS_HELD, act=let_go)
    done = importing.import_judgements(store, made.id, [by_rater(number, "elsewhere") for number in order])
    assert done.labels == 2
    first = begun[0].result()
    assert isinstance(first, int), first
    assert first + release(store, made.id, now=now + LATER) == 3
    assert counts(store) == [(1, 0, 1), (1, 0, 1)]


def test_two_imports_of_the_same_items_do_not_wait_in_a_ring(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_AT_ONCE", 1)
    made, _ = campaign(store, 2, overlap=5)
    begun: list[Started] = []

    def the_other() -> None:
        judged = [by_rater(1, "two"), by_rater(0, "two"), by_rater(0, "new")]
        begun.append(Started(lambda: importing.import_judgements(store, made.id, judged)))
        wait_till_blocked(store)

    at_statement(store, *ITEMS_HELD, act=the_other)
    done = importing.import_judgements(store, made.id, [by_rater(0, "one"), by_rater(1, "one"), by_rater(1, "new")])
    other = begun[0].result()
    assert isinstance(other, importing.Imported), other
    assert (done.labels, other.labels, done.people + other.people) == (3, 3, 3)
    assert counts(store) == [(3, 0, 3), (3, 0, 3)]


def test_rules_that_two_change_at_once_are_both_changed(store: Store) -> None:
    made, _ = campaign(store, 1)
    begun: list[Started] = []

    def the_other() -> None:
        begun.append(Started(lambda: campaigns.change(store, made.id, {"budget": 80})))
        begun[0].is_over(0.3)  # or waits

    at_statement(store, "UPDATE campaigns", act=the_other)
    campaigns.change(store, made.id, {"pay_per_hour": 20})
    begun[0].result()
    now = campaigns.get(store, made.id).settings
    assert (now.pay_per_hour, now.budget) == (20, 80)


def test_who_is_erased_while_they_save_does_not_wait_in_a_ring(store: Store) -> None:
    made, (person,) = campaign(store, 1)
    found = task(store, made.id, person)
    begun: list[Started] = []

    def erase_them() -> None:
        begun.append(Started(lambda: personal_data.erase(store, person)))
        wait_till_blocked(store)

    at_statement(store, "INSERT INTO labels", act=erase_them)
    save(store, found.id, person, Answered((1, 0), comment="it helps"))
    assert begun[0].result() is None
    with store.read() as connection:
        assert connection.execute(select(label_table.c.comment)).scalars().all() == [None]
