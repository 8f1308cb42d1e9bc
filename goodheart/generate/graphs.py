"""Decoding steps recorded once and played again. On a GPU a recording is a CUDA graph: one launch for hundreds.

A recording knows shapes and places in memory, nothing else. So rows are padded to 1, 2, 4, 8, 16, 24, 32, 48 ... and
the positions they look at to 64, 96, 128 ...; tokens and positions are read from, and hidden states written to,
tensors that stay where they are, as keys and values do, the weights (training changes them in place), and what is
computed from them when a call begins. The first step of a shape runs as it is, the second is recorded too.

Idle rows, which only fill up, compute token 0 at position 0. They write that position of their own slots, which the
prompt of a later row overwrites before anything looks at it.

Shapes: S slots, N running rows, D width.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from goodheart.generate.cache import BUCKET, KVCache, round_up
from goodheart.generate.decode import Decoder
from goodheart.generate.layers import PlainModel
from goodheart.generate.steps import Step, Store

# Positions that a recorded step looks at, at least; memory for them is made in whole ones, so that it fits longer.
LEAST_SPAN = 64
# Recordings that are kept, each of which takes some memory of the GPU that no plan knows of; further shapes run as they
# are. A call sees about as many as it has sizes of rows and spans together.
_MOST = 96
# Of the largest hidden state: by how much a recorded step may differ. It should be equal to the bit.
_TOLERANCE = {torch.float32: 1e-4}
_ROUGH = 0.03  # four steps of bfloat16
_FAILED: list[torch.cuda.CUDAGraph] = []
_log = logging.getLogger(__name__)

Work = Callable[[], object]


class Recorder(Protocol):
    """Records work: what is returned does it again, on the same memory."""

    def run(self, work: Work) -> None:
        """Do it now, so that what happens at a first time only is not recorded."""

    def record(self, work: Work) -> Work:
        """Raises RuntimeError where that cannot be."""


class CUDARecorder:
    """Records CUDA graphs.

    On one stream of its own, where work also runs before it is recorded, as torch asks. All graphs share memory for
    what is between their inputs and outputs: they may be played in any order, but never two at a time. They go all at
    once or not at all, and nobody else records on the stream: with the first graph that goes, torch frees the workspace
    of cuBLAS that all graphs of a stream work in.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        """See `Recorder.run`."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        """See `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        try:
            self._record(graph, work, self.stream, self.pool)
        except BaseException:
            self._tidy(graph)
            raise
        return graph.replay

    def _record(self, graph: torch.cuda.CUDAGraph, work: Work, stream: torch.cuda.Stream, pool: Any) -> None:
        # Other threads may allocate meanwhile. Twice the stream: where recording fails, torch leaves its own current.
        recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.stream(stream), recording:
            work()

    def _tidy(self, failed: torch.cuda.CUDAGraph) -> None:
        """Up to torch 2.12 or so (pytorch#180395) an allocator and a generator go on believing in a recording that
        failed at its end: freeing memory, and random numbers, would fail later. The one can be told; the other learns
        it from a recording that succeeds."""
        _FAILED.append(failed)  # an allocator may ask it whose memory something is
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self.stream.device_index, self.pool)
        with contextlib.suppress(Exception):
            failed.reset()  # its memory, where the work failed and the recording of it did not
        with contextlib.suppress(Exception):
            fresh = torch.cuda.Stream(self.device)
            self._record(torch.cuda.CUDAGraph(), lambda: torch.zeros(1, device=self.device), fresh, None)


def records(device: torch.device) -> bool:
    """Whether steps are recorded there: on a GPU, unless GOODHEART_GRAPHS=0."""
    return device.type == "cuda" and os.environ.get("GOODHEART_GRAPHS") != "0"


def room(length: int, device: torch.device) -> int:
    """Tokens of a row that memory is made for, where it needs so many."""
    return round_up(length, LEAST_SPAN if records(device) else BUCKET)


def recorder(device: torch.device) -> Recorder | None:
    """-> None where it does not `records`."""
    return CUDARecorder(device) if records(device) else None


@dataclass(slots=True)
class _Shape:
    """What is known of steps of one padded shape."""

    steps: int = 0  # that ran as they are
    play: Work | None = None


class Graphs:
    """What was recorded over a store for one set of weights, and the memory it works on. It lasts from call to call,
    and holds no weights in between."""

    def __init__(self, model: PlainModel, store: Store, recorder: Recorder) -> None:
        self.store, self.recorder = store, recorder
        self.on = True
        self.shapes: dict[tuple[int, int], _Shape] = {}
        self._places = model.places()
        self._kept: list[Tensor] = []
        with torch.inference_mode(False):
            self.tokens_S, self.positions_S = (
                torch.zeros(store.slots, dtype=torch.long, device=store.device) for _ in range(2)
            )
            self.hidden_SD = torch.zeros(store.slots, model.config.width, dtype=store.dtype, device=store.device)

    def serve(self, model: PlainModel) -> bool:
        """Whether recordings do what this model does."""
        return self._places == model.places()

    def decoder(self, model: PlainModel) -> Decoder:
        """For a model that they `serve`, with what is computed from its weights where recordings look for it."""
        kept = iter(self._kept) if self._kept else None

        def keep(fresh: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.no_grad():
                if kept is not None:
                    return next(kept).copy_(fresh)
                self._kept.append(torch.empty_like(fresh).copy_(fresh))
                return self._kept[-1]

        return Decoder(model, keep)


class GraphedDecoder:
    """Steps of all rows of a cache in one call of the engine, recorded where that is possible."""

    def __init__(self, model: PlainModel, cache: KVCache, graphs: Graphs) -> None:
        self.cache, self.graphs, self.decoder = cache, graphs, graphs.decoder(model)
        self._next: list[int] = []  # positions of the step after the last, if no row comes or goes

    @classmethod
    def of(cls, model: PlainModel, cache: KVCache) -> GraphedDecoder | None:
        """-> None where steps are not recorded. What was recorded in an earlier call lies with the cache."""
        graphs = cache.graphs
        if graphs is None or not graphs.serve(model):
            graphs = cache.graphs = None  # freed before there are others
            found = recorder(cache.device)
            if found is None:
                return None
            graphs = cache.graphs = Graphs(model, cache.store, found)
        return cls(model, cache, graphs) if graphs.on else None

    def step(self, tokens_N: Tensor) -> Tensor:
        """One more token of every row. -> hidden_ND after the final norm"""
        if not self.graphs.on:
            return self.decoder.step(tokens_N, self.cache.step())
        N, store = len(tokens_N), self.cache.store
        span = padded(max(LEAST_SPAN, max(self.cache.lengths) + 1), store.max_length)
        self._tell(tokens_N, self.cache.grow())
        self._run(padded(N, store.slots), span, N)
        return self.graphs.hidden_SD[:N].clone()  # the next step writes there

    def _tell(self, tokens_N: Tensor, positions: list[int]) -> None:
        """Put tokens and positions where recordings read them."""
        graphs, N = self.graphs, len(positions)
        if positions == self._next:
            graphs.positions_S[:N].add_(1)
        else:
            idle = [0] * (self.cache.store.slots - N)
            graphs.positions_S.copy_(torch.tensor(positions + idle))
            graphs.tokens_S[N:] = 0
        graphs.tokens_S[:N] = tokens_N
        self._next = self.cache.lengths

    def _run(self, rows: int, span: int, N: int) -> None:
        """One step of so many rows, of which N are not idle, in the best way there is so far."""
        graphs = self.graphs
        shape = graphs.shapes.setdefault((rows, span), _Shape())
        if shape.play is not None:
            shape.play()
            return

        def work() -> None:
            step = Step(graphs.store)
            step.place(graphs.positions_S[:rows], span)
            graphs.hidden_SD[:rows] = self.decoder.step(graphs.tokens_S[:rows], step)

        graphs.recorder.run(work)
        shape.steps += 1
        recordings = sum(known.play is not None for known in graphs.shapes.values())
        if shape.steps == 1 or recordings == _MOST or max(self.cache.lengths) == span:  # no room to try it further on
            return
        wrong = self._record(shape, work, N)
        graphs.recorder.run(work)  # whatever a recording did, this step is as it should be
        if wrong:
            graphs.on = False
            graphs.shapes.clear()
            _log.warning(
                "generating without CUDA graphs, which is slower: %s (GOODHEART_GRAPHS=0 silences this)", wrong
            )

    def _record(self, shape: _Shape, work: Work, N: int) -> str:
        """Record a step that was just run, and try it one position further, where nothing of worth is overwritten: it
        must follow, and write there the keys and values that it then reads. -> what is wrong, "" for nothing"""
        graphs = self.graphs
        positions_N, hidden_ND = graphs.positions_S[:N], graphs.hidden_SD[:N]
        try:
            play = graphs.recorder.record(work)
            positions_N.add_(1)
            try:
                hidden_ND.zero_()
                play()
                played_ND = hidden_ND.clone()
                graphs.recorder.run(work)
            finally:
                positions_N.sub_(1)
        except RuntimeError as error:
            return f"recording failed: {error}"
        most = _TOLERANCE.get(hidden_ND.dtype, _ROUGH) * max(1.0, float(hidden_ND.abs().max()))
        if torch.allclose(played_ND, hidden_ND, rtol=0.0, atol=most, equal_nan=True):
            shape.play = play
            return ""
        apart = float((played_ND - hidden_ND).abs().max())
        return f"a recorded step differs by {apart:.2g} from the same step as it is; {most:.2g} could be rounding"


def padded(count: int, most: int) -> int:
    """The next of 1, 2, 4, 8, 16, 24, 32, 48, 64, 96 ..., but not more than `most`: at most a half in vain."""
    power = 1 << (count - 1).bit_length()
    between = power // 4 * 3
    return min(between if 16 <= between >= count else power, most)
