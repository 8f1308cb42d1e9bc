"""Loading a tokenizer from a model folder, and the ids that the files beside it stop generation on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goodheart.data.own_tokenizer import OwnTokenizer
from goodheart.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Any one of these makes a folder a tokenizer's.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# Classes that are nothing but tokenizer.json, so that they need not be looked up by model type.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Model types for which AutoTokenizer believes such a class (for qwen2, phi3 and others it overrides it).
_TRUSTING_TYPES = frozenset(
    ["", "llama", "mistral", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "opt", "olmo2"]
)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase | OwnTokenizer:
    """The tokenizer of a model: what `AutoTokenizer` gives, seconds sooner where tokenizer.json says it all.

    A tokenizer without a padding token gets its unknown or end token as one; the vocabulary never grows.

    Args:
        folder: a Hugging Face model folder, a run folder (its `model/` is taken), an adapter folder (the base model's
            tokenizer is taken where it has none of its own), or a Hub id.

    Raises:
        ModelError: there is no tokenizer, it cannot be read, or it needs code from the Hub.
    """
    place = _place(str(folder))
    try:
        tokenizer = _load(place)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {_first_line(error)}") from error
    except Exception as error:  # the Rust tokenizers raise bare Exception for a damaged tokenizer.json
        raise ModelError(f"{folder}: tokenizer.json is damaged: {_first_line(error)}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"{folder}: {type(tokenizer).__name__} has no tokenizer.json form; convert it to one first")
    if tokenizer.pad_token_id is None:
        # <unk> first: unlike an end token it is never something to learn, should other code mask by id
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _load(place: str) -> Any:
    config = side_file(place, "tokenizer_config.json") if Path(place).is_dir() else {}
    if (
        config.get("tokenizer_class") in _PLAIN_CLASSES
        and "auto_map" not in config
        and Path(place, "tokenizer.json").is_file()
        and not Path(place, "tekken.json").exists()
        and side_file(place, "config.json").get("model_type", "") in _TRUSTING_TYPES
    ):
        own = OwnTokenizer.read(place, config, side_file(place, "special_tokens_map.json"))
        if own is not None and own.knows_its_chat:
            return own
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(place)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place, trust_remote_code=False)


def _place(name: str) -> str:
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise ModelError(f"{name}: not a model folder (nor a Hub id such as Qwen/Qwen3-0.6B)")
        return name
    for candidate in (folder, folder / "model"):
        if any((candidate / file).is_file() for file in _TOKENIZER_FILES):
            return str(candidate)
    for candidate in (folder, folder / "model"):
        parent = side_file(str(candidate), "adapter_config.json").get("base_model_name_or_path")
        if parent:
            return _place(str(parent))
    raise ModelError(f"{name}: no tokenizer there (looked for {', '.join(_TOKENIZER_FILES)})")


def side_file(place: str, name: str) -> dict[str, Any]:
    """A JSON file beside the tokenizer; {} where there is none. Hub ids are looked up in the local cache only.

    Raises:
        ModelError: the file is not a JSON object.
    """
    if not place:  # a tokenizer made in memory
        return {}
    path = Path(place, name)
    if not Path(place).is_dir():
        if place.startswith(("/", ".")) or place.count("/") > 1:
            return {}
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(place, name)
        if not isinstance(cached, str):
            return {}
        path = Path(cached)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not readable as JSON: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object was expected, not a {type(content).__name__}")
    return content


def stop_ids(place: str, special_ids: frozenset[int]) -> list[int]:
    """End ids in `generation_config.json`, then those in `config.json`, in their order.

    An id of config.json counts only where the tokenizer holds it for special: model classes fill that field with a
    default (2 for Llama) that may be an ordinary letter of another vocabulary.
    """
    stated = _as_list(side_file(place, "generation_config.json").get("eos_token_id"))
    assumed = [i for i in _as_list(side_file(place, "config.json").get("eos_token_id")) if i in special_ids]
    return list(dict.fromkeys(stated + assumed))


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list) else [int(value)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
