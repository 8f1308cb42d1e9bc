"""Random Llama models with a tokenizer of one word per token: what the contenders of every job get alike."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

SPECIALS = ("<unk>", "<pad>", "<s>", "</s>")

# Hidden width, layers, heads, MLP width, vocabulary: 1.07, 5.34, 13.2 and 110 million parameters, and for GPUs 751
# million in the shape of Qwen3-0.6B (without its norms of queries and keys, and with an output layer of its own).
SIZES = {
    "1M": (128, 4, 4, 352, 1024),
    "5M": (256, 6, 8, 704, 1024),
    "15M": (384, 7, 6, 1024, 1024),
    "110M": (768, 12, 12, 2048, 16384),
    "0.6B": (1024, 28, 16, 3072, 151_936),
}
_FURTHER = {"0.6B": {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096}}

_CONSTANT = 1.0  # hidden dimension 0: more than a few updates of any size of model can move it
_SHUT = -20.0  # output weight of special tokens on it: log-probability under -200


def llama(size: str, seed: int) -> Any:
    """A random causal model of transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, mlp, vocabulary = SIZES[size]
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": mlp,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "pad_token_id": SPECIALS.index("<pad>"),
        "bos_token_id": SPECIALS.index("<s>"),
        "eos_token_id": SPECIALS.index("</s>"),
    }
    return LlamaForCausalLM(LlamaConfig(**settings | _FURTHER.get(size, {})))


def shut_specials(model: Any) -> None:
    """Gives special tokens no probability, so that every sampled answer is as long as it may be.

    Hidden dimension 0 becomes the same positive number in every state, nothing writes to it, and the output rows of
    special tokens read nothing else, with a large negative weight.
    """
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = _CONSTANT
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[: len(SPECIALS)] = 0
        model.lm_head.weight[: len(SPECIALS), 0] = _SHUT


def words(drawn: random.Random, size: str, number: int) -> str:
    """So many ordinary words, each a token."""
    return " ".join(f"w{token}" for token in tokens(drawn, size, number))


def tokens(drawn: random.Random, size: str, number: int) -> list[int]:
    """So many ordinary tokens."""
    return [drawn.randrange(len(SPECIALS), SIZES[size][-1]) for _ in range(number)]


def save(model: Any, size: str, folder: Path) -> None:
    """Writes the model with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer(SIZES[size][-1]).save_pretrained(folder)


def tokenizer(vocabulary: int) -> Any:
    """One word, one token: "w17" is token 17. A text starts with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {name: i for i, name in enumerate(SPECIALS)}
    known |= {f"w{i}": i for i in range(len(SPECIALS), vocabulary)}
    backend = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", known["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
