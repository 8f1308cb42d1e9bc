"""Model folders to modules and back: causal language models here, reward models with `load_reward` and `save_reward`.

Architectures of `models/transformer.py` are read straight from config.json and safetensors, without transformers, which
takes seconds to import; all others go through `models/hf.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodheart.errors import ModelError
from goodheart.models.architecture import NotNative, TransformerConfig
from goodheart.models.causal import CausalLM
from goodheart.models.heads import reward_from_causal
from goodheart.models.new import new_model
from goodheart.models.transformer import Transformer
from goodheart.models.weights import SHARD_BYTES, fill, read_config, read_optional, read_tensors, write_folder

__all__ = ["dtype_name", "load_causal", "new_model", "resolve", "reward_from_causal", "save_causal"]

# What a Hub download brings: configs, safetensors, tokenizer files; never pickles or code.
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def resolve(path: str | Path) -> Path:
    """The model folder that a user means.

    path: a Hugging Face folder, an adapter folder, a folder of ensemble members, a run folder (its `model/` is
        meant), or a Hub id (`org/name` or `org/name@revision`), which is downloaded or taken from the local cache.
    Raises ModelError when there is no such thing, or the run is not finished.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "model").is_dir() and not (folder / "config.json").is_file():
            return folder / "model"
        if (folder / "lineage.json").is_file() and not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder}: an unfinished run, it has no model/ yet; finish it by starting the same command again"
            )
        return folder
    if folder.exists():
        raise ModelError(f"{folder}: a file, not a model folder; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(str(path)):
        raise ModelError(f"{folder}: no such folder")
    return _download(str(path))


def load_causal(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> CausalLM:
    """Load a causal language model; an adapter folder is put on its base model.

    path: see `resolve`. dtype: of the weights. -> a `Transformer` (native families) or an `HFCausal`.
    Raises ModelError for a folder that is not a model, is damaged, or whose weights do not fit its config.
    """
    folder = resolve(path)
    hf = read_config(folder)
    try:
        config = TransformerConfig.from_hf(hf)
    except NotNative as reason:
        raise ModelError(f"{folder}: {reason}") from reason
    return _load_native(folder, config, dtype, device)


def save_causal(
    model: CausalLM, folder: str | Path, state: Mapping[str, Tensor] | None = None, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the model as a Hugging Face folder that transformers loads to the same logits.

    state: whole tensors gathered from a sharded model; the model's own when absent. shard_bytes: largest weight file.
    """
    if not isinstance(model, Transformer):
        raise ModelError(f"cannot save a {type(model).__name__}")
    tensors = dict(model.state_dict() if state is None else state)
    if model.config.tie:
        tensors.pop("lm_head.weight", None)
    config = model.config.to_hf(dtype_name(model))
    write_folder(Path(folder), config, tensors, generation_config=model.generation_config, shard_bytes=shard_bytes)


def dtype_name(model: torch.nn.Module) -> str:
    """Name of the dtype of the weights as config.json writes it, such as "bfloat16"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _load_native(
    folder: Path, config: TransformerConfig, dtype: torch.dtype, device: str | torch.device
) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype).to_empty(device=device)
    fill(model, _renamed(folder, config), folder)
    model.generation_config = read_optional(folder / "generation_config.json")
    return model


def _renamed(folder: Path, config: TransformerConfig) -> Any:
    """Tensors under our names: those of a bare trunk (LlamaModel) get the prefix they have inside a
    LlamaForCausalLM.
    """
    for name, tensor in read_tensors(folder):
        if name.startswith(("embed_tokens.", "layers.", "norm.")):
            name = f"model.{name}"
        if not (config.tie and name == "lm_head.weight"):
            yield name, tensor


def _download(hub_id: str) -> Path:
    """A Hub repository in the local cache. Raises ModelError when it does not exist or cannot be reached."""
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as error:  # network, permission and lookup errors of several libraries
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{hub_id}: no such folder here, and as a Hub id it cannot be fetched ({first_line}); "
            "check the path, or the id and the network"
        ) from error
