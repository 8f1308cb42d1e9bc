"""Which folder a user means: a Hugging Face folder, a run folder, or a Hub id."""

from __future__ import annotations

import re
from pathlib import Path

from goodheart.errors import ModelError

# What a Hub download brings: configs, safetensors, tokenizer files; never pickles or code.
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def resolve(path: str | Path) -> Path:
    """The model folder that a user means.

    path: a Hugging Face folder, an adapter folder, a folder of ensemble members, a run folder (its `model/` is
        meant), or a Hub id (`org/name` or `org/name@revision`), which is downloaded or taken from the local cache.
    Raises ModelError when nothing is named, there is no such thing, or the run is not finished.
    """
    if not str(path).strip():
        raise ModelError("a model is named by nothing (an empty text); give a folder or a Hub id")
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "model").is_dir() and not (folder / "config.json").is_file():
            return folder / "model"
        if (folder / "lineage.json").is_file() and not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder}: an unfinished run, it has no model/ yet; finish it by starting the same command again"
            )
        return folder
    if folder.exists():
        raise ModelError(f"{folder}: a file, not a model folder; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(str(path)):
        raise ModelError(f"{folder}: no such folder")
    return _download(str(path))


def _download(hub_id: str) -> Path:
    """A Hub repository in the local cache. Raises ModelError when it does not exist or cannot be reached."""
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as error:  # network, permission and lookup errors of several libraries
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{hub_id}: no such folder here, and as a Hub id it cannot be fetched ({first_line}); "
            "check the path, or the id and the network"
        ) from error
