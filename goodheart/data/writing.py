"""Rows to files: whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import glob
import gzip
import io
import itertools
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from goodheart.data.sources import file_kind
from goodheart.errors import DataError

Rows = Iterable[dict[str, Any]]
_BUFFER = 1 << 20  # bytes written at a time
WRITABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def unwritable(out: Path, sources: Iterable[str | Path]) -> str:
    """In words, why rows made from these sources must not go into this file; empty where they may.

    Asked before the work: rows that were set aside on the way are in the source alone.
    """
    kinds = [kind for kind in WRITABLE if kind != ".txt"]  # rows are more than a text
    if file_kind(out) not in kinds:
        return f"unknown kind of file for rows; use {', '.join(kinds)}, also with .gz or .zst"
    return f"{out} is what is read; choose another file" if is_read(out, sources) else ""


def is_read(path: Path, sources: Iterable[str | Path]) -> bool:
    """Whether a file is one of the sources, or found by a pattern among them."""
    place = path.expanduser().resolve()
    for source in sources:
        read = Path(source).expanduser()
        found = [read] if read.exists() else map(Path, glob.glob(str(read), recursive=True))
        if any(each.resolve() == place for each in found):
            return True
    return False


def write_rows(path: str | Path, rows: Rows, *, shared: Sequence[str] = ()) -> int:
    """Write rows to a file whose suffix names its format (.jsonl .json .csv .tsv .parquet .txt, also with .gz or .zst).

    A temporary file beside it is filled, synced and renamed, so that a reader never sees half a file and a failure
    leaves an older file as it was. JSONL and text are written in constant memory.

    Args:
        path: where to; missing folders are made.
        rows: one dict each; for .txt their "text".
        shared: the columns that every row begins with and may share with the row before, as the very same objects,
            which nobody changes meanwhile: JSONL says them again without making their text again.

    Returns:
        Number of rows written.

    Raises:
        DataError: unknown suffix, values the format cannot hold, disk full or not writable.
    """
    path = Path(path).expanduser()
    kind = file_kind(path)
    if kind not in _WRITERS:
        raise DataError(f"{path}: unknown kind of file to write; use {', '.join(WRITABLE)}, also with .gz or .zst")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file, _packed(file, path.suffix.lower()) as target:
            write = partial(_write_shared_jsonl, shared=shared) if shared and kind == ".jsonl" else _WRITERS[kind]
            return write(target, iter(rows))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, which takes its place when the block ends well. Raises OSError."""
    file = _held_beside(path)
    temporary = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        _sweep(path)
    finally:
        temporary.unlink(missing_ok=True)


def _held_beside(path: Path) -> BinaryIO:
    """A temporary file beside `path`, locked until it is closed, however this process ends."""
    while True:
        file = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp").open("xb", buffering=_BUFFER)
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if Path(file.name).exists():
            return file
        file.close()  # another writer swept it away before it was locked


def _sweep(path: Path) -> None:
    """Removes what writers of this file left behind when they were killed: temporaries that nobody holds."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextlib.contextmanager
def _packed(file: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".gz":
        # no name and no time inside: the same rows give the same bytes
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as target:
            yield target  # type: ignore[misc]
    elif suffix == ".zst":
        import zstandard

        with zstandard.ZstdCompressor(level=10).stream_writer(file, closefd=False) as target:
            yield target
    else:
        yield file


_as_json = json.JSONEncoder(ensure_ascii=False).encode


def _json(value: Any) -> bytes:
    try:
        return _as_json(value).encode()
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can hold it
        return json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"a row holds a value that JSON cannot: {error}") from error


def _write_jsonl(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        file.write(_json(row) + b"\n")
        count += 1
    return count


def _write_shared_jsonl(file: BinaryIO, rows: Iterator[dict[str, Any]], shared: Sequence[str]) -> int:
    count, before, begun = 0, [object()] * len(shared), b""
    for row in rows:
        same = [row[name] for name in shared]
        if not all(map(operator.is_, same, before)):
            before, begun = same, _json(dict(zip(shared, same, strict=True)))[:-1]
        rest = {name: value for name, value in row.items() if name not in shared}
        file.write(begun + (b", " + _json(rest)[1:] if rest else b"}") + b"\n")
        count += 1
    return count


def _write_json(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    file.write(b"[")
    for count, row in enumerate(rows, 1):
        file.write((b"\n" if count == 1 else b",\n") + _json(row))
    file.write(b"\n]\n")
    return count


def _write_text(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> int:
    """Documents with a line <|endoftext|> after each, the form in which text files are read."""
    count = 0
    for count, row in enumerate(rows, 1):
        if not isinstance(row.get("text"), str):
            raise DataError(f"row {count} has no text to put into a .txt file; write .jsonl instead")
        file.write(f"{row['text']}\n<|endoftext|>\n".encode("utf-8", "replace"))
    return count


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(rows)))


def _write_csv(file: BinaryIO, rows: Iterator[dict[str, Any]], delimiter: str = ",") -> int:
    """Lists and objects as JSON text in their cell; null as an empty cell."""
    held = list(rows)
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="", write_through=True)
    writer = csv.writer(text, delimiter=delimiter)
    columns = _columns(held)
    writer.writerow(columns)
    for row in held:
        writer.writerow([_cell(row.get(column)) for column in columns])
    text.detach()
    return len(held)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _json(value).decode() if isinstance(value, list | dict) else value


def _write_tsv(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> int:
    return _write_csv(file, rows, "\t")


def _write_parquet(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    held = list(rows)
    try:
        columns = {name: _parquet_column([row.get(name) for row in held]) for name in _columns(held)}
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    except (pyarrow.ArrowException, UnicodeEncodeError) as error:
        raise DataError(f"rows do not fit the columns of a Parquet file ({error}); write .jsonl instead") from error
    return len(held)


def _parquet_column(cells: list[Any]) -> Any:
    """A column of one type; lists and objects that are of several, or hold nothing, as JSON text, as in a CSV cell."""
    import pyarrow

    try:
        made = pyarrow.array(cells)
        if not _has_empty_object(made.type):
            return made
    except pyarrow.ArrowException:
        if not any(isinstance(cell, list | dict) for cell in cells):
            raise
    return pyarrow.array([_json(cell).decode() if isinstance(cell, list | dict) else cell for cell in cells])


def _has_empty_object(kind: Any) -> bool:
    """Whether somewhere in it is an object without keys, which a Parquet file cannot hold."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_object(kind.field(i).type) for i in range(kind.num_fields))
    return pyarrow.types.is_list(kind) and _has_empty_object(kind.value_type)


_WRITERS: dict[str | None, Callable[[BinaryIO, Iterator[dict[str, Any]]], int]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
    ".txt": _write_text,
}
