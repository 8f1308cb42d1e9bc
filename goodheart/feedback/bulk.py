"""Many rows at a time: into a table, and all of a store into another database.

    copy(open_store("goodheart.db"), open_store("postgresql://user@host/labels"))

PostgreSQL takes rows by COPY, which costs it less than half of one INSERT each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from goodheart.errors import FeedbackError
from goodheart.feedback.store import Store, without_password
from goodheart.feedback.tables import metadata

_SMALL = 500  # rows that may well be gone through


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[Any, Any]]) -> None:
    """Adds rows that all have the columns of the first one.

    Raises:
        DBAPIError: what the database refuses, in the words of SQLAlchemy either way.
    """
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        _copy_in(connection, table, rows)
    else:
        connection.execute(insert(table), [dict(row) for row in rows])


def _copy_in(connection: Connection, table: Table, rows: Sequence[Mapping[Any, Any]]) -> None:
    columns = [table.c[name] for name in rows[0]]
    packs = [column.type.dialect_impl(connection.dialect).bind_processor(connection.dialect) for column in columns]
    pairs = [(column.name, pack or _as_it_is) for column, pack in zip(columns, packs, strict=True)]
    quote = connection.dialect.identifier_preparer.quote
    into = f"COPY {quote(table.name)} ({', '.join(quote(column.name) for column in columns)}) FROM STDIN"
    raw: Any = connection.connection.driver_connection
    driver = connection.dialect.loaded_dbapi
    try:
        with raw.cursor() as cursor, cursor.copy(into) as lines:
            for row in rows:
                lines.write_row([pack(row[name]) for name, pack in pairs])
    except driver.Error as error:
        raise DBAPIError.instance(into, None, error, driver.Error, dialect=connection.dialect) from error


def look_over(connection: Connection, table: Table) -> None:
    """Lets PostgreSQL look over a table that has grown fourfold since it last did.

    By itself it does so only a while after the transaction has ended. Until then it takes the table for empty, and goes
    through all of it for each question. Where another transaction is at it, it need not be done here too.
    """
    if connection.dialect.name != "postgresql":
        return
    seen = connection.execute(
        text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:name)"), {"name": table.name}
    )
    newest = connection.execute(select(func.max(table.c.id))).scalar() or 0
    if newest > 4 * max(seen.scalar_one(), _SMALL):
        connection.execute(text(f"ANALYZE (SKIP_LOCKED) {table.name}"))


def _as_it_is(value: Any) -> Any:
    return value


def copy(source: Store, target: Store, *, rows: int = 5000) -> dict[str, int]:
    """Copies everything into an empty store, such as from SQLite to PostgreSQL.

    Args:
        rows: how many are held in memory at a time.

    Returns:
        Number of rows of each table.

    Raises:
        FeedbackError: the target holds something already.
    """
    counts: dict[str, int] = {}
    with source.read() as reading, target.begin() as writing:
        for table in metadata.sorted_tables:
            if writing.execute(select(func.count()).select_from(table)).scalar_one():
                raise FeedbackError(
                    f"{without_password(str(target.engine.url))}: {table.name} is not empty; copy into a new one"
                )
        for table in metadata.sorted_tables:
            counts[table.name] = 0
            found = reading.execution_options(yield_per=rows).execute(select(table))
            for part in found.mappings().partitions(rows):
                insert_rows(writing, table, part)
                counts[table.name] += len(part)
            if not target.is_sqlite and "id" in table.c:
                _continue_ids(writing, table)
    return counts


def _continue_ids(connection: Connection, table: Table) -> None:
    """PostgreSQL counts ids by itself: go on after the highest that was copied."""
    highest = connection.execute(select(func.max(table.c.id))).scalar()
    if highest is not None:
        connection.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), highest)))
