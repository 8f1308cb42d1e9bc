"""Forward and backward passes that do not fit the memory are begun again with smaller micro-batches.

An update is a sum over rows, however they are split, so it is the same but for rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from goodheart.errors import HealthError
from goodheart.train.parallel import World

_ADVICE = "Set activation_checkpointing: true or lora, lower max_length, or take a larger device."
_FITS, _TOO_LARGE, _HOPELESS = 0.0, 1.0, 2.0

T = TypeVar("T")
R = TypeVar("R")


def until_it_fits(world: World, pieces: list[T], run: Callable[[list[T]], R], params: Iterable[nn.Parameter]) -> R:
    """What `run` makes of the pieces; where memory does not suffice, of their halves, and so on.

    What was found stays in `world.halvings`, so that the next step begins with pieces that fit.

    Args:
        world: the processes; all halve together.
        pieces: micro-batches; only lists can be halved.
        run: forward and backward over the pieces it is given.
        params: their gradients are dropped before it is begun again.

    Raises:
        HealthError: out of memory with pieces that cannot be halved, or under FSDP, whose processes wait for each other
            within a pass.
    """
    while True:
        smaller = halved(pieces, world.halvings)
        done: R | None = None
        problem: BaseException | None = None
        try:
            done = run(smaller)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if world.sharded:
                raise HealthError(f"out of memory under fsdp: lower max_tokens. {_ADVICE} ({error})") from error
            problem = error.with_traceback(None)  # whose frames hold what should be freed
        if world.size == 1 and problem is None:
            return done  # type: ignore[return-value]
        verdict = _FITS
        if problem is not None:
            verdict = _HOPELESS if smaller == halved(smaller, 1) else _TOO_LARGE
        verdict = world.max(verdict)
        if verdict == _HOPELESS:
            raise HealthError(f"out of memory with single rows: max_tokens does not help. {_ADVICE} ({problem})")
        if verdict == _FITS:
            return done  # type: ignore[return-value]
        done = None
        for param in params:
            param.grad = None
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        world.halvings += 1


def halved(pieces: list[T], times: int) -> list[T]:
    """Every list in two, so many times; a list of one stays. Other things stay as they are."""
    for _ in range(times):
        pieces = [half for piece in pieces for half in _halves(piece)]
    return pieces


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises when the device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _halves(piece: Any) -> list[Any]:
    if not isinstance(piece, list) or len(piece) < 2:
        return [piece]
    middle = (len(piece) + 1) // 2
    return [piece[:middle], piece[middle:]]
