"""Training a small byte-level BPE tokenizer, for models from scratch.

    train_bpe(texts, 4096, "tok", chat_template=PLAIN_TEMPLATE)
    AutoTokenizer.from_pretrained("tok")

All 256 bytes are in the alphabet and nothing is normalised, so any text comes back exactly as it went in. Digits stand
alone (numbers of any length are spelled alike); words keep the space before them, as in GPT-2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodheart.data.streams import mended
from goodheart.data.writing import whole
from goodheart.errors import ConfigError, DataError

# Padding, begin and end of text, in this order; further ones (roles, say) may follow.
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>")
BYTES = 256
_PIECE = 1 << 16  # characters handed over at once: one giant document does not have to be copied whole


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """Where a tokenizer was saved, and what it was trained on."""

    folder: Path
    vocab_size: int
    texts: int
    characters: int


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    out: str | Path,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    chat_template: str | None = None,
    min_frequency: int = 2,
) -> TrainedTokenizer:
    """Train byte-pair encoding on bytes (arXiv:1508.07909, on bytes as in GPT-2) and save a Hugging Face folder.

    The same texts give the same files, byte for byte.

    Args:
        texts: what to learn from, read once.
        vocab_size: number of tokens, special ones included: at least 256 more than there are special tokens.
        out: folder for tokenizer.json and tokenizer_config.json.
        special_tokens: padding, begin and end, then any others. They get the first ids. Begin is put before every
            text that is encoded with special tokens; end is not.
        chat_template: Jinja text for tokenizer_config.json.
        min_frequency: how often two tokens must meet to be joined.

    Returns:
        The folder and the counts.

    Raises:
        ConfigError: vocab_size too small, or special tokens missing or repeated.
        DataError: no text, or too little of it for so many tokens.
    """
    if len(special_tokens) < 3 or len(set(special_tokens)) < len(special_tokens) or not all(special_tokens):
        raise ConfigError(f"special_tokens must be padding, begin, end, others; all different; found {special_tokens}")
    least = BYTES + len(special_tokens)
    if vocab_size < least:
        raise ConfigError(f"vocab_size must be at least {least} ({BYTES} bytes, {len(special_tokens)} special tokens)")
    feed = _Feed(texts)
    tokenizer = _trained(feed, vocab_size, special_tokens, min_frequency)
    if not feed.characters:
        raise DataError("no text to train a tokenizer on")
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise DataError(
            f"{feed.characters:,} characters of text are too few for {vocab_size} tokens: only {reached} come of "
            f"pieces that occur {min_frequency} times; give more text or set vocab_size to {reached} or less"
        )
    folder = Path(out).expanduser()
    _save(folder, tokenizer.to_str(pretty=True), _config(special_tokens, chat_template))
    return TrainedTokenizer(folder, reached, feed.texts, feed.characters)


class _Feed:
    """Texts in pieces, counted on the way."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.texts += 1
            self.characters += len(text)
            clean, _ = mended(text)
            yield from _pieces(clean)


def _pieces(text: str) -> Iterator[str]:
    """Long texts cut at line ends, where no token would reach over."""
    while len(text) > _PIECE:
        cut = text.rfind("\n", 0, _PIECE)
        cut = cut if cut > 0 else _PIECE
        yield text[:cut]
        text = text[cut:]
    yield text


def _trained(feed: Iterable[str], vocab_size: int, special_tokens: Sequence[str], min_frequency: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(feed), trainer)
    begin = special_tokens[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def _config(special_tokens: Sequence[str], chat_template: str | None) -> str:
    pad, bos, eos, *others = special_tokens
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,  # it would eat spaces before punctuation
        "model_max_length": 10**30,
    }
    if others:
        config["additional_special_tokens"] = others
    if chat_template is not None:
        config["chat_template"] = chat_template
    return json.dumps(config, ensure_ascii=False, indent=2) + "\n"


def _save(folder: Path, tokenizer: str, config: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
            with whole(folder / name) as file:
                file.write(text.encode())
    except OSError as error:
        raise DataError(f"{folder}: the tokenizer cannot be written: {error.strerror or error}") from error
