"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) through peft, on any of our models; files as peft writes
them.

An adapted model computes x W^T + (alpha / rank) x A^T B^T with W frozen. There is no adapter dropout: sampling, old,
new and reference log-probabilities must come from one and the same function.

The reference policy of an adapted model needs no second model:
    fresh adapter                 the base model, adapter switched off
    continuing a saved adapter    a frozen copy of that adapter, beside the one that is trained
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goodheart.errors import ModelError
from goodheart.models.causal import CausalLM
from goodheart.models.weights import read_json, read_tensors, write_json, write_tensors

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TRAINED, _REFERENCE = "default", "reference"  # "default" is the name under which peft reads a file
_PEFT_PREFIX = "base_model.model."  # of every name in an adapter file


@dataclass(frozen=True)
class LoraSpec:
    """A fresh adapter. rank: of the update. alpha: its scale is alpha / rank. targets: names of linear layers as peft
    matches them (by suffix), or "all-linear": every linear layer but the output layer."""

    rank: int = 16
    alpha: float = 32.0
    targets: Sequence[str] | str = "all-linear"


def add_lora(model: nn.Module, spec: LoraSpec, *, seed: int = 0) -> None:
    """Freeze the model and add an adapter to train; a reward or value head stays trainable.

    A model that was loaded with an adapter keeps it: that adapter goes on training (see `as_reference`).
    seed: of the fresh adapter.
    Raises ModelError when the targets match nothing, or touch the output layer or the embeddings (whose adapter the
    chunked log-probabilities would not see), or differ from the adapter that is continued.
    """
    root = _root(model)
    if has_adapter(model):
        rank = root.peft_config[_TRAINED].r
        if rank != spec.rank:
            raise ModelError(
                f"the model comes with an adapter of rank {rank}, but rank {spec.rank} is asked for; "
                "set the same rank, or merge the adapter into the model first"
            )
        return
    from peft import LoraConfig

    targets = _linear_names(root) if spec.targets == "all-linear" else list(spec.targets)
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(root, config, _TRAINED)
    _free_heads(model)


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter is in the model."""
    return hasattr(_root(model), "peft_config")


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that get gradients."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes what its base model computes. Does nothing without an adapter."""
    layers = _layers(_root(model))
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for p, flag in flags:
            p.requires_grad_(flag)


@contextmanager
def as_reference(model: CausalLM) -> Iterator[CausalLM]:
    """Within the block the model is its own reference policy, without gradients: see the head of this file.

    Raises ModelError without an adapter: nothing then remembers the start; keep a frozen copy of the model instead.
    """
    root = _root(model)
    if not has_adapter(model):
        raise ModelError("a model without an adapter cannot be its own reference; keep a frozen copy of it")
    if _REFERENCE not in root.peft_config:
        with adapters_off(model), torch.no_grad():
            yield model
        return
    layers = _layers(root)
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    try:
        for layer in layers:
            layer.set_adapter(_REFERENCE)
        with torch.no_grad():
            yield model
    finally:
        for layer in layers:
            layer.set_adapter(_TRAINED)
        for p, flag in flags:
            p.requires_grad_(flag)


def save_adapter(model: CausalLM, folder: str | Path) -> None:
    """Write the trained adapter as peft does: `PeftModel.from_pretrained(base, folder)` loads it to the same logits.

    The folder names the base model by the path or id that it was loaded from (`base_model_name_or_path`).
    """
    from peft import get_peft_model_state_dict

    root, folder = _root(model), Path(folder)
    if not has_adapter(model):
        raise ModelError("this model has no adapter to save; save the model itself")
    tensors = get_peft_model_state_dict(root, adapter_name=_TRAINED, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / ADAPTER_WEIGHTS, {_PEFT_PREFIX + name: tensor for name, tensor in tensors.items()})
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in root.peft_config[_TRAINED].to_dict().items()}
    config.update(base_model_name_or_path=model.source, inference_mode=True)
    write_json(folder / ADAPTER_CONFIG, config)


def read_adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder names; None when the folder is not an adapter's.

    A relative path counts from the working directory, else from the adapter's folder.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: does not name its base model (base_model_name_or_path)")
    beside = folder / base
    return str(beside if not Path(base).exists() and beside.is_dir() else base)


def load_adapter(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Put a saved adapter (ours or peft's) on the model, trainable, everything else frozen, and a frozen copy beside
    it as the reference: by the time training starts, the start would be gone.

    -> tensors of the file that belong to no adapter layer (a trained head). Raises ModelError for other kinds of
    adapter, targets that the model lacks, missing tensors, or an adapter on the output layer or the embeddings.
    """
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    settings = read_json(folder / ADAPTER_CONFIG)
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: an adapter of type {settings.get('peft_type')}; only LORA is read here")
    tensors = {k.removeprefix(_PEFT_PREFIX): t for k, t in read_tensors(folder, ADAPTER_WEIGHTS)}
    config = LoraConfig.from_pretrained(str(folder))
    config.lora_dropout, config.modules_to_save, config.inference_mode = 0.0, None, False
    root = _root(model)
    _inject(root, config, _TRAINED)
    expected = get_peft_model_state_dict(root, adapter_name=_TRAINED, save_embedding_layers=False)
    wrong = [k for k, t in expected.items() if k not in tensors or tensors[k].shape != t.shape]
    if wrong:
        raise ModelError(f"{folder}: does not fit the base model, {wrong[0]} is missing or has another shape")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_peft_model_state_dict(root, {k: tensors[k] for k in expected}, adapter_name=_TRAINED)
    _copy_as_reference(root)
    _free_heads(model)
    return {k: t for k, t in tensors.items() if k not in expected}


def merge(model: nn.Module) -> None:
    """Add the trained adapter to the weights, in place, and remove it: the model is plain again and fully trainable."""
    root = _root(model)
    for name, layer in list(root.named_modules()):
        if _is_adapted(layer):
            layer.merge(adapter_names=[_TRAINED])
            parent, _, attribute = name.rpartition(".")
            setattr(root.get_submodule(parent), attribute, layer.get_base_layer())
    if hasattr(root, "peft_config"):
        del root.peft_config
    root.requires_grad_(True)
    getattr(root, "fuse_", lambda: None)()


def merged_state(root: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state of `root` with its trained adapter added to the weights, under the names of the plain model.

    root: a `Transformer` or a transformers model; it stays as it is. state: its whole tensors when it is sharded.
    Raises ModelError for adapters that are more than a product of two matrices (DoRA): merge those first.
    """
    state = dict(root.state_dict() if state is None else state)
    for name, layer in [(n, m) for n, m in root.named_modules() if _is_adapted(m)]:
        own = {k.removeprefix(f"{name}."): state.pop(k) for k in list(state) if k.startswith(f"{name}.")}
        if type(layer).__name__ != "Linear" or any("magnitude" in k for k in own):
            raise ModelError(f"the adapter on {name} is not plain LoRA; merge it into the model before saving")
        update = own[f"lora_B.{_TRAINED}.weight"] @ own[f"lora_A.{_TRAINED}.weight"] * layer.scaling[_TRAINED]
        weight = own["base_layer.weight"]
        state[f"{name}.weight"] = weight + (update.t() if layer.fan_in_fan_out else update).to(weight.dtype)
        if "base_layer.bias" in own:
            state[f"{name}.bias"] = own["base_layer.bias"]
    return state


def _root(model: nn.Module) -> Any:
    """The module whose names are those of the transformers model: what peft sees."""
    inner = getattr(model, "backbone", model)
    return getattr(inner, "hf", inner)


def _layers(root: nn.Module) -> list[Any]:
    return [m for m in root.modules() if _is_adapted(m)]


def _is_adapted(module: nn.Module) -> bool:
    # Asked by name, so that models without adapters never import peft, which takes seconds.
    return hasattr(module, "base_layer") and hasattr(module, "adapter_layer_names")


def _linear_names(root: nn.Module) -> list[str]:
    """Full names of all linear layers (Conv1D in GPT-2) but the output layer and a reward model's classifier."""
    heads = ("lm_head", "embed_out", "score", "classifier", "out_proj_head")
    names = [n for n, m in root.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    return [n for n in names if n.split(".")[0] not in heads]


def _inject(root: Any, config: Any, adapter: str) -> None:
    from peft import inject_adapter_in_model

    try:
        with warnings.catch_warnings():  # peft warns about tied weights and Conv1D layouts, which it then handles
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, root, adapter_name=adapter)
    except ValueError as error:
        raise ModelError(f"the adapter does not fit the model: {str(error).splitlines()[0]}") from error
    _refuse_on_vocabulary(root)
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(f".{_TRAINED}." in name)


def _refuse_on_vocabulary(root: nn.Module) -> None:
    for name, module in root.named_modules():
        over_words = isinstance(getattr(module, "base_layer", None), nn.Embedding)
        if _is_adapted(module) and (over_words or name.split(".")[-1] in ("lm_head", "embed_out")):
            raise ModelError(
                f"the adapter targets {name}: log-probabilities are computed from the plain output layer and would not "
                "see it; leave embeddings and output layer out of the targets"
            )


def _copy_as_reference(root: Any) -> None:
    _inject(root, copy.deepcopy(root.peft_config[_TRAINED]), _REFERENCE)
    with torch.no_grad():
        for name, parameter in root.named_parameters():
            if f".{_REFERENCE}." in name:
                parameter.copy_(root.get_parameter(name.replace(f".{_REFERENCE}.", f".{_TRAINED}.")))
    for layer in _layers(root):
        layer.set_adapter(_TRAINED)
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(f".{_TRAINED}." in name)


def _free_heads(model: nn.Module) -> None:
    """Reward and value heads stay trainable: what is in the model but not in its trunk."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return
    hf = getattr(backbone, "hf", None)
    trunk = backbone if hf is None or isinstance(backbone, CausalLM) else hf.base_model
    inside = {id(p) for p in trunk.parameters()}
    score = getattr(model, "score", None)
    for p in [*(p for p in model.parameters() if id(p) not in inside), *(score.parameters() if score else ())]:
        p.requires_grad_(True)
