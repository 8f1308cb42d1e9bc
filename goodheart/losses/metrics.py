"""Metrics as sums and counts, so that micro-batches and processes combine to the exact mean.

A mean of means is wrong as soon as two micro-batches hold different numbers of tokens;
a loss therefore returns for each metric the sum over what it masked and the count of that, and the division happens
once, at the end:

    sums = MetricSums()
    for batch in micro_batches:
        loss, metrics = ppo_policy_loss(...)
        sums |= metrics
    sums.means(world.sum)  # {"policy/clipfrac_avg": 0.07, ...} over all micro-batches of all processes
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView

import torch
from torch import Tensor

# Sums a tensor over all processes and returns the same total on each; one process needs none.
Reduce = Callable[[Tensor], Tensor]


class MetricSums:
    """Named (sum, count) pairs; everything kept is detached, so no graph stays alive."""

    def __init__(self) -> None:
        self._pairs: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Adds a sum and how many things it sums to a metric."""
        before, counted = self._pairs.get(name, (0.0, 0.0))
        self._pairs[name] = (before + _detached(total), counted + _detached(count))

    def add_masked(self, mask: Tensor, values: dict[str, Tensor]) -> None:
        """Adds values of the mask's shape, summed where it is set."""
        count = mask.sum()
        for name, value in values.items():
            self.add(name, torch.where(mask, value.detach(), 0).sum(), count)

    def items(self) -> ItemsView[str, tuple[Tensor | float, Tensor | float]]:
        """Name -> (sum, count), in the order the metrics were first added."""
        return self._pairs.items()

    def __or__(self, other: MetricSums) -> MetricSums:
        """Both together; the sums and counts of a name in both are added."""
        both = MetricSums()
        for each in (self, other):
            for name, (total, count) in each.items():
                both.add(name, total, count)
        return both

    def means(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Sum over count of each metric; those that counted nothing are left out.

        reduce: sums a float64 tensor over all processes, which must hold the same names in the same order
        (None = this process alone). One wait for the device, one message between processes.
        """
        values = [value for pair in self._pairs.values() for value in pair]
        if not values:
            return {}
        device = next((value.device for value in values if isinstance(value, Tensor)), None)
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
        if reduce is not None:
            numbers = reduce(numbers)
        pairs = zip(self._pairs, numbers.reshape(-1, 2).tolist(), strict=True)
        return {name: total / count for name, (total, count) in pairs if count}


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value
