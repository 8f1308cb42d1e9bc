"""Profiling: a few steps of a real run, told apart into parts; and nothing of the run changes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from goodheart.stages.sft import SFTConfig
from goodheart.stages.sft import train as sft
from goodheart.train.checkpoint import TrainState
from goodheart.train.optimizer import build_optimizer
from goodheart.train.profile import STEPS, WARMUP, StepProfiler, held, part


def write(folder: Path) -> Path:
    rows = [{"prompt": f"say {n}", "completion": f" {n} and {n}"} for n in range(40)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(("steps", "measured"), [(1, 1), (3, 1), (8, 3)])  # two warm up where there are more
def test_a_profiled_run_is_the_same_run_with_tables_beside_it(
    tiny_model: Path, tmp_path: Path, steps: int, measured: int
) -> None:
    settings = {
        "model": str(tiny_model),
        "data": str(write(tmp_path)),
        "batch_size": 4,
        "max_steps": steps,
        "quiet": True,
    }
    plain = sft(SFTConfig(**settings, out=tmp_path / "plain"))
    profiled = sft(SFTConfig(**settings, out=tmp_path / "profiled", profile=True))

    before, after = (load_file(run.model_dir / "model.safetensors") for run in (plain, profiled))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (plain.path / "profile").exists()
    said = (profiled.path / "profile" / "profile.txt").read_text(encoding="utf-8")
    for name in (
        "forward",
        "backward",
        "optimizer",
        "gradients summed and clipped",
        "weights of model",
        "peak, libraries",
    ):
        assert name in said
    assert f"mean of {measured}" in said
    assert said in (profiled.path / "log.txt").read_text(encoding="utf-8")
    with gzip.open(profiled.path / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    # One micro-batch a step: a forward pass for each profiled step.
    assert sum(e.get("name") == "goodheart/forward" and e.get("ph") == "X" for e in events) == measured


def test_the_first_steps_are_left_out_where_there_are_more(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, TrainState(), torch.device("cpu"))
    for step in range(WARMUP + STEPS + 2):
        profiler.before(WARMUP + STEPS + 2 - step)
        with part(f"number {step}"):
            torch.ones(3).sum()
        profiler.timed({"said by the stage": 0.5})
        profiler.after(WARMUP + STEPS + 1 - step)
    assert profiler.report is not None
    seen = [n for n in range(WARMUP + STEPS + 2) if f"number {n}" in profiler.report]
    assert seen == list(range(WARMUP, WARMUP + STEPS))
    assert "0.5000" in profiler.report  # seconds a step, though it was told three times


def test_memory_is_told_by_what_it_is_for() -> None:
    layer = torch.nn.Linear(512, 1024, bias=False)  # 2^19 weights: 2 MiB in float32
    tied = torch.nn.Linear(512, 1024, bias=False)
    tied.weight = layer.weight
    optimizer = build_optimizer(layer.named_parameters(), learning_rate=1e-3)
    state = TrainState(model=torch.nn.ModuleList([layer, tied]), optimizer=optimizer)
    told = dict(held(state, torch.device("cpu"), 300 * 2**20))
    assert told["weights of model"] == "2.0"  # shared weights count once
    assert told["state of optimizer"] == "4.0"  # two moments; the step counts are bytes
    assert told["gradients of optimizer, while a step lasts"] == "2.0"
    assert told["peak, libraries included"] == "300.0"


def test_a_profile_cut_short_is_ended(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, TrainState(), torch.device("cpu"))
    for left in (5, 4, 3):
        profiler.before(left)
        if left > 3:
            profiler.after(left - 1)
    assert torch.autograd._profiler_enabled()
    profiler.close()
    assert not torch.autograd._profiler_enabled()
    assert not list(tmp_path.iterdir())
    profiler.close()  # twice does no harm
