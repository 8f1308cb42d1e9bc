"""Lines of finished work in a file, so that an interrupted job continues where it stood."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from goodheart.train.files import replace_text


class Kept:
    """Lines of finished work in a file, each written whole before the next is begun.

    rows: what an interrupted job of the same identity left; those of another job are removed.
    """

    def __init__(self, file: Path, identity: str) -> None:
        self.file = file
        first, *lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else [""]
        whole = lines[:-1] if first == identity else []  # what follows the last line end was torn by a kill
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, "".join(line + "\n" for line in (identity, *whole)))
        self.rows: list[Any] = [json.loads(line) for line in whole]

    def add(self, row: Any) -> None:
        try:
            line = json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a surrogate pair: only an escape can hold it
            line = json.dumps(row).encode()
        with self.file.open("ab") as file:
            file.write(line + b"\n")


def identity(*content: str) -> str:
    """Equal where the same work is done."""
    return hashlib.sha256("\n".join(content).encode("utf-8", "surrogatepass")).hexdigest()
