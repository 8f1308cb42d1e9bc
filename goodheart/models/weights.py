"""Hugging Face model folders: config.json and safetensors files, in and out. Never pickle.

A folder is written file by file under temporary names and renamed, config.json last: a folder with a config.json has
all its weights, and a reader never meets half a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from goodheart.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # what the Hub recommends: a file that can be retried and read in parallel

# In old checkpoints: constants that the model computes, and heads of other uses of the same trunk.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")
_OTHER_HEADS = ("score.", "v_head.", "classifier.", "value_head.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError naming the file when it is absent, damaged or something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); the file is damaged, fetch or write it again"
        ) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: holds a {type(data).__name__}, not a JSON object")
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder. Raises ModelError saying what the folder is instead."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give a Hugging Face model folder, a run folder or a Hub id")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: not a model folder, it has no config.json (it holds: {_listing(folder)}); "
            "give a folder written by save_pretrained or by goodheart"
        )
    return read_json(folder / "config.json")


def read_optional(path: Path) -> dict[str, Any]:
    """As `read_json`, {} when there is no such file."""
    return read_json(path) if path.is_file() else {}


def tensor_files(folder: Path, name: str = WEIGHTS) -> list[Path]:
    """The safetensors files of a folder: one, or those its index names. Raises ModelError when they are not all
    there.
    """
    stem = name.removesuffix(".safetensors")
    index = folder / f"{stem}.safetensors.index.json"
    if (folder / name).is_file():
        return [folder / name]
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        absent = [s for s in shards if not (folder / s).is_file()]
        if absent or not shards:
            what = ", ".join(absent) or "any file"
            raise ModelError(f"{index}: names {what} but the folder lacks it; the copy or download is not complete")
        return [folder / s for s in shards]
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
    if pickles:
        raise ModelError(
            f"{folder}: has only pickled weights ({', '.join(pickles[:3])}), which can run code when read; convert "
            "them in a place you trust: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new)"
        )
    raise ModelError(f"{folder}: has a config.json but no weights ({name}); it holds: {_listing(folder)}")


def read_tensors(folder: Path, name: str = WEIGHTS) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all weight files, one tensor in memory at a time.

    Raises ModelError for a file that is cut short or not in safetensors form.
    """
    for path in tensor_files(folder, name):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: cannot be read as safetensors ({error}); the file is cut short or damaged "
                f"({path.stat().st_size:,} bytes), fetch or write it again"
            ) from error


@torch.no_grad()
def fill(module: nn.Module, tensors: Iterable[tuple[str, Tensor]], source: Path) -> dict[str, Tensor]:
    """Copy tensors into the parameters and buffers of the same names, in their dtype and on their device.

    Parameters that share memory count as one. -> tensors of heads that the module lacks (score, value head,
    classifier).
    Raises ModelError for a shape that differs, a missing tensor, or a tensor that the module has no place for.
    """
    places: dict[str, Tensor] = module.state_dict(keep_vars=True)
    filled: set[int] = set()
    heads: dict[str, Tensor] = {}
    strangers: list[str] = []
    for name, tensor in tensors:
        place = places.get(name)
        if place is None and name.startswith(_OTHER_HEADS):
            heads[name] = tensor
        elif place is None:
            strangers += [] if name.endswith(_IGNORED_SUFFIXES) else [name]
        elif place.shape != tensor.shape:
            raise ModelError(
                f"{source}: {name} has shape {tuple(tensor.shape)} but config.json asks for {tuple(place.shape)}; "
                "config.json and weights belong to different models"
            )
        else:
            place.copy_(tensor)
            filled.add(id(place))
    missing = [name for name, place in places.items() if id(place) not in filled]
    if missing:
        raise ModelError(
            f"{source}: the weights lack {_some(missing)}; config.json and weights belong to different models"
        )
    if strangers:
        raise ModelError(f"{source}: the weights hold {_some(strangers)}, for which config.json has no place")
    return heads


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    generation_config: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model folder: safetensors (several files above `shard_bytes` each), generation_config.json,
    config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard)
    for stale in folder.glob("model*.safetensors*"):
        if stale.name not in names and not stale.name.endswith(".partial"):
            stale.unlink()
    if len(shards) > 1:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
    if generation_config:
        write_json(folder / "generation_config.json", generation_config)
    write_json(folder / "config.json", config)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, written aside and renamed. Raises ModelError when it cannot be written (disk full)."""
    plain = {k: t.detach().contiguous().cpu() for k, t in tensors.items()}
    # "format" is what transformers looks for before it reads the file.
    _write(path, lambda partial: save_file(plain, partial, metadata={"format": "pt"}))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """One JSON file, written aside and renamed. Raises ModelError when it cannot be written (disk full)."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    _write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb+") as file:  # the bytes reach the disk before the name does
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ModelError(f"{path}: cannot be written ({error}); free some space or choose another folder") from error


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def _listing(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    return _some(names) if names else "nothing"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
