"""Loading and saving the models of `hf.py` through transformers, with its errors in our words."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goodheart.errors import ModelError
from goodheart.models.hf import HFCausal
from goodheart.models.weights import read_json, tensor_files, write_json

# Settings that make the training-mode forward pass random.
_RANDOM = re.compile(r"drop|jitter")


def load_hf_causal(folder: Path, hf_config: Mapping[str, Any], dtype: torch.dtype, device: Any) -> HFCausal:
    """A decoder that is not native. Raises ModelError for what transformers cannot load, or computes unlike
    `unembed`.
    """
    from transformers import AutoModelForCausalLM

    model = HFCausal(_load(AutoModelForCausalLM, folder, hf_config, dtype), hf_config, source=str(folder))
    model.to(device)
    model.probe()
    return model


def load_hf_classifier(
    folder: Path, hf_config: Mapping[str, Any], dtype: torch.dtype, num_labels: int | None, seed: int
) -> Any:
    """A ...ForSequenceClassification of transformers. num_labels: of a fresh head drawn from `seed`; None = as saved.

    The fresh head is N(0, 1/(D+1)), bias zero; the layers between pooling and head (BERT's pooler) as transformers
    draws them.
    """
    from transformers import AutoModelForSequenceClassification

    settings = {} if num_labels is None else {"num_labels": num_labels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(
            AutoModelForSequenceClassification,
            folder,
            hf_config,
            dtype,
            may_lack_head=num_labels is not None,
            **settings,
        )
        if num_labels is not None:
            trunk = {id(m) for m in model.base_model.modules()}
            last = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in trunk][-1]
            nn.init.normal_(last.weight, std=(last.in_features + 1) ** -0.5)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
    return model


def is_encoder(hf_config: Mapping[str, Any]) -> bool:
    """Whether transformers knows the architecture as a masked language model and nothing says that it decodes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return hf_config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not hf_config.get("is_decoder")


def save_hf(
    hf: Any,
    folder: Path,
    hf_config: Mapping[str, Any],
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """`save_pretrained`, with the dropout settings of the original config, and `changes`, written into config.json."""
    with _quiet():
        hf.save_pretrained(folder, state_dict=state_dict)
    saved = read_json(folder / "config.json")
    original = {k: hf_config[k] for k in saved if _RANDOM.search(k) and k in hf_config}
    write_json(folder / "config.json", {**saved, **original, **(changes or {})})


def classifier_shell(hf: Any, num_labels: int) -> Any:
    """A ...ForSequenceClassification around the trunk of a causal model, sharing its weights; `score` is still
    empty.
    """
    from transformers import AutoModelForSequenceClassification

    config = type(hf.config).from_dict({**hf.config.to_dict(), "num_labels": num_labels})
    with torch.device("meta"):
        shell = AutoModelForSequenceClassification.from_config(config)
    setattr(shell, shell.base_model_prefix, hf.base_model)
    return shell


def _load(auto: Any, folder: Path, hf_config: Mapping[str, Any], dtype: torch.dtype, **settings: Any) -> Any:
    from transformers import AutoConfig

    tensor_files(folder)  # says what is wrong with the folder in our words
    may_lack_head = settings.pop("may_lack_head", False)
    name = hf_config.get("model_type")
    if hf_config.get("quantization_config"):
        raise ModelError(
            f"{folder}: quantized weights cannot be trained or saved here; give the model they were made from"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for key, value in config.to_dict().items():
            if _RANDOM.search(key) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, key, 0.0)
        for key, value in settings.items():
            setattr(config, key, value)
        with _quiet():
            model, report = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever an architecture raises on a config or file it cannot use
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "auto_map" in hf_config:
            reason = "its code is in the model folder, and code from a model folder is never run here"
        raise ModelError(f"{folder}: transformers cannot load this {name} model: {reason}") from error
    trunk = f"{model.base_model_prefix}."
    drawn = [k for k in report["missing_keys"] if may_lack_head and (not k.startswith(trunk) or ".pooler." in k)]
    missing = set(report["missing_keys"]) - set(drawn)
    if missing or report["mismatched_keys"]:
        raise ModelError(
            f"{folder}: the weights lack {', '.join(sorted(map(str, missing or report['mismatched_keys']))[:5])}; "
            "config.json and weights belong to different models"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and load reports: what matters in them is raised as ModelError."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
