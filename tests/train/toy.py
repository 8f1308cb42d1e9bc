"""A small training script on the pieces of goodheart/train, run by other tests as a process of its own.

It has everything that a resumed run must restore: dropout (global random state), a generator of its own, a controller
with a state, bfloat16 weights with masters (as an option), shuffled epochs that do not divide into the steps.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodheart.errors import HealthError
from goodheart.losses.metrics import MetricSums
from goodheart.train.checkpoint import TrainState
from goodheart.train.optimizer import build_optimizer, lr_at
from goodheart.train.parallel import World
from goodheart.train.run import Run
from goodheart.train.step import train_step

ROWS, BATCH, TIME, WORDS, WIDTH = 9, 4, 6, 13, 8


class Tiny(nn.Module):
    """Embedding, residual layers, norm; the output layer is tied and used outside forward, as in goodheart.models."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.Tanh(), nn.Dropout(dropout), nn.Linear(3 * WIDTH, WIDTH))
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, ids_BT: Tensor) -> Tensor:
        x = self.embed(ids_BT)
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x)


class Controller:
    """Stands for a KL controller: its value depends on every step before."""

    def __init__(self) -> None:
        self.value = 1.0

    def update(self, seen: float) -> None:
        self.value *= 1.0 + 0.01 * (seen - 2.0)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, WORDS, (ROWS, TIME + 1), generator=generator)
    # Rows of different length: a mean of means over micro-batches or processes would differ from the token mean.
    lengths = torch.randint(1, TIME + 1, (ROWS,), generator=generator)
    return ids, lengths


def rows_of(step: int) -> list[int]:
    """Rows of a step: epochs of shuffled rows; the last batch of each is one row, so one of two processes has none."""
    per_epoch = -(-ROWS // BATCH)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(100 + epoch)).tolist()
    return order[place * BATCH : (place + 1) * BATCH]


def train(out: Path, steps: int, options: argparse.Namespace) -> None:
    world = World.start("cpu")
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    run = Run.open(
        out, stage="toy", config={"steps": steps}, parents={}, data=[], seed=0, quiet=True, main=world.is_main
    )
    with run:
        if run.finished:
            return
        model = (decoder() if options.decoder else Tiny(options.dropout)).to(getattr(torch, options.dtype))
        model = world.prepare(model, options.mode)
        if options.look_first:  # the wrong order
            loss_of(model, *data(), list(range(ROWS)), 1)
        optimizer = build_optimizer(model.named_parameters(), learning_rate=1e-2, weight_decay=0.1)
        controller, generator = Controller(), torch.Generator().manual_seed(5)
        state = TrainState(model=model, optimizer=optimizer, controller=controller, generator=generator)
        ids, lengths = data()
        loss_of(model, ids, lengths, list(range(ROWS)), 1)  # a look at the model before a checkpoint is loaded
        newest = run.checkpoints.latest()
        start = 0
        if newest is not None:
            start, folder = newest
            state.load(folder)
        run.cut_back(start)
        for step in range(start, steps):
            rows = rows_of(step)
            num_tokens = int(lengths[rows].sum())
            mine = world.shard(rows)
            if options.nan_at == step and world.rank == world.size - 1:
                ids[mine[0]] = -1
            pieces = [mine[i : i + options.micro_batch] for i in range(0, len(mine), options.micro_batch)]
            metrics = train_step(
                world,
                optimizer,
                pieces,
                lambda piece: loss_of(model, ids, lengths, piece, num_tokens, controller.value),  # noqa: B023
                lr=1e-2 * lr_at(step, steps, warmup_steps=2, schedule="cosine"),
                max_grad_norm=0.5,
                step=step + 1,
            )
            if not options.decoder:
                model.seen += 1
            controller.update(metrics["loss"])
            metrics["controller"] = controller.value
            metrics["draws"] = float(torch.rand((), generator=generator)) + random.random() + float(np.random.rand())
            run.log(step + 1, metrics | {"time/sleep": options.sleep})
            run.sample(step + 1, {"rows": rows})
            if (step + 1) % options.checkpoint_every == 0:
                run.checkpoints.save(step + 1, state)
            if step + 1 == options.leave_after:
                return
            time.sleep(options.sleep)
        with world.whole(model) as whole:
            if world.is_main:
                (out / "weights.json").write_text(json.dumps({k: v.double().tolist() for k, v in whole.items()}))
        run.finish({"steps": steps})
        world.barrier()


def decoder() -> nn.Module:
    """Our own transformer, two layers, tied, with activations recomputed."""
    from goodheart.models.new import new_model

    spec = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = new_model(spec, WORDS, seed=0)
    model.checkpoint_activations = True
    return model


def loss_of(
    model: nn.Module, ids: Tensor, lengths: Tensor, rows: list[int], num_tokens: int, scale: float = 1.0
) -> tuple[Tensor, MetricSums]:
    broken = bool((ids[rows] < 0).any())
    hidden = model(ids[rows][:, :-1].clamp_min(0))
    # The output layer outside forward, as goodheart.models.causal does it.
    logits = hidden.float() @ model.lm_head.weight.float().t()
    nll = F.cross_entropy(logits.flatten(0, 1), ids[rows][:, 1:].clamp_min(0).flatten(), reduction="none").view(
        -1, TIME
    )
    mask = torch.arange(TIME) < lengths[rows][:, None]
    sums = MetricSums()
    sums.add("nll", (nll * mask).sum(), mask.sum())
    loss = scale * (nll * mask).sum() / num_tokens
    return (loss * float("nan") if broken else loss), sums


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--mode", default="ddp")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--checkpoint-every", type=int, default=1000)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--decoder", action="store_true")
    parser.add_argument("--leave-after", type=int, default=-1)
    parser.add_argument("--nan-at", type=int, default=-1)
    parser.add_argument("--look-first", action="store_true")
    return parser


if __name__ == "__main__":
    arguments = parser().parse_args()
    try:
        train(arguments.out, arguments.steps, arguments)
    except HealthError as error:
        print(f"HealthError: {error}", flush=True)
    except RuntimeError as error:
        if not arguments.look_first:
            raise
        print(f"RuntimeError: {error}", flush=True)
    World.current().leave(0)
