"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GOODHEART_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and the real tiny model beside the checkout; absent on a user's machine."""
    if not SHARED.is_dir():
        message = f"real test data not found: {SHARED} is absent (set GOODHEART_SHARED to its place)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def stories260k(shared: Path) -> Path:
    """A real pretrained 260k-parameter Llama in a Hugging Face folder."""
    return shared / "models" / "stories260k"


@pytest.fixture(autouse=True)
def _threads_and_seed() -> None:
    """Same thread count and seed for every test, so that a float comparison means the same everywhere."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
