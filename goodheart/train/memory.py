"""What training will take in memory, told before it starts, and beside it afterwards what it took.

What is there already (libraries, weights, optimizer states, data) is measured. What is still to come is foretold: the
gradients, the cache of keys and values that answers are generated with, and what a forward pass keeps for the backward
pass, measured on three short rows and drawn out to the rows of the largest micro-batch.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from goodheart.models.causal import CausalLM
from goodheart.models.heads import RewardEnsemble, RewardModel, ValueModel
from goodheart.models.transformer import Transformer
from goodheart.train.checkpoint import TrainState
from goodheart.train.files import replace_text
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import local

# Whose passes are measured; a value head on the policy's own states keeps next to nothing.
_NETWORKS = (CausalLM, RewardModel, RewardEnsemble, ValueModel)
_PROBE = 64  # tokens of the longest row that is measured
# Logits of a pass that are kept, bytes; more are computed again in pieces (`losses/logprobs.py`).
_LOGITS = 4 * 2**24
# Code and buffers that the first pass brings in on a CPU, bytes.
_FIRST_PASS = 40 * 2**20
# Of what a layer keeps for backward, about as much again lives for a moment while its gradient is computed.
_MOMENTARY = 0.5
# Not planned with: other programs, and what the estimate misses.
_RESERVE = 0.1


@dataclass(frozen=True)
class Most:
    """The most that one step asks of one process.

    rows: in the step. longest: tokens of a row. together: rows that no micro-batch can part, all answers to a prompt.
    cache: bytes of keys and values while answers are generated.
    """

    rows: int
    longest: int
    together: int = 1
    cache: float = 0.0

    def at_once(self, max_tokens: int) -> int:
        """Rows of the largest micro-batch."""
        return max(self.together, min(self.rows, max_tokens // self.longest))


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, on the device that is trained on. present: before the first step. available: of which it may become.

    rows, longest: of the largest micro-batch. together: rows that cannot be parted.
    """

    present: float
    gradients: float
    passes: float
    cache: float
    rows: int
    longest: int
    together: int
    available: float

    @property
    def total(self) -> float:
        """The peak."""
        return self.present + self.gradients + self.cache + self.passes

    @property
    def tokens(self) -> int:
        """Of the largest micro-batch, padding included."""
        return self.rows * self.longest

    @property
    def halvings(self) -> int:
        """How often micro-batches must be halved to fit; 0 where not even the smallest do."""
        room = self.available * (1 - _RESERVE) - self.present - self.gradients - self.cache
        count, rows, passes = 0, self.rows, self.passes
        while passes > room:
            if rows <= self.together:
                return 0
            count, rows, passes = count + 1, (rows + 1) // 2, passes / 2
        return count

    def __str__(self) -> str:
        parts = f"{_size(self.present)} now, gradients {_size(self.gradients)}"
        parts += f", cache of answers {_size(self.cache)}" * (self.cache > 0)
        parts += f", passes over {self.tokens:,} tokens {_size(self.passes)}"
        return f"memory: about {_size(self.total)} of {_size(self.available)} ({parts})"


@dataclass(frozen=True)
class Kept:
    """Bytes that a pass over a row of t tokens keeps for backward: `linear` t + `square` t^2, and of them one layer."""

    linear: float
    square: float
    layers: int

    def of(self, tokens: int) -> float:
        return self.linear * tokens + self.square * tokens**2

    def of_layer(self, tokens: int) -> float:
        return self.of(tokens) / self.layers


def plan(state: TrainState, device: torch.device, most: Most, max_tokens: int) -> MemoryPlan:
    """What steps with the networks and optimizers of this state will take."""
    rows = most.at_once(max_tokens)
    passes, gradients = 0.0, 0.0
    for thing in state.things().values():
        if isinstance(thing, AdamW):
            gradients += gradient_bytes(thing)
        elif isinstance(thing, _NETWORKS) and any(p.requires_grad for p in thing.parameters()):
            # Networks that are trained beside each other are passed one after the other.
            passes = max(passes, _pass(thing, rows, most.longest))
    passes += _FIRST_PASS if device.type == "cpu" else 0
    return MemoryPlan(
        present(device), gradients, passes, most.cache, rows, most.longest, most.together, available(device)
    )


def kept(model: nn.Module) -> Kept:
    """What passes of this model keep, measured on rows of a quarter, a half and the whole of `_PROBE` tokens.

    A line and a square through three points: attention that keeps its weights grows with the square.
    """
    trunks = _trunks(model)
    most = min([_PROBE, *(trunk.max_length for trunk in trunks if trunk.max_length is not None)])
    step = max(1, most // 4)
    a, b, c = (_saved(model, step * times) for times in (1, 2, 4))
    # f(t) = k + l t + s t^2:  (f(2t) - f(t)) / t = l + 3 s t,  (f(4t) - f(2t)) / 2t = l + 6 s t
    first, second = (b - a) / step, (c - b) / (2 * step)
    square = max(0.0, (second - first) / (3 * step))
    return Kept(max(0.0, first - 3 * step * square), square, sum(_shape(trunk)[0] for trunk in trunks))


def gradient_bytes(optimizer: AdamW) -> float:
    """Bytes of all gradients of what it trains; of this process's pieces where they are sharded."""
    return float(sum(local(p).numel() * (p.grad_dtype or p.dtype).itemsize for p in optimizer.params))


def cache_bytes(model: CausalLM, slots: int, length: int) -> float:
    """Bytes of the keys and values of so many rows side by side; 0 where the model does not say what it needs."""
    layers, heads, of_head = _shape(model)
    return float(2 * slots * length * layers * heads * of_head * next(model.parameters()).element_size())


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
    """Bytes that this process may hold in all; processes on one machine share what is free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    held = _of_process("VmRSS")
    return held + max(0.0, _free(held)) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def write(folder: Path, planned: MemoryPlan, device: torch.device) -> None:
    """memory.json of a run folder: the plan beside what it became, in bytes."""
    found = {**asdict(planned), "planned": planned.total, "peak": peak(device), "device": device.type}
    replace_text(folder / "memory.json", json.dumps(found, indent=1) + "\n")


def _pass(model: nn.Module, rows: int, longest: int) -> float:
    """Bytes of a pass over so many rows at their most: what is kept, and what lives for a moment in backward."""
    found = kept(model)
    logits = min(_LOGITS, rows * longest * model.vocab_size * 4) if isinstance(model, CausalLM) else 0
    with _recomputing_nothing(model) as recomputed:
        # What is recomputed stands whole while its layer's gradient is computed.
        moment = (1 + _MOMENTARY) * kept(model).of_layer(longest) if recomputed else 0.0
    moment = rows * (moment or _MOMENTARY * found.of_layer(longest))
    return rows * found.of(longest) + logits + max(float(logits), moment)


@contextmanager
def _recomputing_nothing(model: nn.Module) -> Iterator[bool]:
    """Activation checkpointing switched off meanwhile. -> whether it was on."""
    on = [trunk for trunk in _trunks(model) if trunk.checkpoint_activations]
    for trunk in on:
        trunk.checkpoint_activations = False
    try:
        yield bool(on)
    finally:
        for trunk in on:
            trunk.checkpoint_activations = True


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
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids_BT, **rows)
    return float(sum(found.values()))


def _trunks(model: nn.Module) -> list[Any]:
    if isinstance(model, RewardEnsemble):
        return [trunk for member in model.members for trunk in _trunks(member)]
    return [model.backbone if isinstance(model, RewardModel | ValueModel) else model]


def _shape(trunk: Any) -> tuple[int, int, int]:
    """Layers, key/value heads and size of a head; (1, 0, 0) where the model does not say."""
    if isinstance(trunk, Transformer):
        return trunk.config.layers, trunk.config.kv_heads, trunk.config.head_dim
    c = trunk.hf.config.get_text_config()  # whose names mean the same for every family
    heads = getattr(c, "num_attention_heads", None) or 0
    of_head = getattr(c, "head_dim", None) or (c.hidden_size // heads if heads else 0)
    return getattr(c, "num_hidden_layers", None) or 1, getattr(c, "num_key_value_heads", None) or heads, of_head


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


def _free(held: float) -> float:
    """Bytes that the machine, and the control groups this process lives in, can still give."""
    free = float("inf")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            free = float(line.split()[1]) * 1024
    for group in _control_groups():
        limit, used = _lines(f"{group}/memory.max"), _lines(f"{group}/memory.current")
        if limit and used and limit[0] != "max":
            # What was read from files counts as used until somebody needs the room.
            files = [line.split()[1] for line in _lines(f"{group}/memory.stat") if line.startswith("inactive_file ")]
            free = min(free, float(limit[0]) - float(used[0]) + sum(map(float, files)))
    return free if free != float("inf") else float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) - held


def _control_groups() -> list[str]:
    """Folders of this process's control group (version 2) and those around it."""
    own = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), "/")
    path = Path("/sys/fs/cgroup") / own.strip("/")
    return [str(folder) for folder in (path, *path.parents) if folder.is_relative_to("/sys/fs/cgroup")]


def _of_process(what: str) -> float:
    for line in _lines("/proc/self/status"):
        if line.startswith(what):
            return float(line.split()[1]) * 1024
    import resource  # no /proc: the peak stands for both

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
