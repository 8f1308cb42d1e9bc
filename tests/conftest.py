"""Fixtures every test may use."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from goodheart.models.cache import cache_folder

ROOT = Path(__file__).resolve().parents[1]
# Nothing is taken from the user's cache or put there; only what is compiled already is not compiled again.
CACHE = Path(tempfile.mkdtemp(prefix="goodheart-tests-"))
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
with contextlib.suppress(OSError):
    for compiled in cache_folder().glob("generate-*.so"):
        shutil.copy2(compiled, CACHE)
os.environ["GOODHEART_CACHE"] = str(CACHE)
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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and a byte-level tokenizer of its own, as a Hugging Face folder."""
    from goodheart.data.template import PLAIN_TEMPLATE, Template, load_tokenizer
    from goodheart.data.tokenizer import train_bpe
    from goodheart.models.load import new_model, save_causal

    folder = tmp_path_factory.mktemp("tiny")
    text = ["The cat likes milk. The dog likes bones. Who likes the sun?"] * 20
    train_bpe(text, 280, folder, chat_template=PLAIN_TEMPLATE)
    template = Template(load_tokenizer(folder))
    spec = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    save_causal(new_model(spec, vocab_size=template.vocab_size, seed=0), folder)
    template.save(folder)
    return folder
