"""Causal language models in and out of folders.

Architectures of `models/transformer.py` are read straight from config.json and safetensors, without transformers, which
takes seconds to import; all others go through `models/hf.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from goodheart.errors import ModelError
from goodheart.models.architecture import NotNative, TransformerConfig
from goodheart.models.causal import CausalLM
from goodheart.models.lora import has_adapter, load_adapter, merged_state, read_adapter_base
from goodheart.models.resolve import resolve
from goodheart.models.transformer import Transformer
from goodheart.models.weights import SHARD_BYTES, fill, read_config, read_optional, read_tensors, write_folder


def load_causal(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> CausalLM:
    """Load a causal language model; an adapter folder is put on its base model.

    path: see `resolve`. dtype: of the weights. -> a `Transformer` (native families) or an `HFCausal`.
    Raises ModelError for a folder that is not a model, is damaged, or whose weights do not fit its config, and for one
    that scores answers and writes none.
    """
    folder = resolve(path)
    names = [] if read_adapter_base(folder) is not None else read_config(folder).get("architectures") or []
    if scorer := next((name for name in names if str(name).endswith("ForSequenceClassification")), None):
        raise ModelError(f"{folder}: holds a {scorer}, which scores answers and writes none; give a language model")
    return load_trunk(path, dtype=dtype, device=device)


def load_trunk(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> CausalLM:
    """`load_causal` for what gets another head: also the decoder of a reward model."""
    folder = resolve(path)
    base = read_adapter_base(folder)
    if base is not None:
        model = load_trunk(base, dtype=dtype, device=device)
        rest = load_adapter(model, folder)
        if rest:
            raise ModelError(f"{folder}: the adapter brings {next(iter(rest))}, which is no part of a language model")
        return model
    hf = read_config(folder)
    try:
        config = TransformerConfig.from_hf(hf)
    except NotNative:
        from goodheart.models.hf_load import load_hf_causal

        model = load_hf_causal(folder, hf, dtype, device)
    else:
        model, _ = read_native(folder, config, dtype, device)
    model.generation_config = read_optional(folder / "generation_config.json")
    model.source = str(folder if Path(path).expanduser().is_dir() else path)  # a Hub id stays one
    return model


def save_causal(
    model: CausalLM, folder: str | Path, state: Mapping[str, Tensor] | None = None, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the model as a Hugging Face folder that transformers loads to the same logits; an adapter is merged in.

    state: whole tensors gathered from a sharded model; the model's own when absent. shard_bytes: largest weight file.
    """
    folder = Path(folder)
    if not isinstance(model, Transformer):
        _save_hf(model, folder, state)
        return
    tensors = merged_state(model, state)
    if model.config.tie:
        tensors.pop("lm_head.weight", None)
    config = model.config.to_hf(dtype_name(tensors))
    write_folder(folder, config, tensors, generation_config=model.generation_config, shard_bytes=shard_bytes)


def dtype_name(tensors: Mapping[str, Tensor]) -> str:
    """Name of the dtype of the weights as config.json writes it, such as "bfloat16"."""
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def read_native(
    folder: Path, config: TransformerConfig, dtype: torch.dtype, device: str | torch.device, *, head: bool = True
) -> tuple[Transformer, dict[str, Tensor]]:
    """The decoder in a folder. head: with its output layer. -> the model, and tensors of heads that are no part of
    it.
    """
    with torch.device("meta"):
        model = Transformer(config, head=head)
    model.allocate_(dtype, device)
    return model, fill(model, _renamed(folder, config, head), folder)


def _save_hf(model: CausalLM, folder: Path, state: Mapping[str, Tensor] | None) -> None:
    from goodheart.models.hf import HFCausal
    from goodheart.models.hf_load import save_hf

    if not isinstance(model, HFCausal):
        raise ModelError(f"cannot save a {type(model).__name__}")
    if has_adapter(model):
        raise ModelError("an adapted model of this architecture is saved with save_adapter, or after merge")
    whole = None if state is None else {k.removeprefix("hf."): t for k, t in state.items()}
    save_hf(model.hf, folder, model.hf_config, state_dict=whole)


def _renamed(folder: Path, config: TransformerConfig, head: bool) -> Iterator[tuple[str, Tensor]]:
    """Tensors under our names: those of a bare trunk (LlamaModel) get the prefix they have inside a
    LlamaForCausalLM.
    """
    for name, tensor in read_tensors(folder):
        if name.startswith(("embed_tokens.", "layers.", "norm.")):
            name = f"model.{name}"
        if name != "lm_head.weight" or (head and not config.tie):
            yield name, tensor
