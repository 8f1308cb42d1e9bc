"""The loop that pre-training and supervised fine-tuning share: next-token loss on the marked tokens.

Letters: B rows, T time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from goodheart.data.batches import Batch, Example, epoch_order, micro_batches, pack, pad
from goodheart.data.examples import Prepared
from goodheart.losses.metrics import MetricSums
from goodheart.models.causal import CausalLM, completion_logprobs
from goodheart.train.config import TrainingSettings
from goodheart.train.memory import Most, looked_at
from goodheart.train.optimizer import lr_at, optimizer_for
from goodheart.train.session import Session
from goodheart.train.step import train_step

_MOST_NATS = 700.0  # exp of more is no float


@dataclass
class Rows:
    """Packed or single examples: what one row of a batch is made of."""

    groups: list[list[Example]]  # each inner list shares one row
    packed: bool
    pad_id: int
    lengths: list[int]  # tokens of each row
    where: Callable[[int], str]  # file and line of an example, by its `row`

    @classmethod
    def of(cls, prepared: Prepared[Example], *, packed: bool, max_length: int, pad_id: int) -> Rows:
        groups = pack(prepared.items, max_length) if packed else [[e] for e in prepared.items]
        return cls(groups, packed, pad_id, [sum(map(len, group)) for group in groups], prepared.where)

    def names(self, indices: Sequence[int]) -> list[str]:
        """File and line of everything in these rows."""
        return [self.where(example.row) for i in indices for example in self.groups[i]]

    def trained_tokens(self, indices: Sequence[int]) -> int:
        return sum(sum(e.mask) for i in indices for e in self.groups[i])

    def pieces(self, indices: Sequence[int], max_tokens: int) -> list[list[int]]:
        """These rows in micro-batches."""
        return [[indices[i] for i in piece] for piece in micro_batches([self.lengths[i] for i in indices], max_tokens)]

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        groups = [self.groups[i] for i in indices]
        made = pad(groups, self.pad_id) if self.packed else pad([g[0] for g in groups], self.pad_id)
        return made.to(device)


def total_steps(rows: int, config: TrainingSettings) -> int:
    """Optimizer steps of a run: epochs over the rows, or `max_steps` where that is fewer."""
    steps = math.ceil(config.epochs * math.ceil(rows / config.batch_size))
    return max(1, min(steps, config.max_steps or steps))


class Order:
    """Which rows step N trains on: a pure function of the seed, so that a resumed run sees the same ones."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.per_epoch = math.ceil(len(self.lengths) / batch_size)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_order(self.lengths, self.batch_size, self.seed, epoch))
        return self._epoch[1][place]

    def metrics(self, step: int) -> dict[str, float]:
        """How far the run has come after a step (from 0)."""
        return {"epoch": (step + 1) / self.per_epoch}


def fit(
    session: Session,
    model: CausalLM,
    rows: Rows,
    held_out: Rows,
    config: TrainingSettings,
    label: str,
    eval_every: int | None = None,
) -> dict[str, float]:
    """Trains `model` on `rows` to the end of its budget, resuming where a checkpoint says.

    Args:
        rows: what to train on.
        held_out: what to measure the loss on before, during (`eval_every` steps) and after; may be empty.
        label: shown beside the progress bar.

    Returns:
        Held-out loss before and after in nats per token, and the perplexity after; empty without held-out rows.
    """
    total = total_steps(len(rows.groups), config)
    warmup = math.ceil(config.warmup_ratio * total)
    order = Order(rows.lengths, config.batch_size, config.seed)
    optimizer = optimizer_for(model.named_parameters(), config)
    session.state.add("model", model)
    session.state.add("optimizer", optimizer)
    before = mean_loss(session, model, held_out, config.max_tokens)

    steps = looked_at(order, total, rows.lengths)
    shares = [rows.pieces(session.world.shard(step), config.max_tokens) for step in steps]
    most = Most(math.ceil(config.batch_size / session.world.size), max(rows.lengths)).over(
        [example for i in piece for example in rows.groups[i]] for pieces in shares for piece in pieces
    )
    for step in session.steps(total, label, checkpoint_every=config.checkpoint_every, most=most):
        # 1. the rows of this step, and how many tokens they train over all processes
        indices = order[step]
        num_tokens = rows.trained_tokens(indices)
        mine = session.world.shard(indices)
        # 2. forward and backward in pieces that fit the memory, one optimizer step
        metrics = train_step(
            session.world,
            optimizer,
            rows.pieces(mine, config.max_tokens),
            partial(_piece_loss, session, model, rows, num_tokens),
            max_grad_norm=config.max_grad_norm,
            lr=optimizer.learning_rate * lr_at(step, total, warmup_steps=warmup, schedule=config.schedule),
            step=step + 1,
            name_rows=rows.names,
        )
        metrics |= {"tokens": num_tokens, **order.metrics(step)}
        # 3. look at rows the model never trains on
        if held_out.groups and eval_every and (step + 1) % eval_every == 0:
            metrics["eval/loss"] = mean_loss(session, model, held_out, config.max_tokens)
        if (step + 1) % config.log_every == 0 or step + 1 == total:
            session.log(step, metrics, shown=("loss", "eval/loss"))

    if not held_out.groups:
        return {}
    after = mean_loss(session, model, held_out, config.max_tokens)
    return {"eval/loss_before": before, "eval/loss": after, "eval/perplexity": math.exp(min(after, _MOST_NATS))}


def _piece_loss(
    session: Session, model: CausalLM, rows: Rows, num_tokens: int, piece: list[int]
) -> tuple[torch.Tensor, MetricSums]:
    return next_token_loss(model, rows.batch(piece, session.device), num_tokens)


def next_token_loss(model: CausalLM, batch: Batch, num_tokens: int) -> tuple[torch.Tensor, MetricSums]:
    """Mean negative log-likelihood of the marked tokens in nats: the sum here over the count of the whole step."""
    out = completion_logprobs(
        model,
        batch.ids_BT,
        batch.mask_BT,
        lengths_B=batch.lengths_B,
        positions_BT=batch.positions_BT,
        segments_BT=batch.segments_BT,
        kept_N=batch.kept_N,
    )
    total = -out.logps_BT.sum()
    sums = MetricSums()
    sums.add("loss", total.detach(), batch.mask_BT.sum())
    return total / num_tokens, sums


@torch.no_grad()
def mean_loss(session: Session, model: CausalLM, rows: Rows, max_tokens: int) -> float:
    """Nats per marked token over all rows."""
    mine = session.world.shard(list(range(len(rows.groups))))
    pieces = rows.pieces(mine, max_tokens)
    total, count = 0.0, 0
    for piece, counts in session.world.same_passes(pieces):
        batch = rows.batch(piece, session.device)
        loss, _ = next_token_loss(model, batch, 1)
        if counts:
            total += float(loss)
            count += int(batch.mask_BT.sum())
    return session.world.sum(total) / max(1, session.world.sum(count))
