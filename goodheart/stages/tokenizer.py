"""Train a byte-level BPE tokenizer from text, for models from scratch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from goodheart.data.formats import iter_records, texts_of
from goodheart.data.template import PLAIN_TEMPLATE
from goodheart.data.tokenizer import train_bpe
from goodheart.train.config import Settings


class TokenizerConfig(Settings):
    """Settings of tokenizer training."""

    data: str | list[str]  # text, or anything with text in it
    out: Path  # Hugging Face tokenizer folder
    vocab_size: int = Field(4096, ge=260)


def train(config: TokenizerConfig) -> Path:
    """Writes the tokenizer folder and returns it."""
    sources = [config.data] if isinstance(config.data, str) else config.data
    texts = (text for record in iter_records(sources, "any") for text in texts_of(record))
    train_bpe(texts, config.vocab_size, config.out, chat_template=PLAIN_TEMPLATE)
    return config.out
