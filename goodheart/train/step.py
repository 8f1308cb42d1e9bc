"""One optimizer step, the same for every method: micro-batches in, metrics out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from goodheart.errors import HealthError
from goodheart.losses.metrics import MetricSums
from goodheart.train.fitting import until_it_fits
from goodheart.train.optimizer import AdamW, clip_grad_norm
from goodheart.train.parallel import World
from goodheart.train.profile import part

# Rows that an error names.
_MOST_ROWS = 16

MicroBatch = TypeVar("MicroBatch")
Part = tuple[Tensor, MetricSums]
# A loss, or its parts one after the other: each is differentiated before the next is asked for, so that the graphs of
# two separate networks never stand in memory together.
LossFn = Callable[[MicroBatch], Part | Iterable[Part]]


def train_step(
    world: World,
    optimizer: AdamW | Sequence[AdamW],
    micro_batches: Iterable[MicroBatch],
    loss_fn: LossFn[MicroBatch],
    *,
    lr: float | Sequence[float] | None = None,
    max_grad_norm: float | None = 1.0,
    params: Iterable[nn.Parameter] | None = None,
    step: int | None = None,
    name_rows: Callable[[MicroBatch], Iterable[str]] | None = None,
) -> dict[str, float]:
    """Forward and backward for each micro-batch, one sum over all processes, clip, update.

    The update does not depend on how the rows were split, as long as `loss_fn` divides by counts of the whole step over
    all processes. A process may have no micro-batch at all (with FSDP it needs one). Micro-batches that do not fit the
    memory are halved, here and in the steps to come; the metric `memory/halvings` then tells how often.

    Args:
        world: the processes.
        optimizer: one or several; several are clipped by one joint norm and updated together.
        micro_batches: this process's part of the batch.
        loss_fn: micro-batch -> loss (already divided by the global count), metric sums.
        lr: rate of this step; one per optimizer where several are given. None = the rates they were built with.
        max_grad_norm: None = no clipping.
        params: whose gradients are summed and clipped; None = all that the optimizers train.
        step: number of the step, for messages.
        name_rows: `file:line` of every row of a micro-batch, or what else a reader would look for; called when a loss
            or the gradient norm is not finite. None = their numbers.

    Returns:
        Metrics over all micro-batches and processes (sum over count), and `loss` (unless `loss_fn` gives one),
        `grad_norm` before clipping, `learning_rate`.

    Raises:
        HealthError: a loss or the gradient norm is not finite. Weights and optimizers are as before the step.
    """
    optimizers = [optimizer] if isinstance(optimizer, AdamW) else list(optimizer)
    rates = [lr] * len(optimizers) if lr is None or isinstance(lr, float | int) else list(lr)
    trained = [p for o in optimizers for p in o.params] if params is None else list(params)
    try:
        with part("micro-batches laid out"):
            pieces = list(micro_batches)
        pieces, losses, sums = until_it_fits(
            world, pieces, lambda them: (them, *_backward(world, them, loss_fn)), trained
        )
        metrics = _combine(world, pieces, losses, sums, step, name_rows)
        if world.halvings:
            metrics["memory/halvings"] = float(world.halvings)
        with part("gradients summed and clipped"):
            world.sync_gradients(trained)
            try:
                metrics["grad_norm"] = clip_grad_norm(trained, max_grad_norm, world, step=step)
            except HealthError as error:
                raise HealthError(f"{error} Rows of this step{_listed(pieces, name_rows)}") from error
        with part("optimizer"):
            for each, rate in zip(optimizers, rates, strict=True):
                each.step(rate)
    finally:
        for each in optimizers:
            each.zero_grad()
    metrics["learning_rate"] = optimizers[0].learning_rate if rates[0] is None else float(rates[0])
    return metrics


def _backward(
    world: World, pieces: list[MicroBatch], loss_fn: LossFn[MicroBatch]
) -> tuple[list[Tensor], list[MetricSums]]:
    losses: list[Tensor] = []
    sums: list[MetricSums] = []
    for piece, counts in world.same_passes(pieces):
        parts: list[Tensor] = []
        for loss, metrics in _parts(loss_fn, piece):
            if counts:
                # Kept values must not keep the graph, and with it every activation, alive.
                parts.append(loss.detach())
                sums.append(metrics)
            else:
                loss = loss * 0.0
            with part("backward"):
                loss.backward()
            # The name would keep the graph until the next part or micro-batch has built its own.
            del loss
        if counts:
            losses.append(torch.stack(parts).sum())
    return losses, sums


def _parts(loss_fn: LossFn[MicroBatch], piece: MicroBatch) -> Iterator[Part]:
    """The loss, or its parts, each computed when it is asked for."""
    with part("forward"):
        made = loss_fn(piece)
    if isinstance(made, tuple):
        yield made
        return
    parts = iter(made)
    while True:
        with part("forward"):
            one = next(parts, None)
        if one is None:
            return
        yield one
        del one  # its graph must not stand in memory while the next is built


def _combine(
    world: World,
    pieces: list[Any],
    losses: list[Tensor],
    sums: list[MetricSums],
    step: int | None,
    name_rows: Callable[[Any], Iterable[str]] | None,
) -> dict[str, float]:
    """Sums and counts of all micro-batches and processes, divided once; raises on all processes when one has a NaN."""
    own = [float(loss) for loss in _to_host(losses)]
    bad = next((i for i, loss in enumerate(own) if not math.isfinite(loss)), None)
    problem = None
    if bad is not None:
        problem = _complaint(world, bad, len(pieces), own[bad], _listed([pieces[bad]], name_rows), step)
    everywhere = world.gather_objects((own, _totals(sums), problem))
    problems = [problem for _, _, problem in everywhere if problem is not None]
    if problems:
        raise HealthError("\n".join(problems))
    totals: dict[str, tuple[float, float]] = {}
    for _, each, _ in everywhere:
        for name, (total, count) in each.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total, before[1] + count)
    loss = sum(loss for losses_of_rank, _, _ in everywhere for loss in losses_of_rank)
    return {"loss": loss} | {name: total / count for name, (total, count) in totals.items() if count}


def _totals(sums: list[MetricSums]) -> dict[str, tuple[float, float]]:
    """Sum and count of each metric over this process's micro-batches."""
    entries = [(name, total, count) for each in sums for name, (total, count) in each.items()]
    numbers = _to_host([value for _, total, count in entries for value in (total, count)])
    totals: dict[str, tuple[float, float]] = {}
    for (name, _, _), total, count in zip(entries, numbers[::2], numbers[1::2], strict=True):
        before = totals.get(name, (0.0, 0.0))
        totals[name] = (before[0] + total, before[1] + count)
    return totals


def _to_host(values: list[Tensor | float] | list[Tensor]) -> list[float]:
    """Numbers of 0-d tensors, fetched from the device in one wait."""
    tensors = [value.detach().double().reshape(()) for value in values if isinstance(value, Tensor)]
    fetched = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(fetched) if isinstance(value, Tensor) else float(value) for value in values]


def _complaint(world: World, index: int, of: int, loss: float, rows: str, step: int | None) -> str:
    where = f"step {step}, " * (step is not None) + f"micro-batch {index + 1} of {of}"
    where += f", process {world.rank}" * (world.size > 1)
    return (
        f"{where}: the loss is {loss}, so the update was not made. Look at its rows; if they are sound, lower "
        f"learning_rate or use dtype float32, and start again under another --out. Rows{rows}"
    )


def _listed(pieces: list[Any], name_rows: Callable[[Any], Iterable[str]] | None) -> str:
    names: list[str] = []
    for piece in pieces:
        if len(names) >= _MOST_ROWS:
            return f": {', '.join(names[:_MOST_ROWS])} and others"
        rows = getattr(piece, "rows", piece)
        if name_rows is not None:
            names += name_rows(piece)
        elif isinstance(rows, list | tuple | range):
            names += map(str, rows)
    return f": {', '.join(names[:_MOST_ROWS]) or 'not known'}" + " and others" * (len(names) > _MOST_ROWS)
