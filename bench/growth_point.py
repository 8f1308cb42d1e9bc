"""One point of a growth curve: a piece of work, its time per token and its peak of memory. Prints one line of JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.contender import peak_mib
from bench.generation import model_of
from goodheart.generate.engine import Engine
from goodheart.generate.sampling import SamplingParams
from goodheart.losses.logprobs import token_logprobs
from goodheart.models.causal import completion_logprobs
from goodheart.train.held import begin_peak, present
from goodheart.train.parallel import World

ROUNDS = 3
PROMPT = 32
PASS = 16384  # tokens of a forward pass at most
_MIB = 2**20

Work = tuple[Callable[[], object], int]  # what to do, and its tokens


def generate(*, size: str, prompts: int, new: int, slots: int) -> Work:
    """Answers to prompts, all to the limit."""
    model = model_of(size)
    asked = torch.randint(0, model.vocab_size, (prompts, PROMPT)).tolist()
    engine = Engine(model, slots=slots)
    return lambda: engine.generate(asked, SamplingParams(new, seed=0)), prompts * new


def train(*, size: str, length: int, rows: int | None = None, tokens: int | None = None) -> Work:
    """Forward and backward over rows of one length; so many rows, or so many tokens."""
    model = model_of(size)
    ids_BT = torch.randint(0, model.vocab_size, (rows or (tokens or 0) // length, length))

    def work() -> None:
        for part_BT in ids_BT.split(max(1, PASS // length)):
            mask_BT = torch.ones_like(part_BT, dtype=torch.bool)
            (-completion_logprobs(model, part_BT, mask_BT).logps_BT.sum()).backward()
        for parameter in model.parameters():
            parameter.grad = None

    return work, ids_BT.numel()


def logprobs(*, tokens: int, width: int, vocabulary: int) -> Work:
    """Log-probabilities from hidden states, forward and backward."""
    hidden_ND = torch.randn(tokens, width, requires_grad=True)
    weight_VD = torch.randn(vocabulary, width, requires_grad=True)
    targets_N = torch.randint(0, vocabulary, (tokens,))

    def work() -> None:
        token_logprobs(hidden_ND, weight_VD, targets_N)[0].sum().backward()
        hidden_ND.grad = weight_VD.grad = None

    return work, tokens


def main() -> None:
    job: dict[str, Any] = json.loads(sys.argv[1])
    World.start("cpu")
    torch.set_num_threads(job.pop("threads"))
    torch.manual_seed(0)
    work, tokens = {"generate": generate, "train": train, "logprobs": logprobs}[job.pop("what")](**job)
    before = present(torch.device("cpu"))
    begin_peak(torch.device("cpu"))
    seconds = []
    for turn in range(ROUNDS + 1):  # the first warms up
        begun = time.perf_counter()
        work()
        if turn:
            seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": statistics.median(seconds) / tokens, "peak": peak_mib(), "before": before / _MIB}))


if __name__ == "__main__":
    main()
