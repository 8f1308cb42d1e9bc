"""Whether what a setting names is there, before hours are spent on what comes first."""

from __future__ import annotations

import re
from pathlib import Path

from goodheart.data.sources import find
from goodheart.errors import DataError
from goodheart.loop.code import exists
from goodheart.train.config import nearest
from goodheart.train.lineage import is_function

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def missing(text: str, *, is_data: bool) -> str:
    """What is wrong with an input, in words; empty where nothing is. What may be on the Hub is not looked up.

    Args:
        text: a file, folder, pattern, Hub id or `package.module:function`.
        is_data: whether data are wanted; else a model, a judge or a function.
    """
    if is_data:
        try:
            find(text)
        except DataError as error:
            return f"no stage above makes this, and {error}"
        return ""
    path = Path(text).expanduser()
    if path.exists():
        return ""
    if is_function(text):
        module = text.partition(":")[0]
        return "" if exists(module) else f"{text}: cannot import module `{module}`: there is none in the current folder"
    # Where the folder is here a mistyped name is likelier than a model on the Hub of that name.
    if _HUB_ID.fullmatch(text) and not ("/" in text and path.parent.is_dir()):
        return ""
    names = [str(path.parent / entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(text, names) if nearest(text, names).startswith("; did") else ""
    return f"no stage above makes this, and {text}: no such folder{near}"
