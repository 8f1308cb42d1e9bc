"""The files in which the answers of a campaign's models are kept from one start to the next.

One file for each way of being asked: model, address, settings, seed, and the weights of a model that is sampled here.
Weights take long to read. So a file also notes (rows {"stamp": ...}) how the folder of the model looked from outside
when its weights were read, and a folder that still looks so is not read again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goodheart.errors import ModelError
from goodheart.models.resolve import resolve
from goodheart.stages.kept import Kept
from goodheart.train.files import sha256_of_folder


def kept_of_server(folder: Path, what: Mapping[str, Any]) -> Kept:
    """What a server has answered; `what`: model, address, settings, seed."""
    return _open(folder, what["model"], json.dumps(what))


def kept_of_model(folder: Path, what: Mapping[str, Any], place: str, whole: Callable[[Sequence[Any]], bool]) -> Kept:
    """What a model that is sampled here has answered.

    Args:
        what: model, settings, seed.
        place: its folder, or a Hub id. Where the folder is gone, or it is a Hub id, the answers of last time count.
        whole: whether rows hold all that is asked for; then a Hub id is not looked up.

    Raises:
        ModelError: it cannot be read, and has answered nothing before.
    """
    earlier = _earlier(folder, what)
    last = Kept(*earlier[0]) if earlier else None
    there = Path(place).expanduser().exists()
    if last is not None and not there and whole(last.rows):
        return last
    try:
        source = resolve(place)
        note = {"stamp": _stamp(source)}  # before the weights are read: what changes meanwhile is read again
        for file, identity in earlier:
            if json.dumps(note) in file.read_text(encoding="utf-8").split("\n"):
                return Kept(file, identity)
        kept = _open(folder, what["model"], json.dumps({**what, "weights": sha256_of_folder(source)}))
    except ModelError:
        if last is None or not last.rows:
            raise
        return last
    kept.add(note)
    return kept


def _open(folder: Path, model: str, identity: str) -> Kept:
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return Kept(folder / f"{_name(model)}-{digest}.jsonl", identity)


def _name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", model).strip("-.")[:60]


def _earlier(folder: Path, what: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Files and identities of the same model and settings, of whatever weights; what was used last comes first."""
    begins = json.dumps(what)[:-1] + ', "weights": '
    found = []
    for file in sorted(folder.glob(f"{_name(what['model'])}-*.jsonl"), key=lambda file: -file.stat().st_mtime_ns):
        with file.open(encoding="utf-8") as lines:
            identity = lines.readline().removesuffix("\n")
        if identity.startswith(begins):
            found.append((file, identity))
    return found


def _stamp(folder: Path) -> str:
    """One text that changes whenever a file of the folder is written, renamed or replaced."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        about = path.stat()
        seen = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{seen}\n".encode())
    return digest.hexdigest()
