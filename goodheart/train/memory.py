"""What training will take in memory, told before it starts, and beside it afterwards what it took.

What is there already (libraries, weights, optimizer states, data) is measured. What is still to come is foretold: the
gradients, the cache of keys and values that answers are generated with, and what a forward pass keeps for the backward
pass, measured on short rows and drawn out to the largest micro-batch. Where passes have no padding
(`models/packed.py`), that is counted on the rows themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from goodheart.data.batches import Example
from goodheart.models import native
from goodheart.models.causal import CausalLM, before
from goodheart.models.heads import RewardEnsemble, RewardModel, ValueModel
from goodheart.models.packed import kept_tokens
from goodheart.models.transformer import Transformer
from goodheart.train.checkpoint import TrainState
from goodheart.train.files import replace_text
from goodheart.train.held import available, peak, present
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import local

# Whose passes are measured; a value head on the policy's own states keeps next to nothing.
_NETWORKS = (CausalLM, RewardModel, RewardEnsemble, ValueModel)
_PROBE = 64  # tokens of the longest row that is measured
_LOOKED_AT = 32  # steps whose micro-batches are counted
# Logits of a pass that are kept, bytes; more are computed again in pieces (`losses/logprobs.py`).
_LOGITS = 4 * 2**24
# Code and buffers that the first step brings in on a CPU, bytes.
_FIRST_STEP = 24 * 2**20
# Of what the passes of each network take on a CPU, about so much again lies free in between, in pieces too small to be
# used: what is freed is kept for the next step (`held.keep_freed`), but where layers are computed again
# (`held.map_large`). What is counted on a GPU has no such pieces.
_SCATTERED = 0.1
# Of what a layer keeps for backward, about as much again lives for a moment while its gradient is computed.
_MOMENTARY = 0.5
# Not planned with: other programs, and what the estimate misses.
_RESERVE = 0.1


class Rows(Protocol):
    """What the steps of a run are made of."""

    def __getitem__(self, step: int, /) -> Sequence[int]: ...


@dataclass(frozen=True)
class Most:
    """The most that one step asks of one process.

    rows: in the step. longest: tokens of a row. together: rows that no micro-batch can part, all answers to a prompt.
    cache: bytes of keys and values while answers are generated.
    tokens, states: of the largest micro-batch, what `over` found; 0 = not looked at, every row is taken as the longest.
    """

    rows: int
    longest: int
    together: int = 1
    cache: float = 0.0
    tokens: int = 0
    states: int = 0

    def at_once(self, max_tokens: int) -> int:
        """Rows of the largest micro-batch."""
        return max(self.together, min(self.rows, max_tokens // self.longest))

    def over(self, pieces: Iterable[Sequence[Example]]) -> Most:
        """With the largest of these micro-batches: its tokens without padding, what rows share once, and how many of
        them are learnt from.
        """
        found = [(kept_tokens([each.ids for each in piece]), sum(sum(each.mask) for each in piece)) for piece in pieces]
        tokens, states = zip(*found, strict=True) if found else ((0,), (0,))
        return replace(self, tokens=max(tokens), states=max(states))


def looked_at(order: Rows, steps: int, lengths: Sequence[int]) -> list[list[int]]:
    """Rows of some steps of a run, which stand for all: few tell what a step usually is, and the longest row, which may
    be in any, is put into one more.

    order: step -> its rows. lengths: of all rows.
    """
    found = [list(order[i * steps // _LOOKED_AT if steps > _LOOKED_AT else i]) for i in range(min(steps, _LOOKED_AT))]
    if found:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        found.append([longest, *(row for row in found[0] if row != longest)][: len(found[0])])
    return found


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
    """Bytes that a pass keeps for backward: `linear` for each token, `square` for each pair of tokens of a row, `state`
    for each state that is asked for; and of how many layers that is.
    """

    linear: float
    square: float
    state: float
    layers: int

    def of(self, tokens: float, states: float | None = None, longest: float | None = None) -> float:
        """states: None = one of each token. longest: of the rows they are in; None = they are one row."""
        asked = tokens if states is None else states
        return self.linear * tokens + self.square * tokens * (longest or tokens) + self.state * asked

    def of_layer(self, tokens: float, longest: float | None = None) -> float:
        """One layer, all of whose states go on."""
        return self.of(tokens, longest=longest) / self.layers


def plan(state: TrainState, device: torch.device, most: Most, max_tokens: int) -> MemoryPlan:
    """What steps with the networks and optimizers of this state will take."""
    rows = most.at_once(max_tokens)
    passes, scattered, gradients = 0.0, 0.0, 0.0
    for thing in state.things().values():
        if isinstance(thing, AdamW):
            gradients += gradient_bytes(thing)
        elif isinstance(thing, _NETWORKS) and any(p.requires_grad for p in thing.parameters()):
            # Networks that are trained beside each other are passed one after the other.
            taken = _pass(thing, rows, most)
            again = any(trunk.checkpoint_activations for trunk in _trunks(thing))
            passes, scattered = max(passes, taken), scattered + (0.0 if again else _SCATTERED * taken)
    passes += scattered + _FIRST_STEP if device.type == "cpu" else 0.0
    return MemoryPlan(
        present(device), gradients, passes, most.cache, rows, most.longest, most.together, available(device)
    )


def kept(model: nn.Module) -> Kept:
    """What passes of this model keep, measured on rows of a quarter, a half and the whole of `_PROBE` tokens.

    A line and a square through three points: attention that keeps its weights grows with the square. And of rows of
    which one state is asked for, the difference to all.
    """
    trunks = _trunks(model)
    most = min([_PROBE, *(trunk.max_length for trunk in trunks if trunk.max_length is not None)])
    step = max(1, most // 4)
    a, b, c = (sum(_saved(trunk, step * times, 1) for trunk in trunks) for times in (1, 2, 4))
    # f(t) = k + l t + s t^2:  (f(2t) - f(t)) / t = l + 3 s t,  (f(4t) - f(2t)) / 2t = l + 6 s t
    first, second = (b - a) / step, (c - b) / (2 * step)
    square = max(0.0, (second - first) / (3 * step))
    every = max(0.0, sum(_saved(trunk, 4 * step, 4 * step) for trunk in trunks) - c) / max(1, 4 * step - 2)
    return Kept(max(0.0, first - 3 * step * square), square, every, sum(_shape(trunk)[0] for trunk in trunks))


def gradient_bytes(optimizer: AdamW) -> float:
    """Bytes of all gradients of what it trains; of this process's pieces where they are sharded."""
    return float(sum(local(p).numel() * (p.grad_dtype or p.dtype).itemsize for p in optimizer.params))


def cache_bytes(model: CausalLM, slots: int, length: int) -> float:
    """Bytes of the keys and values of so many rows side by side; 0 where the model does not say what it needs."""
    layers, heads, of_head = _shape(model)
    return float(2 * slots * length * layers * heads * of_head * next(model.parameters()).element_size())


def write(folder: Path, planned: MemoryPlan, device: torch.device) -> None:
    """memory.json of a run folder: the plan beside what it became, in bytes."""
    found = {**asdict(planned), "planned": planned.total, "peak": peak(device), "device": device.type}
    replace_text(folder / "memory.json", json.dumps(found, indent=1) + "\n")


def _pass(model: nn.Module, rows: int, most: Most) -> float:
    """Bytes of a pass over the largest micro-batch: what is kept, and what lives for a moment in backward."""
    trunks = _trunks(model)
    packs = all(isinstance(trunk, Transformer) and trunk.packs() for trunk in trunks)
    tokens = most.tokens if packs and most.tokens else rows * most.longest
    states = most.states or tokens
    logits, gradient = _logits(model, states) if isinstance(model, CausalLM) else (0.0, 0.0)
    asked = states if isinstance(model, CausalLM | ValueModel) else rows  # a reward model scores last tokens alone
    keeps = kept(model)
    through = keeps.of(tokens, asked, most.longest) + logits
    with _recomputing_nothing(model) as recomputed:
        if not recomputed:
            return through + max(gradient, _MOMENTARY * keeps.of_layer(tokens, most.longest))
        # A layer stands whole while its gradient is computed; then nothing is left of what is above it.
        layer = (1 + _MOMENTARY) * kept(model).of_layer(tokens, most.longest)
    return max(through + gradient, keeps.of(tokens, 0, most.longest) + layer)


def _logits(model: CausalLM, states: int) -> tuple[float, float]:
    """Bytes of the logits that are kept, and of their gradient, which in C is made piece by piece."""
    whole = float(4 * states * model.vocab_size)
    in_c = native.takes(next(model.parameters()))
    return whole if whole <= _LOGITS else 0.0, 0.0 if in_c else min(float(_LOGITS), whole)


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


def _saved(trunk: nn.Module, length: int, states: int) -> float:
    """Bytes of everything that one row's forward pass keeps, weights left out. states: that are asked for, the last."""
    weights = {p.untyped_storage().data_ptr() for p in trunk.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # lest an address be used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    device = next(trunk.parameters()).device
    ids_BT = torch.zeros(1, length, dtype=torch.long, device=device)
    lengths_B = torch.tensor([length], device=device)
    mask_BT = (torch.arange(length) >= length - states).to(device)[None]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if isinstance(trunk, CausalLM):
            pack(trunk(ids_BT, kept_N=before(mask_BT), lengths_B=lengths_B))  # kept by the loss
        else:  # an encoder
            trunk(ids_BT, lengths_B)
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


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
