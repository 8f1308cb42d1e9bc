"""Train a byte-level BPE tokenizer from text, for models from scratch."""

from __future__ import annotations

import sys
from pathlib import Path

from goodheart.data.examples import Skipped
from goodheart.data.formats import Loaded, iter_records, texts_of
from goodheart.data.template import PLAIN_TEMPLATE
from goodheart.data.tokenizer import train_bpe
from goodheart.stages.settings.tokenizer import TokenizerConfig
from goodheart.train.config import listed

__all__ = ["TokenizerConfig", "train"]


def train(config: TokenizerConfig) -> Path:
    """Writes the tokenizer folder and returns it."""
    sources = listed(config.data)
    loaded = Loaded()
    texts = (text for record in iter_records(sources, "any", loaded=loaded) for text in texts_of(record))
    made = train_bpe(texts, config.vocab_size, config.out, chat_template=PLAIN_TEMPLATE)
    skipped = Skipped.of(loaded)
    note = f"{made.vocab_size} tokens from {made.texts:,} texts with {made.characters:,} characters"
    print(note + f"; set aside {skipped.total} rows: {skipped.summary()}" * bool(skipped.total), file=sys.stderr)
    return made.folder
