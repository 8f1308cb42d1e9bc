"""How long a job must take at least on this machine, by its own measured peaks, and what share of that a contender
reaches (Williams et al. 2009, "Roofline", doi:10.1145/1498765.1498785).

A piece of work needs floating-point operations and has to move bytes; neither can be faster than the best that the
machine was seen to do. Counted is what the method needs: every layer at every real token (no padding), the output layer
where a token is predicted, attention to what is before a token. Backward is twice forward. Elementwise work and
activations are not counted, so the roofline is a floor that nothing reaches.

Letters: B rows, T tokens of a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goodheart.models.architecture import TransformerConfig

_SIDES = (512, 1024, 2048)  # of square matmuls
_SIDES_GPU = (4096, 8192)
_BUFFERS = tuple(2**20 * mib for mib in (2, 16, 256))  # bytes copied from one place to another
_BUFFERS_GPU = (2**33,)
_SECONDS = 0.3  # for each shape and thread, after one try to warm up: on a busy machine threads seldom run together
_TRIES = 4  # at least
_ADAM = 7  # float32 numbers moved for each parameter: weight, gradient, two moments; and again without the gradient
_MASTER = 4


@dataclass(frozen=True)
class Peaks:
    """The best that a machine was seen to do.

    flops: dtype -> operations a second of matmuls. copies: (bytes in use, bytes read and written a second), smallest
    first.
    threads: that were used, 0 on a GPU.
    """

    flops: dict[torch.dtype, float]
    copies: tuple[tuple[float, float], ...]
    threads: int

    def bandwidth(self, resident: float) -> float:
        """Bytes a second where so many are in use: those of the cache that holds them, or of memory."""
        return next((speed for size, speed in self.copies if size >= resident), self.copies[-1][1])

    def __str__(self) -> str:
        matmuls = ", ".join(f"{_name(dtype)} {each / 1e9:,.0f} GFLOP/s" for dtype, each in self.flops.items())
        copies = ", ".join(f"{speed / 1e9:.0f} GB/s in {size / 2**20:.0f} MiB" for size, speed in self.copies)
        where = "GPU" if not self.threads else f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{where}: matmul {matmuls}; copy {copies}"


@dataclass(frozen=True)
class Work:
    """What has to be done at least. flops: operations. moved: bytes read and written. resident: bytes in use."""

    flops: float
    moved: float
    resident: float

    def seconds(self, peaks: Peaks, dtype: torch.dtype) -> float:
        """At the roofline."""
        return max(self.flops / peaks.flops[dtype], self.moved / peaks.bandwidth(self.resident))


Job = Sequence[Work]  # one after the other


def measure(threads: int, dtypes: Iterable[torch.dtype], device: str = "cpu") -> Peaks:
    """Matmuls and copies of some shapes, the best of each. Takes a few seconds.

    threads: of a CPU; what was set before is set again.
    """
    gpu, before = device != "cpu", torch.get_num_threads()
    torch.set_num_threads(max(1, threads))
    try:
        sides, buffers = (_SIDES_GPU, _BUFFERS_GPU) if gpu else (_SIDES, _BUFFERS)
        flops = {dtype: max(_matmul(side, dtype, device) for side in sides) for dtype in dtypes}
        return Peaks(flops, tuple((float(size), _copy(size, device)) for size in buffers), 0 if gpu else threads)
    finally:
        torch.set_num_threads(before)


def _matmul(side: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _best(lambda: torch.mm(a, b, out=out), device)


def _copy(size: int, device: str) -> float:
    source = torch.ones(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return size / _best(lambda: target.copy_(source), device)


def _best(run: Callable[[], Tensor], device: str) -> float:
    """Seconds of the fastest of many; of one thread in processor time, to which a busy machine adds nothing."""
    wait: Callable[[], None] = torch.cuda.synchronize if device != "cpu" else lambda: None
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    run()
    took: list[float] = []
    while len(took) < _TRIES or sum(took) < _SECONDS * torch.get_num_threads():
        wait()
        begun = clock()
        run()
        wait()
        took.append(clock() - begun)
    return min(took)


# What models need.


def matmul_parameters(config: TransformerConfig) -> int:
    """Weights of all layers that every token is multiplied with; embeddings, output layer and norms are none."""
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return config.layers * (attention + 3 * config.width * config.mlp_width)


def parameters(config: TransformerConfig) -> int:
    """With embeddings and output layer, without norms and biases."""
    return matmul_parameters(config) + config.vocab_size * config.width * (1 if config.tie else 2)


def forward_flops(config: TransformerConfig, tokens: float, pairs: float, predicted: float) -> float:
    """Operations of a forward pass.

    tokens: that pass. pairs: sum over tokens of how many each attends to. predicted: tokens that get a distribution.
    """
    layers = 2 * matmul_parameters(config) * tokens
    attention = 4 * config.layers * config.heads * config.head_dim * pairs  # scores, and sums of values
    return layers + attention + 2 * config.width * config.vocab_size * predicted


def causal_pairs(lengths: Iterable[int]) -> float:
    """Each token attends to itself and what is before it. Lengths of rows; windows are not looked at."""
    return float(sum(length * (length + 1) // 2 for length in lengths))


def forward(config: TransformerConfig, lengths: Sequence[int], predicted: float, dtype: torch.dtype) -> Work:
    """A pass over rows without gradients."""
    size = parameters(config) * dtype.itemsize
    return Work(forward_flops(config, sum(lengths), causal_pairs(lengths), predicted), size, size)


def training(config: TransformerConfig, lengths: Sequence[int], predicted: float, dtype: torch.dtype) -> Work:
    """Forward, backward (for inputs and for weights) and AdamW, all weights trained.

    Weights are read three times in forward and backward, gradients written and read once in float32.
    """
    flops = 3 * forward_flops(config, sum(lengths), causal_pairs(lengths), predicted)
    count = parameters(config)
    copy = 0 if dtype == torch.float32 else dtype.itemsize  # the weights are written beside their float32 master
    moved = count * (3 * dtype.itemsize + _MASTER * (_ADAM + 1) + copy)
    return Work(flops, moved, count * (4 * _MASTER + copy))


def decode_step(config: TransformerConfig, rows: int, context: float, dtype: torch.dtype) -> Work:
    """One new token in each row.

    context: tokens that a row attends to, the new one among them. Weights and what is kept of earlier tokens are read.
    """
    size = parameters(config) if config.tie else parameters(config) - config.vocab_size * config.width
    kept = 2 * config.layers * config.kv_heads * config.head_dim * rows * context
    moved = (size + kept) * dtype.itemsize
    return Work(forward_flops(config, rows, rows * context, rows), moved, moved)


def generation(
    config: TransformerConfig, prompt: int, limits: Sequence[int], dtype: torch.dtype, prompts: int | None = None
) -> Job:
    """Answers to prompts of `prompt` tokens: the prompts in one pass, then step after step.

    limits: new tokens of each row, which is not computed after its last. prompts: different ones among the rows (None =
    all), each of which must be passed only once.
    """
    first = forward(config, [prompt] * (prompts or len(limits)), predicted=len(limits), dtype=dtype)
    running = [sum(limit > i for limit in limits) for i in range(1, max(limits))]
    return [first, *(decode_step(config, rows, prompt + i, dtype) for i, rows in enumerate(running, 1))]


def seconds(job: Job, peaks: Peaks, dtype: torch.dtype) -> float:
    """At the roofline."""
    return sum(work.seconds(peaks, dtype) for work in job)


def flops(job: Job) -> float:
    return sum(work.flops for work in job)


def reached(
    name: str, took: float, tokens: float, job: Job, peaks: Peaks, dtype: torch.dtype, processor: float | None = None
) -> str:
    """A line: tokens a second, and the share of the roofline.

    took: seconds on the wall. processor: seconds of it on one core, which others on a busy machine add nothing to.
    """
    floor = seconds(job, peaks, dtype)
    line = f"- {name}: {tokens / took:,.0f} tokens/s, {floor / took:.0%} of the {_name(dtype)} roofline ({floor:.3g} s)"
    if processor is None:
        return line
    return f"{line}, {floor / (processor / max(1, peaks.threads)):.0%} of it in processor time"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
