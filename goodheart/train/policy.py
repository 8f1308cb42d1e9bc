"""The model a stage trains: loaded, adapted, placed."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

from goodheart.data.template import Template
from goodheart.errors import ConfigError
from goodheart.models.causal import CausalLM
from goodheart.models.load import load_causal, resolve, save_causal
from goodheart.models.lora import LoraSpec, add_lora, has_adapter, save_adapter
from goodheart.train.config import TrainingSettings
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.session import Session

M = TypeVar("M", bound=nn.Module)


def load_policy(config: TrainingSettings, session: Session) -> tuple[CausalLM, Template]:
    """The causal model named by `config.model` with its tokenizer's template, ready to train."""
    folder = resolve(config.model)
    dtype = resolve_dtype(config.dtype, session.device)
    model = load_causal(folder, dtype=dtype, device=session.device)
    template = Template.load(folder, plain_prompts=config.plain_prompts)
    return ready(model, config, session), template


def ready(model: M, config: TrainingSettings, session: Session) -> M:
    """Adds adapters and activation checkpointing, and spreads the model over the processes.

    Raises:
        ConfigError: the model came with an adapter, which fsdp cannot cut into pieces.
    """
    if config.lora is not None:
        targets = config.lora.targets
        add_lora(model, LoraSpec(rank=config.lora.rank, alpha=config.lora.alpha, targets=targets), seed=config.seed)
    if has_adapter(model) and config.parallel == "fsdp":
        raise ConfigError("the model has an adapter: with parallel fsdp it cannot be trained; use parallel ddp")
    setattr(model, "checkpoint_activations", config.activation_checkpointing)  # noqa: B010 (every model here has it)
    return session.world.prepare(model, mode=config.parallel)


def row_length(config: TrainingSettings, limit: int | None) -> int:
    """Tokens a row may have: the setting, bounded by what the model can take (`limit`, None = anything).

    Raises:
        ConfigError: max_length is over the model's context.
    """
    if config.max_length is None:
        return min(limit or 4096, 4096)
    if limit is not None and config.max_length > limit:
        raise ConfigError(f"max_length {config.max_length} is more than the model's context of {limit} tokens")
    return config.max_length


def save_policy(model: CausalLM, template: Template, folder: Path, session: Session) -> None:
    """Writes a Hugging Face folder (or an adapter folder where LoRA was trained) with the tokenizer beside it."""
    with session.world.whole(model) as state:  # every process takes part
        if not session.world.is_main:
            return
        if has_adapter(model):
            save_adapter(model, folder)
        else:
            save_causal(model, folder, state)
        template.save(folder)
