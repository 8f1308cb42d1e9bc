"""The random states of a process: torch, Python, NumPy, and generators of one's own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goodheart.train.parallel import World


def random_state(generators: dict[str, torch.Generator]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This process's random states: tensors, and plain JSON values."""
    tensors = {"torch": torch.get_rng_state()}
    if World.current().device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(World.current().device)
    tensors |= {f"generator/{name}": generator.get_state() for name, generator in generators.items()}
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    key = numpy_state["state"]["key"].tolist()
    numpy_plain = numpy_state | {"state": {**numpy_state["state"], "key": key}}
    return tensors, {"python": random.getstate(), "numpy": numpy_plain}


def restore_random(generators: dict[str, torch.Generator], tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Puts back what `random_state` gave."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and World.current().device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], World.current().device)
    for name, generator in generators.items():
        generator.set_state(tensors[f"generator/{name}"])
    version, internal, gauss = plain["python"]
    random.setstate((version, tuple(internal), gauss))
    inner = plain["numpy"]["state"]
    np.random.set_state(plain["numpy"] | {"state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
