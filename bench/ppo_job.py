"""The job both contenders of the PPO benchmark get: one random model in three roles, a tokenizer, prompts, settings.

Every answer has the same length on both sides. Samplers of random weights would end or pad an answer by chance, so the
model is built to give its special tokens no probability: hidden dimension 0 is the same positive number in every
state, nothing writes to it, and the output rows of special tokens read nothing else, with a large negative weight.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

SPECIALS = ("<unk>", "<pad>", "<s>", "</s>")

# Hidden width, layers, heads, MLP width, vocabulary: 1.07, 5.34, 13.2 and 110 million parameters.
SIZES = {
    "1M": (128, 4, 4, 352, 1024),
    "5M": (256, 6, 8, 704, 1024),
    "15M": (384, 7, 6, 1024, 1024),
    "110M": (768, 12, 12, 2048, 16384),
}

_CONSTANT = 0.05  # hidden dimension 0, about as large as the others
_SHUT = -200.0  # output weight of special tokens on it: log-probability under -50


@dataclass(frozen=True)
class Settings:
    """One PPO job. Every number means the same to both contenders."""

    folder: str  # holds policy/ (also the reference), reward/ (also the start of the value model), prompts.jsonl
    size: str
    dtype: str
    threads: int
    steps: int
    batch_size: int = 32  # answers per PPO step, in one forward pass
    prompt_tokens: int = 32
    new_tokens: int = 64
    ppo_epochs: int = 4
    mini_batches: int = 1
    learning_rate: float = 1e-5
    kl_coef: float = 0.05
    temperature: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    seed: int = 1
    fixed_rows: list[list[int]] = field(default_factory=list)  # both contenders score these, to compare models

    def with_(self, **changes: Any) -> Settings:
        return replace(self, **changes)

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def build(folder: Path, size: str, *, batch_size: int, prompt_tokens: int, new_tokens: int, seed: int) -> list[Any]:
    """Writes policy, reward model and prompts into `folder`; returns the fixed rows.

    There are exactly `batch_size` prompts, so that every step of both contenders asks the same ones.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    width, layers, heads, mlp, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=mlp,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=SPECIALS.index("<pad>"),
        bos_token_id=SPECIALS.index("<s>"),
        eos_token_id=SPECIALS.index("</s>"),
    )
    torch.manual_seed(seed)
    policy = LlamaForCausalLM(config)
    config.num_labels = 1
    reward = LlamaForSequenceClassification(config)
    with torch.no_grad():
        policy.model.embed_tokens.weight[:, 0] = _CONSTANT
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        policy.lm_head.weight[: len(SPECIALS)] = 0
        policy.lm_head.weight[: len(SPECIALS), 0] = _SHUT
        reward.model.load_state_dict(policy.model.state_dict())
        reward.score.weight.normal_(0, width**-0.5)
    tokenizer = _tokenizer(vocabulary)
    for model, name in ((policy, "policy"), (reward, "reward")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    drawn = random.Random(seed)
    prompts = [
        " ".join(f"w{drawn.randrange(len(SPECIALS), vocabulary)}" for _ in range(prompt_tokens - 1))
        for _ in range(batch_size)
    ]
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    length = prompt_tokens + new_tokens
    return [[drawn.randrange(len(SPECIALS), vocabulary) for _ in range(length)] for _ in range(8)]


def _tokenizer(vocabulary: int) -> Any:
    """One word, one token: "w17" is token 17. A text starts with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {name: i for i, name in enumerate(SPECIALS)}
    words |= {f"w{i}": i for i in range(len(SPECIALS), vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
