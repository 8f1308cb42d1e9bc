"""The database of labels: SQLite in one file, or PostgreSQL by its address; made and kept up to date by migrations.

    store = open_store("goodheart.db")            # or "postgresql://user@host/labels"
    with store.begin() as connection: ...         # read and write: all of it or nothing
    with store.read() as connection: ...

What `begin` has committed when the block ends is on the disk: SQLite runs with write-ahead log and synchronous=FULL,
PostgreSQL with its own defaults. Writers of one SQLite file wait for each other in turn, in one process by a lock and
between processes by SQLite's own; readers never wait.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Row,
    Table,
    Update,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    InvalidatePoolError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from goodheart.errors import FeedbackError

HEAD = "0003"  # the newest of goodheart/feedback/migrations/versions
_BUSY_MS = 30_000  # how long one process waits for another that writes
_IDLE_S = 1.0  # a connection of PostgreSQL that was not used for so long is asked whether it is there
_MIGRATING = 0x676F6F64  # key of the PostgreSQL lock under which the tables are made
_TURNS = 0x676F6F65  # the first key of the locks of `take_turn`


@dataclass(frozen=True)
class Store:
    """An open database of labels. Threads may share it."""

    engine: Engine
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that may write; committed when the block ends, undone when it raises."""
        with self._writing if self.is_sqlite else contextlib.nullcontext(), self.engine.connect() as connection:
            connection.execution_options(goodheart_writes=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, and sees one state of the database throughout."""
        with self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    def ask(self, query: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows of one statement that reads: on PostgreSQL without the ways there and back of a transaction."""
        if self.is_sqlite:
            with self.read() as connection:
                return connection.execute(query, values).all()
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return connection.execute(query, values).all()

    def close(self) -> None:
        self.engine.dispose()


def utcnow() -> datetime:
    """The time now, with its zone."""
    return datetime.now(UTC)


def open_store(place: str | Path = "goodheart.db") -> Store:
    """Opens a store, making it or bringing it up to date first.

    Args:
        place: a file of SQLite, or an address: postgresql://user:password@host/database, sqlite:///file.

    Raises:
        FeedbackError: not reachable, no store of labels, or one made by a newer goodheart.
    """
    store = Store(_engine(str(place)))
    try:
        _migrate(store)
    except OperationalError as error:
        store.close()
        raise FeedbackError(
            f"{without_password(str(place))}: cannot be opened as a store of labels: {error.orig}"
        ) from error
    except SQLAlchemyError as error:
        store.close()
        raise FeedbackError(f"{without_password(str(place))}: is no store of labels: {error}") from error
    except BaseException:
        store.close()
        raise
    return store


def _engine(place: str) -> Engine:
    address = place if "://" in place else f"sqlite:///{Path(place).expanduser()}"
    if address.startswith(("postgresql://", "postgres://")):
        address = "postgresql+psycopg://" + address.partition("://")[2]
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise FeedbackError(f"{without_password(place)}: neither a file nor an address postgresql://...") from error
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    if url.get_backend_name() != "postgresql":
        raise FeedbackError(
            f"{without_password(place)}: labels are kept in SQLite (a file) or PostgreSQL (postgresql://...)"
        )
    return _postgres(url)


def _postgres(url: Any) -> Engine:
    try:
        engine = create_engine(url, json_deserializer=_from_json, pool_size=20, max_overflow=40)
    except (ImportError, NoSuchModuleError) as error:
        raise FeedbackError("PostgreSQL needs its driver: pip install 'goodheart[postgres]'") from error
    dialect, driver = engine.dialect, engine.dialect.loaded_dbapi

    @event.listens_for(engine, "checkin")
    def _used(_: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _is_there(connection: Any, record: Any, _: Any) -> None:
        """Asks one that lay idle whether it is dead. (`pool_pre_ping` asks at each use, a tenth of all the work.)"""
        if time.monotonic() - record.info.get("used", math.inf) < _IDLE_S:
            return
        try:
            dialect.do_ping(connection)
        except driver.Error as error:
            raise InvalidatePoolError from error

    return engine


def _sqlite(url: Any) -> Engine:
    if not url.database or url.database == ":memory:":
        raise FeedbackError("labels are kept in a file, not in memory; name one, such as goodheart.db")
    folder = Path(url.database).absolute().parent
    if not folder.is_dir():
        raise FeedbackError(f"{url.database}: there is no folder {folder}")
    waits = {"timeout": _BUSY_MS / 1000}
    engine = create_engine(url, json_deserializer=_from_json, connect_args=waits, pool_size=10, max_overflow=50)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that will write takes the lock at once: one that reads first and writes later can be refused.
        writes = connection.get_execution_options().get("goodheart_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _from_json(text: str | bytes) -> Any:
    """`json.loads`, quicker for what most labels hold: a few small numbers, or nothing."""
    if len(text) > 16:
        return json.loads(text)
    found = _short(text)
    return list(found) if isinstance(found, tuple) else {} if found == {} else json.loads(text)


@lru_cache(maxsize=10_000)
def _short(text: str | bytes) -> Any:
    """Numbers of a short list as a tuple, which nobody can change; what else it is."""
    found = json.loads(text)
    return tuple(found) if isinstance(found, list) and all(type(each) is int for each in found) else found


def without_password(place: str) -> str:
    """The address as people may read it."""
    if "://" not in place:
        return place
    try:
        url = make_url(place)
        told = {name: "hidden" for name in ("password", "sslpassword") if name in url.query}
        return url.update_query_dict(told).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return place.partition("://")[0] + "://..."


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _migrate(store: Store) -> None:
    with store.read() as connection:
        version = _version(connection)
    if version == HEAD:
        return
    with store.begin() as connection:
        if not store.is_sqlite:  # SQLite's writer is alone already
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
        version = _version(connection)
        if version is not None and version > HEAD:
            raise FeedbackError(
                f"{without_password(str(store.engine.url))}: made by a newer goodheart (tables {version}, "
                f"known here {HEAD}); use that version of goodheart"
            )
        if version is None and inspect(connection).has_table("labels"):
            raise FeedbackError(
                f"{without_password(str(store.engine.url))}: has other tables of the same names; use an empty one"
            )
        if version != HEAD:
            upgrade(connection)


def upgrade(connection: Connection, to: str = "head") -> None:
    """Brings the tables up to date, in the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def take_turn(connection: Connection, campaign: int = 0) -> None:
    """Waits for what changes many rows of a campaign, and lets no other begin until this transaction ends.

    Two that took the same rows in different orders would wait for each other. SQLite has one writer in any case.

    Args:
        campaign: its id; 0: imports and what else touches many labels, of all campaigns. Who takes both takes 0 first.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_TURNS, campaign)))


def insert_row(connection: Connection, table: Table, values: dict[str, Any]) -> int:
    """Adds one row; returns its id."""
    key = connection.execute(insert(table), values).inserted_primary_key
    assert key is not None
    return int(key[0])


def update_row(connection: Connection, table: Table, row: int, values: dict[str, Any]) -> None:
    """Changes columns of the row with that id."""
    connection.execute(_update(table), {"this_row": row, **values})


@lru_cache
def _update(table: Table) -> Update:
    return update(table).where(table.c.id == bindparam("this_row"))


def is_id(value: int) -> bool:
    """Whether a number can be the id of a row: asking a database for a greater one is an error, not an empty answer."""
    return 0 < value < 2**31


def storable(words: str) -> str:
    """Words for a column of plain text, which cannot hold NUL or half a surrogate pair: U+FFFD in their place."""
    return words.replace("\0", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")
