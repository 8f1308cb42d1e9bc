"""A run that dies in the middle of a step, for tests of what continues it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from goodheart.train.session import Session


@contextmanager
def pulled_plug(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """What runs inside must die of it: the step `at` (from 0) is computed, but neither logged nor saved."""
    log = Session.log

    def die(self: Session, step: int, *arguments: Any, **named: Any) -> None:
        if step == at:
            raise RuntimeError("pulled the plug")
        log(self, step, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "log", die)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            yield


def died_after(step: int, run: Path, copy: Path) -> Path:
    """A finished run as it would lie there had it died somewhere after the checkpoint of `step`, its logs included."""
    shutil.copytree(run, copy)
    for name in ("DONE", "results.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "model")
    kept = f"step-{step}"
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name != kept:
            shutil.rmtree(checkpoint)
    assert (copy / "checkpoints" / kept).is_dir()
    return copy
