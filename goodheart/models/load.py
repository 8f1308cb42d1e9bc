"""The one door to model folders and adapters: what the rest of goodheart imports.

`decoders.py` holds language models, `reward.py` reward models, `lora.py` adapters, `new.py` models from scratch,
`resolve.py` the meaning of a path.
"""

from goodheart.models.decoders import dtype_name, load_causal, load_trunk, save_causal
from goodheart.models.heads import reward_from_causal
from goodheart.models.lora import (
    LoraSpec,
    adapters_off,
    add_lora,
    as_reference,
    has_adapter,
    merge,
    save_adapter,
    trainable,
)
from goodheart.models.new import new_model
from goodheart.models.resolve import resolve
from goodheart.models.reward import load_reward, new_reward, save_reward

__all__ = [
    "LoraSpec",
    "adapters_off",
    "add_lora",
    "as_reference",
    "dtype_name",
    "has_adapter",
    "load_causal",
    "load_reward",
    "load_trunk",
    "merge",
    "new_model",
    "new_reward",
    "resolve",
    "reward_from_causal",
    "save_adapter",
    "save_causal",
    "save_reward",
    "trainable",
]
