"""Tiny random models of transformers, one or more per family, saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 97  # prime: no accidental multiple of a block size
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_GEMMA = {"head_dim": 8, "num_hidden_layers": 4}

# name -> (model class, config class, settings)
NATIVE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama2": ("LlamaForCausalLM", "LlamaConfig", {}),
    "llama3": ("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "llama-yarn": ("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": YARN}),
    "llama-biases": ("LlamaForCausalLM", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("LlamaForCausalLM", "LlamaConfig", {"head_dim": 6}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 5}),
    "mistral-full": ("MistralForCausalLM", "MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 8, "attention_bias": True}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {"num_hidden_layers": 5, "pad_token_id": 0}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GEMMA),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 11}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_GEMMA, "num_hidden_layers": 7, "sliding_window": 5, "query_pre_attn_scalar": 8},
    ),
}
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {"hidden_dropout": 0.1, "num_key_value_heads": None}),
    "opt": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.1}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4, "router_jitter_noise": 0.3}),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 2.2, 2.4, 2.6],
            },
        },
    ),
}


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A transformers model with weights large enough that every term of the formula shows in the logits."""
    model_class, config_class, settings = {**NATIVE, **OTHERS}[name]
    config = getattr(transformers, config_class)(**{**SMALL, **settings, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def saved(name: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """`build`, written to `folder`. -> the transformers model"""
    model = build(name, seed, **changes)
    model.save_pretrained(folder)
    return model


def some_ids(batch: int = 3, length: int = 23, seed: int = 0) -> torch.Tensor:
    """Random token ids, special ones left out."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
