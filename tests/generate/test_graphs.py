"""Recorded decoding steps against the same steps as they are, through the engine; when they are recorded, and when not.

Without a GPU a tape stands in for it, which has a CUDA graph's limits: see `tape.py`.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from goodheart.errors import HealthError
from goodheart.generate import build, graphs, runners
from goodheart.generate.cache import KVCache
from goodheart.generate.decode import Decoder
from goodheart.generate.engine import Engine, Generation
from goodheart.generate.graphs import CUDARecorder, padded, records
from goodheart.generate.mixture import MixtureEngine
from goodheart.generate.sampling import SamplingParams
from goodheart.generate.steps import Step
from goodheart.models.load import LoraSpec, add_lora, load_causal
from goodheart.models.transformer import Transformer
from tests.generate.tape import Tape
from tests.generate.test_engine import LENGTHS, LIMITS, small_model, some_prompts, trainer_logps
from tests.models.families import saved

EOS = (0, 40)


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """What engines record with from now on, in PyTorch."""
    made = Tape()
    monkeypatch.setattr(build, "load", lambda dtype: None)
    monkeypatch.setattr(graphs, "recorder", lambda device: made)
    return made


def drawn(engine: Engine, seed: int = 7, times: int = 3) -> list[Generation]:
    """Prompts of many lengths and limits, far more than slots, so that rows end, move and make room at all times."""
    params = SamplingParams(LIMITS * times, seed=seed, eos_ids=EOS)
    return engine.generate(some_prompts(LENGTHS * times), params)


def plainly(model: Transformer, make: Callable[[Engine], list[Generation]] = drawn, slots: int = 7) -> list[Generation]:
    """The same without recording."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "recorder", lambda device: None)
        return make(Engine(model, slots=slots))


def assert_same(made: list[Generation], expected: list[Generation]) -> None:
    """Equal but for the rounding of padded shapes."""
    assert [(g.ids, g.finish) for g in made] == [(g.ids, g.finish) for g in expected]
    for g, e in zip(made, expected, strict=True):
        assert g.logps == pytest.approx(e.logps, abs=2e-5)


def recordings(engine: Engine) -> dict[tuple[int, int], Callable[[], object]]:
    """By rows and span."""
    assert isinstance(engine._cache, KVCache)
    assert engine._cache.graphs is not None
    return {shape: known.play for shape, known in engine._cache.graphs.shapes.items() if known.play is not None}


def test_padded_by_hand() -> None:
    assert [padded(n, 1000) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 25, 33, 49, 64, 65, 97, 129, 193, 257)] == [
        1, 2, 4, 4, 8, 8, 16, 16, 24, 24, 32, 48, 64, 64, 96, 128, 192, 256, 384,
    ]  # fmt: skip
    assert [padded(n, 20) for n in (15, 16, 17, 20)] == [16, 16, 20, 20]


@pytest.mark.parametrize(
    "name", ["llama2", "llama-biases", "mistral", "qwen2-window", "qwen3", "gemma", "gemma2", "gemma3"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_layer(name: str, dtype: torch.dtype, tape: Tape, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path)
    assert isinstance(model, Transformer)
    model.to(dtype)
    engine = Engine(model, slots=7)
    made = drawn(engine, times=1)
    assert tape.recorded == len(recordings(engine)) >= 2
    if dtype == torch.float32:
        assert_same(made, plainly(model, lambda engine: drawn(engine, times=1)))
    else:  # other shapes round otherwise, and then other tokens are drawn
        expected = trainer_logps(model, made, 1.0)
        apart = [abs(a - b) for g, e in zip(made, expected, strict=True) for a, b in zip(g.logps, e, strict=True)]
        assert sum(apart) / len(apart) < 0.03
        assert max(apart) < 0.3


@pytest.mark.parametrize("slots", [1, 3, 7, 16, 20])
def test_rows_that_come_and_go(slots: int, tape: Tape) -> None:
    model = small_model()
    engine = Engine(model, slots=slots)
    assert_same(drawn(engine), plainly(model, slots=slots))
    assert tape.recorded == len(recordings(engine))
    assert {rows for rows, _ in recordings(engine)} <= {1, 2, 4, 8, 16, slots}


def test_spans_grow_with_the_longest_row_up_to_the_room(tape: Tape) -> None:
    model, prompts = small_model(), some_prompts([40, 50, 61, 90, 3])
    params = SamplingParams([60, 38, 5, 30, 20], seed=1)
    engine = Engine(model, slots=5)
    made = engine.generate(prompts, params)
    assert_same(made, plainly(model, lambda engine: engine.generate(prompts, params)))
    assert {span for _, span in recordings(engine)} == {96, 120}  # the longest has 90 + 30 - 1 tokens
    alone = SamplingParams(64, seed=1)
    assert_same(engine.generate(prompts[:1], alone), plainly(model, lambda engine: engine.generate(prompts[:1], alone)))
    assert {span for rows, span in recordings(engine) if rows == 1} == {64, 96, 120}


def test_later_calls_record_nothing_anew(tape: Tape) -> None:
    model = small_model()
    engine, expected = Engine(model, slots=7), plainly(model)
    counts = []
    for _ in range(3):
        assert_same(drawn(engine), expected)
        counts.append((tape.recorded, tape.ran))
    assert counts[0] == counts[2] == (len(recordings(engine)), counts[0][1])
    # A shape runs as it is once, once more before it is recorded, once to compare and once to put all right again.
    once = len(engine._cache.graphs.shapes) - counts[0][0]  # type: ignore[union-attr]
    assert counts[0][1] == 4 * counts[0][0] + once


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_training_changes_are_seen(name: str, dtype: torch.dtype, tape: Tape, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path).to(dtype)
    engine = Engine(model, slots=7)
    before, plays = drawn(engine, times=1), recordings(engine)
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, of which the decoder keeps what it computed
            parameter.add_(0.1 * torch.randn(parameter.shape).to(dtype))
    after = drawn(engine, times=1)
    assert recordings(engine).items() >= plays.items()
    assert [g.ids for g in after] != [g.ids for g in before]
    assert [(g.ids, g.logps) for g in after] == [(g.ids, g.logps) for g in drawn(Engine(model, slots=7), times=1)]


def test_weights_that_moved_are_recorded_anew(tape: Tape) -> None:
    model = small_model()
    engine = Engine(model, slots=7)
    drawn(engine)
    recorded = tape.recorded
    held = [p.data for p in model.parameters()]  # lest the new ones be put there
    model._apply(lambda tensor: tensor.clone())
    for tensor in held:
        tensor.fill_(float("nan"))
    after = drawn(engine)
    assert tape.recorded == 2 * recorded
    assert_same(after, plainly(model))


def test_recordings_go_with_the_cache(tape: Tape) -> None:
    engine = Engine(small_model(), slots=7)
    drawn(engine)
    kept = engine._cache.graphs  # type: ignore[union-attr]
    drawn(engine)
    assert engine._cache.graphs is kept  # type: ignore[union-attr]
    engine.generate(some_prompts([60]), SamplingParams(40))  # does not fit
    assert engine._cache.graphs is not kept  # type: ignore[union-attr]
    engine.release()
    assert engine._cache is None


def test_no_weights_are_held_between_calls(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Decoder]] = []
    init = Decoder.__init__
    monkeypatch.setattr(
        Decoder, "__init__", lambda self, *given: (made.append(weakref.ref(self)), init(self, *given))[1]
    )
    drawn(Engine(small_model(), slots=7))
    assert [ref() for ref in made] == [None]


def test_idle_rows_harm_nobody(tape: Tape, tmp_path: Path) -> None:
    # What idle rows compute is not-a-number here, and lies in slots that are filled later.
    saved("llama2", tmp_path)
    model = load_causal(tmp_path)
    assert isinstance(model, Transformer)
    # Prompts of one length are not padded with token 0 either, and where it is drawn it ends the row.
    prompts, params = some_prompts([6] * 30), SamplingParams([1 + 3 * i for i in range(30)], seed=1, eos_ids=EOS)
    expected = plainly(model, lambda engine: engine.generate(prompts, params))
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = float("nan")  # the output layer has weights of its own
    engine = Engine(model, slots=7)
    assert_same(engine.generate(prompts, params), expected)
    assert {rows for rows, _ in recordings(engine)} >= {4, 7}
    assert bool(engine._cache.store.kv.isnan().any())  # type: ignore[union-attr]


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is(
    tape: Tape, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Step.place
    monkeypatch.setattr(Step, "place", lambda self, at, span: place(self, torch.tensor(at.tolist()), span))  # waits
    assert_unused_with_one_warning("recording failed: operation not permitted", tape, caplog)
    assert tape.recorded == 1


@pytest.mark.parametrize("wrong", ["does nothing", "does what it did then", "does not write", "fails"])
def test_a_recording_that_does_something_else_is_not_used(
    wrong: str, tape: Tape, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record(work: Callable[[], object]) -> Callable[[], object]:
        positions_S = made[-1].positions_S
        at_S = positions_S.clone()

        def then() -> None:
            now_S = positions_S.clone()
            positions_S.copy_(at_S)
            work()
            positions_S.copy_(now_S)

        def no_write() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Step, "write", lambda *_: None)
                work()

        def fails() -> None:
            raise RuntimeError("an illegal memory access")

        return {
            "does nothing": lambda: None,
            "does what it did then": then,
            "does not write": no_write,
            "fails": fails,
        }[wrong]

    made: list[graphs.Graphs] = []
    init = graphs.Graphs.__init__
    monkeypatch.setattr(graphs.Graphs, "__init__", lambda self, *given: (made.append(self), init(self, *given))[1])
    monkeypatch.setattr(tape, "record", record)
    assert_unused_with_one_warning("an illegal" if wrong == "fails" else "a recorded step differs by", tape, caplog)


def assert_unused_with_one_warning(why: str, tape: Tape, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    expected = plainly(model)
    engine = Engine(model, slots=7)
    with caplog.at_level(logging.WARNING, logger="goodheart"):
        for _ in range(2):
            assert_same(drawn(engine), expected)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert why in said[0]
    assert "GOODHEART_GRAPHS=0" in said[0]


def test_nan_is_told_as_without(tape: Tape, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    expected = plainly(model)
    weight = model.model.blocks()[0].mlp.down_proj.weight.detach()
    kept = weight.clone()
    weight[0, 0] = float("nan")
    engine = Engine(model, slots=7)
    with pytest.raises(HealthError, match="not-a-number at new token 0"):
        drawn(engine)
    weight.copy_(kept)
    assert_same(drawn(engine), expected)
    assert caplog.records == []


def test_calls_within_calls(tape: Tape) -> None:
    model, prompts = small_model(), some_prompts()
    params = SamplingParams(12, seed=3)
    expected = plainly(model, lambda engine: engine.generate(prompts, params))
    engine = Engine(model, slots=4)
    stream = engine.stream(prompts[0], params)
    assert next(stream) == expected[0].ids[0]
    assert_same(engine.generate(prompts, params), expected)
    assert list(stream) == expected[0].ids[1:]
    del stream
    next(engine.stream(prompts[0], params))  # left alone
    assert_same(engine.generate(prompts, params), expected)


def test_mixtures_record_both_models(tape: Tape) -> None:
    first, second = small_model(0), small_model(1)
    prompts, params = some_prompts(), SamplingParams(12, seed=3)
    engine = MixtureEngine(first, lambda: nullcontext(second), weight=0.5, slots=4)
    made = engine.generate(prompts, params)
    assert recordings(engine)
    assert recordings(engine._other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "recorder", lambda device: None)
        expected = MixtureEngine(first, lambda: nullcontext(second), weight=0.5, slots=4).generate(prompts, params)
    assert_same(made, expected)


def test_only_whole_weights_are_recorded(tape: Tape) -> None:
    model = small_model()
    with torch.autocast("cpu", torch.bfloat16):
        drawn(Engine(model, slots=7), times=1)
    add_lora(model, LoraSpec(rank=2))
    drawn(Engine(model, slots=7), times=1)
    assert tape.ran == 0


def test_when_graphs_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOODHEART_GRAPHS", raising=False)
    assert [records(torch.device(name)) for name in ("cpu", "mps", "cuda", "cuda:1")] == [False, False, True, True]
    monkeypatch.setenv("GOODHEART_GRAPHS", "0")
    assert not records(torch.device("cuda"))
    assert graphs.recorder(torch.device("cuda")) is None


def test_only_so_many_are_kept(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.setattr(graphs, "_MOST", 2)
    engine = Engine(model, slots=7)
    for _ in range(2):
        assert_same(drawn(engine), plainly(model))
    assert tape.recorded == len(recordings(engine)) == 2


class _Stream:
    """Tells what it is asked."""

    device_index = 0

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def wait_stream(self, other: _Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


def test_what_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    names, errors = iter(["side", "fresh"]), iter([True, False])
    signature = inspect.signature(torch.cuda.graph)

    @contextmanager
    def stream(used: _Stream) -> Iterator[None]:
        told.append(f"on {used.name}")
        try:
            yield
        finally:
            told.append("back")

    @contextmanager
    def graph(*given: object, **named: object) -> Iterator[None]:
        known = signature.bind(*given, **named).arguments  # of this torch
        told.append(f"{known['capture_error_mode']} into {known['pool']} on {known['stream'].name}")
        yield
        if next(errors):
            raise RuntimeError("capture_end")  # as where something was refused: torch's own stream stays current

    def end(device: int, pool: str) -> None:
        told.append(f"no more into {pool}")
        raise RuntimeError("not currently recording")  # as where torch has done it

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: _Stream(next(names), told))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Stream("main", told))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(graphs, "_FAILED", [])
    recorder = CUDARecorder(torch.device("cuda"))
    recorder.run(lambda: told.append("work"))
    assert told == ["side waits for main", "on side", "work", "back", "main waits for side"]
    told.clear()
    with pytest.raises(RuntimeError, match="capture_end"):
        recorder.record(lambda: told.append("work"))
    assert told == [
        *("on side", "thread_local into pool on side", "work", "back"),
        "no more into pool",
        *("on fresh", "thread_local into None on fresh", "back"),
    ]


def test_way_tells_of_graphs(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    assert Engine(model).way == "PyTorch"
    monkeypatch.setattr(runners, "records", lambda device: True)
    assert Engine(model).way == "PyTorch, CUDA graphs"
    add_lora(model, LoraSpec(rank=2))
    assert Engine(model).way == "PyTorch"


class _AsItIs(CUDARecorder):
    """Has the shapes and the stream of recordings, and no recording."""

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        return lambda: self.run(work)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_do_what_the_steps_do(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    saved(name, tmp_path)
    model = load_causal(tmp_path).to("cuda", dtype)
    counted: list[CUDARecorder] = []
    record = CUDARecorder.record
    monkeypatch.setattr(CUDARecorder, "record", lambda self, work: (counted.append(self), record(self, work))[1])

    def as_it_is(seed: int) -> list[Generation]:
        with monkeypatch.context() as patch:
            patch.setattr(graphs, "recorder", _AsItIs)
            return drawn(Engine(model, slots=7), seed)

    engine = Engine(model, slots=7)
    for seed in (1, 2, 3):
        assert_same(drawn(engine, seed), as_it_is(seed))
        assert len(counted) == len(recordings(engine))  # none a second time
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    drawn(engine, seed=4)
    plays = recordings(engine)
    model._apply(lambda tensor: tensor.clone())
    assert_same(drawn(engine, seed=4), as_it_is(4))
    assert not plays.items() & recordings(engine).items()
    assert caplog.records == []
