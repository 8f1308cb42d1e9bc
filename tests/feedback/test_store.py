"""The database itself: migrations, durability settings, errors, moving house."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError

from bench.private_postgres import Server
from goodheart.data.records import Judgement
from goodheart.errors import FeedbackError
from goodheart.feedback import store as store_module
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import Idle, next_task
from goodheart.feedback.bulk import copy, insert_rows
from goodheart.feedback.campaigns import add_items
from goodheart.feedback.importing import import_judgements
from goodheart.feedback.label_rows import history
from goodheart.feedback.labels import save
from goodheart.feedback.people import add_person, listing
from goodheart.feedback.store import Store, open_store, storable, utcnow
from goodheart.feedback.tables import attempts, audit, items, labels, members, metadata, people
from tests.feedback.conftest import NewPlace
from tests.feedback.making import campaign, pairs, task


def test_migrations_make_the_tables_of_the_metadata(store: Store) -> None:
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == store_module.HEAD


def test_head_is_the_newest_migration() -> None:
    names = sorted(p.name for p in (Path(store_module.__file__).parent / "migrations" / "versions").glob("0*.py"))
    assert names[-1].startswith(f"{store_module.HEAD}_")


def test_a_kept_store_is_opened_again(new_place: NewPlace) -> None:
    place = new_place()
    first = open_store(place)
    add_person(first, "Ann")
    first.close()
    again = open_store(place)
    assert [person.name for person in listing(again)] == ["Ann"]
    again.close()


def test_what_is_in_an_older_store_does_not_come_again(new_place: NewPlace) -> None:
    """Before 0002 keys of items were made otherwise, and labels without a rater had no name."""
    place = new_place()
    store = open_store(place)
    made, _ = campaign(store, 600)  # more than are brought up to date at a time
    when = "2026-11-01T10:00:00+02:00"
    item = next(pairs(1))
    one = Judgement(item.prompt, item.answers, (0, 1), comment="a \ud800", seconds=2.5)
    told = [
        one,
        one,
        replace(one, created_at=when, strength=2, batch="b"),
        replace(one, ranks=(1, 0), flags={"x": [0]}),
    ]
    assert import_judgements(store, made.id, told).labels == 4
    with store.begin() as connection:
        keys = dict(connection.execute(select(items.c.id, items.c.key)).all())
        requests = connection.execute(select(labels.c.request).order_by(labels.c.id)).scalars().all()
        connection.execute(text("UPDATE items SET key = 'made otherwise ' || id"))
        connection.execute(text("UPDATE labels SET request = NULL"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert add_items(store, made.id, pairs(3)).items == 3  # by the code of now, before the store was brought up to date
    store.close()

    store = open_store(place)
    with store.read() as connection:
        rows = connection.execute(select(items.c.id, items.c.key).order_by(items.c.id)).all()
        assert connection.execute(select(labels.c.request).order_by(labels.c.id)).scalars().all() == requests
    # The first three are there twice: the older of the two has the key, and nothing is lost.
    assert {row.id: row.key for row in rows[:600]} == keys
    assert len({row.key for row in rows}) == len(rows) == 603
    assert add_items(store, made.id, pairs(600)).items == 0
    again = import_judgements(store, made.id, told)
    assert (again.items, again.labels, again.again) == (0, 0, 4)
    store.close()


def test_opened_at_once_by_many_it_is_made_once(new_place: NewPlace) -> None:
    place = new_place()
    errors: list[BaseException] = []

    def opening() -> None:
        try:
            open_store(place).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=opening) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_newer_store_is_refused(new_place: NewPlace) -> None:
    place = new_place()
    first = open_store(place)
    with first.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    first.close()
    with pytest.raises(FeedbackError, match="made by a newer goodheart"):
        open_store(place)


def test_sqlite_writes_through_to_the_disk(tmp_path: Path) -> None:
    store = open_store(tmp_path / "g.db")
    with store.begin() as connection:
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                 ("journal_mode", "synchronous", "foreign_keys")}  # fmt: skip
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2: FULL
    store.close()


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("mysql://here/there", "SQLite .* or PostgreSQL"),
        ("sqlite://", "in a file, not in memory"),
        ("nowhere://", "neither a file nor an address|SQLite"),
        ("/no/such/folder/g.db", "there is no folder"),
        ("postgresql://nobody:secret@127.0.0.1:1/none", "cannot be opened"),
    ],
)
def test_what_is_no_store_is_refused(place: str, says: str) -> None:
    with pytest.raises(FeedbackError, match=says) as raised:
        open_store(place)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.db").write_text("no database at all " * 100)
    with pytest.raises(FeedbackError, match="store of labels"):
        open_store(tmp_path / "g.db")


def test_what_raises_is_undone(store: Store) -> None:
    def fail() -> None:
        with store.begin() as connection:
            connection.execute(insert(people).values(name="x", role="labeller", attributes={}, created_at=utcnow()))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert listing(store) == []


def test_a_reader_sees_one_state(store: Store) -> None:
    add_person(store, "before")
    with store.read() as connection:
        assert len(connection.execute(select(people)).all()) == 1
        add_person(store, "meanwhile")
        assert len(connection.execute(select(people)).all()) == 1


def test_times_need_a_zone(store: Store) -> None:
    with pytest.raises(Exception, match="without a zone"), store.begin() as connection:
        connection.execute(insert(attempts).values(key="k", at=utcnow().replace(tzinfo=None)))


HOSTILE = ["\0", "\ud800", "a\udfffb", "𝄞 𠮷", "\u202e", "<script>", "'; DROP TABLE labels; --", "\x1b[31m", "\\u0000"]


def test_every_text_comes_back_as_it_was(store: Store) -> None:
    made, (person,) = campaign(store, 1)
    found = task(store, made.id, person)
    for i, words in enumerate(HOSTILE):
        save(store, found.id, person, Answered([0, 1], comment=words, request=f"r{i}"))
    assert [row.comment for row in history(store, found.item)] == HOSTILE


def test_short_json_is_read_like_long_json() -> None:
    texts = ("[0, 1]", "[]", "{}", "null", "1", '"x"', "[0.5, 1]", "[true]", '{"a": [1]}', "[[0], 1]", f"{[1] * 9}")
    for given in texts:
        for raw in (given, given.encode()):
            assert repr(store_module._from_json(raw)) == repr(json.loads(given))
    first = store_module._from_json("[0, 1]")
    first.append(2)
    assert store_module._from_json("[0, 1]") == [0, 1]
    store_module._from_json("{}")["a"] = 1
    assert store_module._from_json("{}") == {}


def test_plain_columns_get_what_they_can_hold() -> None:
    assert storable("a\0b") == "a\ufffdb"
    assert storable("a\ud800b").startswith("a\ufffd")
    assert storable("𝄞 ok") == "𝄞 ok"


def test_copy_moves_everything_and_work_goes_on(new_place: NewPlace, tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "source.db"), open_store(new_place())
    made, (one, two) = campaign(source, 3, people=2, overlap=2)
    first = task(source, made.id, one)
    save(source, first.id, one, Answered([1, 0], comment="\0"))
    held = task(source, made.id, two)
    counts = copy(source, target, rows=2)
    assert counts["items"] == 3
    assert counts["labels"] == 1
    assert history(target, first.item) == history(source, first.item)
    assert task(target, made.id, two).id == held.id
    save(target, held.id, two, Answered([0, 1]))  # new ids do not meet the old ones
    assert add_person(target, "new").id not in (one, two)
    with pytest.raises(FeedbackError, match="is not empty"):
        copy(source, target)
    source.close()
    target.close()


def test_a_campaign_runs_to_its_end(store: Store) -> None:
    made, (person,) = campaign(store, 3)
    for _ in range(3):
        save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    assert next_task(store, made.id, person) == Idle("finished")


def test_starts_without_torch() -> None:
    folder = Path(store_module.__file__).parent
    names = [f"goodheart.feedback.{p.stem}" for p in folder.glob("*.py") if p.stem != "__init__"]
    code = f"import sys, {', '.join(names)}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_connection_that_died_while_it_lay_idle_is_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.is_sqlite:
        pytest.skip("a file has no connections that die")
    monkeypatch.setattr(store_module, "_IDLE_S", 0.0)
    pid = text("SELECT pg_backend_pid()")
    with store.engine.connect() as killer, store.engine.connect() as idle:
        dead = idle.execute(pid).scalar_one()
        idle.close()
        assert killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": dead}).scalar_one()
        time.sleep(0.2)
        for _ in range(3):
            assert store.ask(pid)[0][0] != dead


def test_many_rows_go_in_as_one_does(store: Store) -> None:
    """By COPY on PostgreSQL: signs that mean something there are text like any other."""
    made, (person,) = campaign(store, 0)
    said = [
        "plain", "tab\t, line\r\n, \\N and \\.", "nul \0, half \ud800, \U0001f600", '"quoted", \'so\'', "", None,
    ]  # fmt: skip
    rows = [
        {"at": utcnow() - timedelta(days=n), "person_id": person if n % 2 else None, "action": f"a{n}\t\\N",
         "what": {"said": each, "list": [1, 2.5, True, None]}} for n, each in enumerate(said)
    ]  # fmt: skip
    with store.begin() as connection:
        before = set(connection.execute(select(audit.c.id)).scalars())
        insert_rows(connection, audit, rows)
        insert_rows(connection, audit, [])
        found = connection.execute(select(audit).where(audit.c.id.not_in(before)).order_by(audit.c.id)).all()
    assert [row._asdict() | {"id": 0} for row in found] == [{"id": 0, **row} for row in rows]
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(members)).scalar_one() == 1
    counts = {"gold_seen": 0, "gold_right": 0, "turns": 0}
    again = {"campaign_id": made.id, "person_id": person, "state": "working", "since": utcnow(), **counts}
    with pytest.raises(IntegrityError), store.begin() as connection:
        insert_rows(connection, members, [again])


def test_a_table_that_is_being_filled_is_not_taken_for_empty(postgres: Server) -> None:
    """Or PostgreSQL goes through all items of a campaign to find which of the next thousand are there."""
    store = open_store(postgres.new_schema(f"filled{time.monotonic_ns()}"))
    campaign(store, 2500)
    with store.read() as connection:
        seen = text("SELECT reltuples FROM pg_class WHERE oid = to_regclass('items')")
        assert connection.execute(seen).scalar_one() == 2500  # -1: never looked over
    store.close()
