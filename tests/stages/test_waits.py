"""A micro-batch asks nothing of a GPU that it would have to be waited for: forward and backward run ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from goodheart.data.batches import Example, pad
from goodheart.data.examples import Compared
from goodheart.losses import logprobs
from goodheart.models.heads import reward_from_causal
from goodheart.models.load import load_causal
from goodheart.models.transformer import Transformer
from goodheart.stages.labels import LabelBatch
from goodheart.stages.references import answer_logps
from goodheart.train.language_model import next_token_loss
from tests.waits import Waits

CPU = torch.device("cpu")
ROWS = [Example([5, 6, 7, 8], [False, True, False, True]), Example([9, 10], [False, True])]


def demonstrations(folder: Path) -> Callable[[], torch.Tensor]:
    model, batch = load_causal(folder), pad(ROWS, 0)
    return lambda: next_token_loss(model, batch, 3)[0]


def several_in_a_row(folder: Path) -> Callable[[], torch.Tensor]:
    model, batch = load_causal(folder), pad([ROWS, ROWS[:1]], 0)
    return lambda: next_token_loss(model, batch, 5)[0]


def labels() -> LabelBatch:
    two, three = Compared(tuple(ROWS), (0, 1)), Compared((*ROWS, ROWS[0]), (0, 1, 2))
    return LabelBatch([two, three], torch.ones(2, 1), 0, CPU)


def comparisons(folder: Path) -> Callable[[], torch.Tensor]:
    model, batch = load_causal(folder), labels()
    return lambda: batch.laid(answer_logps(model, batch)[0]).sum()


def scores(folder: Path) -> Callable[[], torch.Tensor]:
    model, batch = reward_from_causal(load_causal(folder)), labels()
    return lambda: batch.scores(model).sum()


@pytest.mark.parametrize("made", [demonstrations, several_in_a_row, comparisons, scores])
def test_a_micro_batch_waits_for_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], Callable[[], torch.Tensor]]
) -> None:
    # As on a GPU: padded, and without the look at ids that only the CPU takes.
    monkeypatch.setattr(Transformer, "packs", lambda self: False)
    monkeypatch.setattr(logprobs, "_check", lambda *args: None)
    loss_of = made(tiny_model)
    with Waits() as waits:
        loss_of().backward()
    assert waits.count == 0


def test_waits_are_counted() -> None:
    x, mask = torch.arange(4.0, requires_grad=True), torch.tensor([True, False, True, False])
    for act in (lambda: x.sum().item(), mask.nonzero, lambda: x[mask], lambda: x.new_zeros(4).masked_scatter(mask, x)):
        with Waits() as waits:
            made = act()
            if isinstance(made, torch.Tensor) and made.requires_grad:
                made.sum().backward()
        assert waits.count > 0
