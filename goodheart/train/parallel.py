"""Processes and devices: the only file that talks to `torch.distributed`.

Single process is the default and needs no process group. Under `torchrun` every process builds the same model with the
same seed, works on its own rows, and divides its losses by the token count of all rows; so gradients are SUMMED over
the processes, never averaged, and any number of processes and micro-batches gives the same update.

    ddp    every process holds the whole model; gradients are summed once per step
    fsdp   weights, gradients and optimizer state are cut into one piece per process (FSDP2)
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Literal, TypeVar, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from goodheart.errors import ConfigError
from goodheart.train.held import keep_freed

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

# Gradients travel in flat buffers of about this size: large enough to fill a link, small enough to stay cheap.
_BUCKET_BYTES = 32 * 2**20
# A process that died must not leave the others waiting for ever.
_TIMEOUT = timedelta(minutes=30)


@dataclass
class World:
    """How many processes train together, which one this is, and the device it works on."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device is immutable)

    halvings: int = 0  # how often micro-batches were halved because memory did not suffice

    _sharded: bool = field(default=False, repr=False)
    _dtypes: WeakKeyDictionary[nn.Module, dict[str, torch.dtype]] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )
    _current: ClassVar[World | None] = None

    @classmethod
    def start(cls, device: str = "auto", *, timeout: timedelta = _TIMEOUT) -> World:
        """Joins the processes that `torchrun` started, or stands alone without it.

        Args:
            device: auto (a GPU where there is one), cpu, cuda, cuda:1.
            timeout: how long a process waits for the others before it gives up.

        Raises:
            ConfigError: the device is not there.
        """
        size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        world = cls(rank, size, local_rank, _device(device, local_rank, size))
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        else:
            # On CPU with several threads, adding into an indexed tensor is otherwise done in any order, and a resumed
            # run would differ in the last bits. The public switch imports the compiler (2 s), so its C half is called.
            torch._C._set_deterministic_algorithms(True, warn_only=True)
            keep_freed()
            # Otherwise that mode also fills every new tensor with NaN, a debugging aid that costs time.
            torch._C._set_deterministic_fill_uninitialized_memory(False)
        if size > 1 and not _dist().is_initialized():
            backend = "nccl" if world.device.type == "cuda" else "gloo"
            _dist().init_process_group(backend, rank=rank, world_size=size, timeout=timeout)
            atexit.register(world.close)
        cls._current = world
        return world

    @classmethod
    def current(cls) -> World:
        """The world that was started last, or a single process."""
        return cls._current or cls()

    def close(self) -> None:
        """Leaves the process group; safe to call twice."""
        if self.size > 1 and _dist().is_initialized():
            _dist().destroy_process_group()
        World._current = None

    def leave(self, code: int) -> None:
        """Ends one of several processes with this exit status; alone, does nothing.

        Threads of torch's process groups now and then abort a process that ends in the ordinary way, after its work is
        done; torchrun would take that for a failure.
        """
        if self.size > 1:
            self.close()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @property
    def sharded(self) -> bool:
        """Whether a model is cut into pieces, so that every pass needs all processes."""
        return self._sharded

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files."""
        return self.rank == 0

    @overload
    def sum(self, value: Tensor) -> Tensor: ...
    @overload
    def sum(self, value: float) -> float: ...
    def sum(self, value: Tensor | float) -> Tensor | float:
        """Sum over all processes, the same on each; numbers travel as float64."""
        return self._reduce(value, "SUM")

    @overload
    def max(self, value: Tensor) -> Tensor: ...
    @overload
    def max(self, value: float) -> float: ...
    def max(self, value: Tensor | float) -> Tensor | float:
        """Largest value over all processes, the same on each."""
        return self._reduce(value, "MAX")

    def gather_objects(self, value: T) -> list[T]:
        """One small object of each process, in order of rank, on every process."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        _dist().all_gather_object(gathered, value)
        return gathered

    def broadcast_object(self, value: T) -> T:
        """The main process's object on every process."""
        if self.size == 1:
            return value
        box = [value]
        _dist().broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.size > 1:
            self.sum(0.0)

    def shard(self, indices: Sequence[T]) -> list[T]:
        """This process's part of a batch: every `size`-th entry, so that a length-sorted batch is shared evenly."""
        return list(indices[self.rank :: self.size])

    def prepare(self, model: M, mode: Literal["ddp", "fsdp"] = "ddp") -> M:
        """Moves the model to the device and makes it ready for several processes. Call before `build_optimizer`.

        ddp copies the main process's weights to all; fsdp cuts each layer, and the rest as one unit, into pieces in
        place (parameters become `DTensor`s). Alone, both only move the model.
        """
        model.to(self.device)
        if self.size == 1:
            return model
        tensors = [*model.parameters(), *model.buffers()]
        for tensor in tensors:
            _dist().broadcast(tensor.data, src=0)
        if mode == "fsdp":
            self._dtypes[model] = {name: tensor.dtype for name, tensor in model.state_dict().items()}
            _fully_shard(model, self.device)
            self._sharded = True
        return model

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """The model's state dict with whole tensors, for saving; on the main process alone (empty on the others)."""
        state: dict[str, Tensor] = {}
        dtypes = {
            f"{path}.{name}".removeprefix("."): dtype
            for path, module in model.named_modules()  # an ensemble's members were made ready one by one
            for name, dtype in self._dtypes.get(module, {}).items()
        }
        for name, tensor in model.state_dict().items():
            # Gathered one by one and let go at once where it is not needed.
            gathered = full(tensor.detach())
            if self.is_main:
                state[name] = gathered.to(dtypes.get(name, gathered.dtype))
        yield state

    def same_passes(self, pieces: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This process's pieces of work, and whether each counts.

        FSDP's processes fetch each other's weights in every pass, so all must make the same number of passes: a process
        with fewer pieces gets its last one again, or another process's where it has none, marked False. Otherwise the
        pieces come as they are.
        """
        extra: list[T] = []
        if self._sharded:
            lengths = self.gather_objects(len(pieces))
            lender = lengths.index(max(lengths))
            lent = list(pieces[-1:])
            if min(lengths) == 0:
                everyones = self.gather_objects(lent)
                lent = lent or everyones[lender]
            extra = lent * (max(lengths) - len(pieces))
        yield from ((piece, True) for piece in pieces)
        yield from ((piece, False) for piece in extra)

    def sync_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Sums `.grad` over all processes, in place; a process without a gradient counts as zero.

        Parameters that no process has a gradient for keep none, so the optimizer skips them as in one process.
        FSDP's pieces are left alone: their backward pass has summed them.
        """
        if self.size == 1:
            return
        whole = [p for p in params if p.requires_grad and not is_sharded(p)]
        if not whole:
            return
        present = torch.tensor([p.grad is not None for p in whole], dtype=torch.float32, device=self.device)
        present = self.sum(present)
        used = [p for p, count in zip(whole, present.tolist(), strict=True) if count > 0]
        for p in used:
            if p.grad is None:
                p.grad = torch.zeros_like(p, dtype=p.grad_dtype or p.dtype)
        for bucket in _buckets([p.grad for p in used if p.grad is not None]):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            _dist().all_reduce(flat)
            parts = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])

    def _reduce(self, value: Tensor | float, operation: str) -> Tensor | float:
        if self.size == 1:
            return value
        op = getattr(_dist().ReduceOp, operation)
        if isinstance(value, Tensor):
            total = value.detach().clone()
            _dist().all_reduce(total, op=op)
            return total
        number = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        _dist().all_reduce(number, op=op)
        return float(number)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is FSDP's piece of a tensor (a `DTensor`); asked without importing it, which takes a second."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The numbers that this process holds: its piece of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """The whole tensor on every process; all processes must call it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def copy_full_(target: Tensor, whole: Tensor) -> None:
    """Writes a whole tensor into `target`, each process taking its own piece when that is sharded."""
    if not is_sharded(target):
        target.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    piece = distribute_tensor(whole.to(local(target).device), mesh, placements, src_data_rank=None)
    local(target).copy_(local(piece))


def _device(name: str, local_rank: int, size: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: this machine has no usable GPU; use device cpu or auto")
    index = local_rank if size > 1 else device.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device cuda:{index} is not there; this machine has {torch.cuda.device_count()} GPU(s)")
    return torch.device("cuda", index)


def _buckets(grads: list[Tensor]) -> list[list[Tensor]]:
    """Gradients grouped by dtype, in order, into buckets of about `_BUCKET_BYTES`."""
    buckets: list[list[Tensor]] = []
    open_buckets: dict[torch.dtype, tuple[list[Tensor], int]] = {}
    for grad in grads:
        bucket, filled = open_buckets.get(grad.dtype, ([], _BUCKET_BYTES))
        if filled >= _BUCKET_BYTES:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append(grad)
        open_buckets[grad.dtype] = (bucket, filled + grad.numel() * grad.element_size())
    return buckets


def _fully_shard(model: nn.Module, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (_dist().get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(**_widen(layer)))
    # The root unit (embedding, final norm, output layer) stays whole after forward, because the loss reads the output
    # layer's weight outside it.
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(**_widen(model)), reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by global counts already, so gradients are summed and not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _widen(unit: nn.Module) -> dict[str, Any]:
    """Turns a unit's trained weights to float32 and returns the precision that keeps its arithmetic as it was.

    FSDP gathers gradients in the dtype of the pieces; bfloat16 would round at every micro-batch. So the pieces are the
    master weights, and what is fetched for a pass is narrow.
    """
    trained = [p for p in unit.parameters() if p.requires_grad and not is_sharded(p)]
    dtypes = {p.dtype for p in trained}
    precision: dict[str, Any] = {"reduce_dtype": torch.float32, "cast_forward_inputs": False}
    if len(dtypes) != 1 or dtypes == {torch.float32}:
        return precision
    for p in trained:
        p.data = p.data.float()
    return precision | {"param_dtype": dtypes.pop()}


def _layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of the largest module list: a transformer's layers, whatever they are called."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    sizes = [sum(p.numel() for p in m.parameters()) for m in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def _dist() -> Any:
    import torch.distributed as dist

    return dist
