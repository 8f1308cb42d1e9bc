"""Settings of tokenizer training."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from goodheart.train.config import Settings


class TokenizerConfig(Settings):
    """Settings of tokenizer training."""

    data: str | list[str]  # documents, or rows of any kind: every turn and answer in them is read
    out: Path  # Hugging Face tokenizer folder
    vocab_size: int = Field(4096, ge=260)
