"""What training will take in memory, told before it starts, and beside it afterwards what it took.

What is there already (libraries, weights, optimizer states, data) is measured. What is still to come is foretold: the
gradients, the cache of keys and values that answers are generated with, and what a forward pass keeps for the backward
pass, measured on two short rows and drawn out to the largest micro-batch.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from goodheart.models.causal import CausalLM
from goodheart.models.heads import RewardEnsemble, RewardModel, ValueModel
from goodheart.train.checkpoint import TrainState
from goodheart.train.files import replace_text
from goodheart.train.optimizer import AdamW

# Whose passes are measured; a value head on the policy's own states keeps next to nothing.
_NETWORKS = (CausalLM, RewardModel, RewardEnsemble, ValueModel)
_SHORT, _LONG = 32, 64  # tokens of the rows that are measured
# Logits of a pass that are kept, bytes; more are computed again in pieces (`losses/logprobs.py`).
_LOGITS = 4 * 2**24
# Code and buffers that the first pass brings in on a CPU, bytes.
_FIRST_PASS = 40 * 2**20
# Of what a layer keeps for backward, about as much again lives for a moment while its gradient is computed.
_MOMENTARY = 0.5
# Not planned with: other programs, and what the estimate misses.
_RESERVE = 0.1


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, on the device that is trained on. present: before the first step. available: of which it may become."""

    present: float
    gradients: float
    passes: float
    cache: float
    tokens: int
    available: float

    @property
    def total(self) -> float:
        """The peak."""
        return self.present + self.gradients + self.cache + self.passes

    @property
    def halvings(self) -> int:
        """How often micro-batches must be halved to fit."""
        room = self.available * (1 - _RESERVE) - self.present - self.gradients - self.cache
        count = 0
        while count < 20 and self.passes / 2**count > max(room, 1.0):
            count += 1
        return count if room > 0 else 0  # nothing would help

    def __str__(self) -> str:
        parts = f"{_size(self.present)} now, gradients {_size(self.gradients)}"
        parts += f", cache of answers {_size(self.cache)}" * (self.cache > 0)
        parts += f", passes over {self.tokens:,} tokens {_size(self.passes)}"
        return f"memory: about {_size(self.total)} of {_size(self.available)} ({parts})"


def plan(state: TrainState, device: torch.device, tokens: int, *, cache: float = 0.0) -> MemoryPlan:
    """What steps with the networks and optimizers of this state will take.

    Args:
        tokens: padded tokens of the largest micro-batch.
        cache: bytes of keys and values while answers are generated.
    """
    kept, gradients = 0.0, 0.0
    for thing in state.things().values():
        if isinstance(thing, AdamW):
            gradients += sum(p.numel() * (p.grad_dtype or p.dtype).itemsize for p in thing.params)
        elif isinstance(thing, _NETWORKS) and any(p.requires_grad for p in thing.parameters()):
            logits = min(_LOGITS, tokens * thing.vocab_size * 4) if isinstance(thing, CausalLM) else 0
            saved, layers = saved_per_token(thing)
            moment = max(float(logits), _MOMENTARY * saved / layers * tokens)
            # Networks that are trained beside each other are passed one after the other.
            kept = max(kept, saved * tokens + logits + moment)
    first = _FIRST_PASS if device.type == "cpu" else 0
    return MemoryPlan(present(device), gradients, kept + first, cache, tokens, available(device))


def saved_per_token(model: nn.Module) -> tuple[float, int]:
    """Bytes that a forward pass keeps per token for the backward pass, and the number of layers that keep them."""
    short, long = _saved(model, _SHORT), _saved(model, _LONG)
    return max(0.0, (long - short) / (_LONG - _SHORT)), max(1, _layers(model))


def cache_bytes(model: CausalLM, slots: int, length: int) -> float:
    """Bytes of the keys and values of so many rows side by side; 0 where the model does not say what it needs."""
    c = model.hf_config
    heads = c.get("num_attention_heads") or 0
    of_head = c.get("head_dim") or (c.get("hidden_size", 0) // heads if heads else 0)
    numbers = 2 * slots * length * (c.get("num_hidden_layers") or 0) * (c.get("num_key_value_heads") or heads) * of_head
    return float(numbers * next(model.parameters()).element_size())


def present(device: torch.device) -> float:
    """Bytes in use now."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return max(0.0, _of_process("VmRSS") - _kept_free())


def peak(device: torch.device) -> float:
    """Most bytes held since `begin_peak`."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _of_process("VmHWM")


def begin_peak(device: torch.device) -> None:
    """Forgets the peak of what ran before in this process, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def available(device: torch.device) -> float:
    """Bytes that this process may hold in all."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    return _of_process("VmRSS") + _free()


def write(folder: Path, planned: MemoryPlan, device: torch.device) -> None:
    """memory.json of a run folder: the plan beside what it became, in bytes."""
    found = {**asdict(planned), "planned": planned.total, "peak": peak(device), "device": device.type}
    replace_text(folder / "memory.json", json.dumps(found, indent=1) + "\n")


def _saved(model: nn.Module, length: int) -> float:
    """Bytes of everything that one row's forward pass keeps, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # lest an address be used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    device = next(model.parameters()).device
    ids_BT = torch.zeros(1, length, dtype=torch.long, device=device)
    rows: dict[str, Any] = {"lengths_B": torch.tensor([length], device=device)}
    if isinstance(model, ValueModel):
        rows["mask_BT"] = torch.ones(1, length, dtype=torch.bool, device=device)
    random = torch.get_rng_state()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids_BT, **rows)
    torch.set_rng_state(random)
    return float(sum(found.values()))


def _layers(model: nn.Module) -> int:
    if isinstance(model, RewardEnsemble):
        return sum(_layers(member) for member in model.members)
    trunk = model.backbone if isinstance(model, RewardModel | ValueModel) else model
    return int(getattr(getattr(trunk, "hf_config", None), "get", lambda *_: 0)("num_hidden_layers", 0) or 1)


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2, from malloc.h."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _kept_free() -> float:
    """Bytes that the C library keeps for what is allocated next (`parallel.py` asks it to); 0 where it cannot tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return 0.0
    mallinfo.restype = _MallInfo
    return float(mallinfo().fordblks)


def _free() -> float:
    """Bytes that the machine, or the control group this process lives in, can still give."""
    free = float("inf")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            free = float(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0] != "max":
        free = min(free, float(limit[0]) - float(used[0]))
    return free if free != float("inf") else float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _of_process(what: str) -> float:
    for line in _lines("/proc/self/status"):
        if line.startswith(what):
            return float(line.split()[1]) * 1024
    import resource  # no /proc: the peak stands for both

    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kept if sys.platform == "darwin" else kept * 1024)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
