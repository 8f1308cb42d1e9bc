"""Reward models in and out of folders, in the ...ForSequenceClassification layout of transformers.

    one model      config.json + safetensors, loadable by AutoModelForSequenceClassification, + goodheart.json
    ensemble       member-0/, member-1/ ... each such a folder, + goodheart.json
goodheart.json holds what the layout has no place for: mean and std of scores, calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodheart.errors import ModelError
from goodheart.models.architecture import NotNative, TransformerConfig
from goodheart.models.decoders import dtype_name, load_trunk, read_native
from goodheart.models.heads import RewardEnsemble, RewardModel, reward_from_causal
from goodheart.models.lora import has_adapter, load_adapter, merged_state, read_adapter_base
from goodheart.models.resolve import resolve
from goodheart.models.transformer import Transformer
from goodheart.models.weights import read_config, read_optional, write_folder, write_json

EXTRA = "goodheart.json"


def new_reward(
    path: str | Path, num_heads: int = 1, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> RewardModel:
    """A reward model to train: the trunk of a language model or of a BERT-like encoder, with a fresh head.

    path: see `load.resolve`. num_heads: scores per answer. seed: of the head.
    """
    folder = resolve(path)
    if read_adapter_base(folder) is None:
        hf = read_config(folder)
        if _native(hf) is None:
            from goodheart.models.hf import HFEncoder
            from goodheart.models.hf_load import is_encoder, load_hf_classifier

            if is_encoder(hf):
                classifier = load_hf_classifier(folder, hf, dtype, num_heads, seed)
                return RewardModel(HFEncoder(classifier, hf), num_heads).to(device)
    return reward_from_causal(load_trunk(folder, dtype=dtype, device=device), num_heads, seed=seed)


def load_reward(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> RewardModel | RewardEnsemble:
    """Load a reward model or an ensemble; `extra` is what its goodheart.json says.

    Reads ...ForSequenceClassification folders (ours or from the Hub, decoder or encoder), LoRA adapters with a score
    head, and folders of members. Raises ModelError for anything else.
    """
    folder = resolve(path)
    members = sorted(folder.glob("member-*"), key=lambda p: int(p.name.removeprefix("member-")))
    model: RewardModel | RewardEnsemble
    if members:
        model = RewardEnsemble([load_reward(m, dtype=dtype, device=device) for m in members])  # type: ignore[misc]
    elif read_adapter_base(folder) is not None:
        model = _load_adapted(folder, dtype, device)
    else:
        model = _load_one(folder, dtype, device)
    model.extra = read_optional(folder / EXTRA)
    return model


def save_reward(
    model: RewardModel | RewardEnsemble,
    folder: str | Path,
    extra: Mapping[str, Any] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Write the folder that `load_reward` reads; transformers loads one model (or member) to the same scores.

    An adapter is merged into the written weights. extra: for goodheart.json, the model's own when absent. state: whole
    tensors gathered from a sharded model. pad_token_id: transformers finds the last token of a padded row by it, so it
    should be an id that no answer ends with; default: that of config.json, else its end-of-text id, else 0.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, RewardEnsemble):
        for i, member in enumerate(model.members):
            part = None if state is None else _below(state, f"members.{i}.")
            save_reward(member, folder / f"member-{i}", state=part, pad_token_id=pad_token_id)  # type: ignore[arg-type]
    elif isinstance(model.backbone, Transformer):
        _save_native(model, folder, state, pad_token_id)
    else:
        _save_hf(model, folder, state, pad_token_id)
    write_json(folder / EXTRA, dict(model.extra if extra is None else extra))


def _native(hf: Mapping[str, Any]) -> TransformerConfig | None:
    try:
        return TransformerConfig.from_hf(hf)
    except NotNative:
        return None


def _load_one(folder: Path, dtype: torch.dtype, device: Any) -> RewardModel:
    hf = read_config(folder)
    names = hf.get("architectures") or []
    if not any(str(n).endswith("ForSequenceClassification") for n in names):
        raise ModelError(
            f"{folder}: holds a {', '.join(names) or hf.get('model_type')}, not a reward model; "
            "train one with `goodheart reward` or give a ...ForSequenceClassification folder"
        )
    config = _native(hf)
    if config is not None:
        return _load_native(folder, config, dtype, device)
    from goodheart.models.hf import HFCausal, HFEncoder
    from goodheart.models.hf_load import is_encoder, load_hf_classifier

    classifier = load_hf_classifier(folder, hf, dtype, None, 0)
    if is_encoder(hf):
        return RewardModel(HFEncoder(classifier, hf), classifier.num_labels).to(device)
    model = RewardModel(HFCausal(classifier, hf, source=str(folder)), classifier.num_labels)
    model.score = classifier.score
    return model.to(device)


def _load_native(folder: Path, config: TransformerConfig, dtype: torch.dtype, device: Any) -> RewardModel:
    backbone, rest = read_native(folder, config, dtype, device, head=False)
    weight = rest.get("score.weight")
    if weight is None or weight.dim() != 2 or weight.shape[1] != config.width:
        raise ModelError(f"{folder}: the weights lack a score.weight of shape (scores, {config.width})")
    model = RewardModel(backbone, len(weight))
    _set_score(model, weight)
    return model


def _load_adapted(folder: Path, dtype: torch.dtype, device: Any) -> RewardModel:
    """A LoRA adapter of task type SEQ_CLS, as peft and TRL write it: adapter layers and a whole score head."""
    base = read_adapter_base(folder)
    assert base is not None  # the caller looked
    backbone = load_trunk(base, dtype=dtype, device=device)
    rest = load_adapter(backbone, folder)
    weight = rest.get("score.weight", rest.get("score.modules_to_save.weight"))
    if weight is None:
        raise ModelError(f"{folder}: an adapter without a score head is not a reward model")
    model = reward_from_causal(backbone, len(weight))
    _set_score(model, weight)
    return model


@torch.no_grad()
def _set_score(model: RewardModel, weight_ND: Tensor) -> None:
    assert model.score is not None  # a decoder
    model.score.weight.copy_(weight_ND)


def _classifier_config(model: RewardModel, pad_token_id: int | None) -> dict[str, Any]:
    """What config.json of a classifier says beyond that of the trunk."""
    hf: dict[str, Any] = model.backbone.hf_config  # type: ignore[assignment]
    pad, end = hf.get("pad_token_id"), hf.get("eos_token_id")
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    labels = {f"LABEL_{i}": i for i in range(model.num_scores)}
    return {
        "pad_token_id": pad_token_id if pad_token_id is not None else (pad or 0),
        "id2label": {str(i): name for name, i in labels.items()},
        "label2id": labels,
    }


def _save_native(
    model: RewardModel, folder: Path, state: Mapping[str, Tensor] | None, pad_token_id: int | None
) -> None:
    backbone, score = model.backbone, model.score
    assert isinstance(backbone, Transformer)
    assert score is not None
    tensors = merged_state(backbone, None if state is None else _below(state, "backbone."))
    weight = score.weight if state is None else state["score.weight"]
    config = backbone.config.to_hf(dtype_name(tensors))
    name = config["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
    config["architectures"] = [_CLASSIFIERS.get(name, name)]
    write_folder(folder, {**config, **_classifier_config(model, pad_token_id)}, {**tensors, "score.weight": weight})


_CLASSIFIERS = {"Gemma3ForSequenceClassification": "Gemma3TextForSequenceClassification"}


def _save_hf(model: RewardModel, folder: Path, state: Mapping[str, Tensor] | None, pad_token_id: int | None) -> None:
    from goodheart.models.hf_load import classifier_shell, save_hf

    backbone: Any = model.backbone
    hf = backbone.hf
    if model.score is not None and getattr(hf, "score", None) is not model.score:
        hf = classifier_shell(hf, model.num_scores)
        hf.score = model.score
    whole = None if state is None else _classifier_state(model, hf, state)
    tensors = None if whole is None and not has_adapter(model) else merged_state(hf, whole)
    changes = _classifier_config(model, pad_token_id)
    hf.config.pad_token_id = changes["pad_token_id"]
    changes["architectures"] = [type(hf).__name__]
    save_hf(hf, folder, backbone.hf_config, state_dict=tensors, changes=changes)


def _classifier_state(model: RewardModel, hf: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors under the names of the classifier; a decoder's output layer is left out."""
    own = _below(state, "backbone.hf.")
    if model.score is None:
        return own
    trunk = {k: t for k, t in own.items() if k.startswith(f"{hf.base_model_prefix}.")}
    return trunk | {"score.weight": state["score.weight"]}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
