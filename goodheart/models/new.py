"""Models from scratch: a small description becomes a Hugging Face config and seeded weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from goodheart.errors import ModelError
from goodheart.models.architecture import FAMILIES, NotNative, TransformerConfig
from goodheart.models.transformer import RMSNorm, Transformer

_INIT_STD = 0.02  # GPT-2; every family here uses it for embeddings and projections


def new_model(
    spec: Mapping[str, Any],
    vocab_size: int,
    seed: int,
    *,
    token_ids: Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """A decoder with fresh weights.

    spec: settings as in config.json: hidden_size, num_hidden_layers, num_attention_heads are needed; "family" (default
        "llama") picks the architecture; num_key_value_heads (default: all heads), intermediate_size (default: 8/3 of
        hidden, to a multiple of 32), max_position_embeddings (default 2048), tie_word_embeddings (default true), and
        any other setting that the family has.
    vocab_size: rows of the embedding. seed: of the weights. token_ids: bos_token_id, eos_token_id, pad_token_id.
    Raises ModelError for an unknown family or setting.
    """
    spec = dict(spec)
    family = spec.pop("family", spec.pop("model_type", "llama"))
    if family not in FAMILIES:
        raise ModelError(f"model family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    needed = [k for k in ("hidden_size", "num_hidden_layers", "num_attention_heads") if k not in spec]
    if needed:
        raise ModelError(f"the model description lacks {', '.join(needed)}")
    width, heads = spec["hidden_size"], spec["num_attention_heads"]
    if "head_dim" not in spec and width % heads:
        raise ModelError(
            f"hidden_size {width} is not a multiple of num_attention_heads {heads}; set head_dim or change one"
        )
    config = {
        "model_type": family,
        "vocab_size": vocab_size,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": -(-width * 8 // 3 // 32) * 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **spec,
        **(token_ids or {}),
    }
    try:
        with torch.device("meta"):
            model = Transformer(TransformerConfig.from_hf(config))
    except NotNative as reason:
        raise ModelError(f"the model description does not fit the {family} family: {reason}") from reason
    model.allocate_(torch.float32, "cpu")
    init_weights(model, seed)
    return model.to(dtype)


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> None:
    """All initialisation: N(0, 0.02) for embeddings and projections; the two projections that write into the residual
    stream of each layer divided by sqrt(2 layers), so that its variance does not grow with depth (GPT-2); biases 0;
    norms 1.

    Same seed, same weights, on every machine: drawn on the CPU in float32, in the order of the parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = (2 * model.config.layers) ** -0.5
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(0.0 if module.offset else 1.0)
        elif isinstance(module, nn.Linear | nn.Embedding):
            if name == "lm_head" and model.config.tie:
                continue
            std = _INIT_STD * (residual if name.endswith(("o_proj", "down_proj")) else 1.0)
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0.0, std, generator=generator))
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
