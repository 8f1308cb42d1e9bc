"""Rows out of files: JSONL, JSON, CSV, TSV, Parquet and plain text, packed or not, folders of them, and the Hub.

Line formats (JSONL, CSV, TSV, text) and Parquet are read in constant memory. A row that cannot be read is a `Row`
with `error` set and never an exception; a file that cannot be read is a DataError.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodheart.data.sources import Found, file_kind, find
from goodheart.data.streams import contains, decode, lines, mended, open_bytes, visible, without_mark
from goodheart.errors import DataError

DOCUMENT_END = "<|endoftext|>"
_WRAPPERS = ("data", "rows", "examples", "records")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it lies in a source."""

    number: int  # line in JSONL, CSV, TSV and text (where the row starts), else row; from 1
    source: str
    data: dict[str, Any]
    error: str | None = None  # why the row cannot be read; `data` is then empty
    damaged: bool = False  # invalid UTF-8 or half a surrogate pair became U+FFFD
    raw: str = ""  # what stood there, where the row could not be read


def read_rows(
    source: str | Path,
    *,
    split: str | None = None,
    streaming: bool = False,
    subset: str | None = None,
    text_lines: bool = False,
) -> Iterator[Row]:
    """Rows of one source, in order.

    Args:
        source: file, folder, glob pattern or Hub id (`owner/name` or `owner/name:split`).
        split: which split of a folder, a Hub data set or a JSON file of splits; None takes "train" of several.
        streaming: read a Hub data set over the network row by row instead of fetching it first.
        subset: configuration of a Hub data set.
        text_lines: a .txt file has one row per line, not one per document.

    Raises:
        DataError: missing source, unknown kind of file, damaged compression, unreachable Hub.
    """
    found = find(source, split)
    if found.files:
        for path in found.files:
            yield from _read_file(path, split, text_lines)
    else:
        yield from _read_data_set(found, subset, streaming)


def _read_file(path: Path, split: str | None, text_lines: bool) -> Iterator[Row]:
    kind = file_kind(path)
    if kind in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path, split)
    elif kind == ".json":
        yield from _read_json(path, split)
    elif kind in (".csv", ".tsv"):
        yield from _read_csv(path, "\t" if kind == ".tsv" else ",")
    elif kind == ".parquet":
        yield from _read_parquet(path)
    elif text_lines:
        yield from _read_text_lines(path)
    else:
        yield from _read_documents(path)


def _read_jsonl(path: Path, split: str | None) -> Iterator[Row]:
    first = next((text.lstrip() for _, text, _ in lines(path) if text.strip()), "")
    # an array under a .jsonl name
    yield from _read_json(path, split) if first.startswith("[") else _read_json_lines(path)


def _read_json_lines(path: Path) -> Iterator[Row]:
    source = str(path)
    for number, text, damaged in lines(path):
        if text.isspace():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            cut_off = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip())
            reason = "not valid JSON: the line ends in the middle" if cut_off else _why_not_json(error)
            yield Row(number, source, {}, reason, damaged, visible(text.strip()))
            continue
        if "\\ud" in text or "\\uD" in text:
            value, lone = mended(value)
            damaged = damaged or lone
        yield _boxed(number, source, value, damaged)


def _why_not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at column {error.colno}"
    return f"not valid JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


def _boxed(number: int, source: str, value: Any, damaged: bool) -> Row:
    """A JSON value as a row: objects as they are, strings as {"text": ...}; anything else is an unreadable row."""
    if isinstance(value, dict):
        return Row(number, source, value, None, damaged)
    if isinstance(value, str):
        return Row(number, source, {"text": value}, None, damaged)
    kind = {list: "a list", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
    return Row(number, source, {}, f"the row is {kind}, not an object", damaged, visible(json.dumps(value)[:400]))


def _read_json(path: Path, split: str | None) -> Iterator[Row]:
    with open_bytes(path) as file:
        text, damaged = decode(without_mark(file.read(), path))
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _read_json_lines(path)  # one object a line under a .json name
            return
        where = f"{error.lineno}" if isinstance(error, json.JSONDecodeError) else "1"
        raise DataError(f"{path}:{where}: {_why_not_json(error)}") from error
    if "\\ud" in text or "\\uD" in text:
        value, lone = mended(value)
        damaged = damaged or lone
    for number, item in enumerate(_items(value, split), 1):
        yield _boxed(number, str(path), item, damaged and "\ufffd" in json.dumps(item, ensure_ascii=False))


def _items(value: Any, split: str | None) -> Iterable[Any]:
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    for name in (split or "train", *_WRAPPERS):
        if isinstance(value.get(name), list):
            return list(value[name])
    if value and all(isinstance(item, dict) for item in value.values()):
        return [{"id": key, **item} for key, item in value.items()]
    return [value]


def _read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    source = str(path)
    hurt: set[int] = set()

    def texts() -> Iterator[str]:
        for number, text, damaged in lines(path):
            if damaged:
                hurt.add(number)
            yield text

    csv.field_size_limit(2**31 - 1)
    # strict: a stray quote is then a bad row with its line, and not a silent merge of all lines up to the next quote
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header = _header(reader, path)
    while header:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(start, source, {}, f"not valid CSV: {error}")
            continue
        if not any(cells):
            continue
        damaged = bool(hurt) and any(number in hurt for number in range(start, reader.line_num + 1))
        if len(cells) == len(header):
            yield Row(start, source, dict(zip(header, cells, strict=True)), None, damaged)
        else:
            error_text = f"{len(cells)} cells where the header names {len(header)} columns"
            yield Row(start, source, {}, error_text, damaged, visible(delimiter.join(cells)))


def _header(reader: Any, path: Path) -> list[str]:
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}:1: the header line is not valid CSV: {error}") from error
    if names and not names[0]:
        names[0] = "index"  # what pandas writes for an unnamed index
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}:1: column names appear twice: {visible(', '.join(map(repr, repeated)))}")
    return names


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    with open_bytes(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
            for batch in table.iter_batches(batch_size=1024):
                for data in batch.to_pylist():
                    number += 1
                    yield Row(number, str(path), data)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            reason = visible(str(error))
            raise DataError(f"{path}: not a readable Parquet file (after row {number}): {reason}") from error


def _read_text_lines(path: Path) -> Iterator[Row]:
    for number, text, damaged in lines(path):
        if text.strip():
            yield Row(number, str(path), {"text": text.rstrip("\r\n")}, None, damaged)


def _read_documents(path: Path) -> Iterator[Row]:
    """Documents of a text file: what lies between <|endoftext|> marks where there are any, else between blank lines."""
    marked = contains(path, DOCUMENT_END.encode())
    parts: list[str] = []
    start, hurt = 0, False
    for number, text, damaged in itertools.chain(lines(path), [(0, DOCUMENT_END if marked else "\n", False)]):
        text = text.replace("\r\n", "\n")
        pieces = text.split(DOCUMENT_END) if marked else ([""] * 2 if not text.strip() else [text])
        for index, piece in enumerate(pieces):
            if index:
                document = "".join(parts).strip("\n")
                if document.strip():
                    yield Row(start, str(path), {"text": document}, None, hurt)
                parts, hurt = [], False
            if piece.strip() or parts:
                start = start if parts else number
                parts.append(piece)
                hurt = hurt or damaged


def _read_data_set(found: Found, subset: str | None, streaming: bool) -> Iterator[Row]:
    import datasets

    source = found.hub or str(found.disk)
    try:
        if found.disk is not None:
            loaded = datasets.load_from_disk(str(found.disk))
        else:
            loaded = datasets.load_dataset(found.hub, subset, split=found.split, streaming=streaming)
    except Exception as error:  # the package raises dozens of types for "not there", "not reachable" and "not readable"
        reason = visible(f"{type(error).__name__}: {error}", 300)
        raise DataError(f"{source}: no file here, and no data set to be had from the Hub ({reason})") from error
    if isinstance(loaded, dict):
        loaded = _pick_split(loaded, source, found.split)
    for number, data in enumerate(loaded, 1):
        yield Row(number, source, dict(data))


def _pick_split(splits: dict[str, Any], source: str, split: str | None) -> Any:
    wanted = split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise DataError(f"{source}: no split {wanted!r}; it has {', '.join(splits)}")
    return splits[wanted]
