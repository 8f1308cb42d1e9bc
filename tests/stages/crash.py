"""A run that dies in the middle of a step, for tests of what continues it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
