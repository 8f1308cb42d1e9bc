"""What several tests of stages start from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from goodheart.models.cache import cache_folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few raw prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["The cat", "The dog likes", "Who", "Sun and milk", "Bones", "The sun likes the dog"]
    path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_known_references() -> None:
    """The log-probabilities of references that an earlier test has left in the cache are gone."""
    shutil.rmtree(cache_folder() / "references", ignore_errors=True)
