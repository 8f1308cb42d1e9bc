"""Two processes compute what one does, whole or sharded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from goodheart.errors import ConfigError
from goodheart.train.metrics import comparable, read_metrics
from goodheart.train.parallel import World

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["--steps", "8", "--decoder"]


def toy(out: Path, *options: str, processes: int = 1) -> str:
    """Runs tests/train/toy.py under as many processes; torchrun's own start-up is left out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(processes):
        own = {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "tests.train.toy", str(out), *options]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, env=base | own, stdout=pipe, stderr=pipe, text=True))
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), outputs
    return "".join(out for out, _ in outputs)


def assert_same_training(a: Path, b: Path) -> None:
    rows_a, rows_b = (comparable(read_metrics(path)) for path in (a, b))
    assert len(rows_a) == len(rows_b) == 8
    for row_a, row_b in zip(rows_a, rows_b, strict=True):
        assert row_a == pytest.approx(row_b, abs=1e-5)
    weights_a, weights_b = (json.loads((path / "weights.json").read_text()) for path in (a, b))
    assert weights_a.keys() == weights_b.keys()
    for name, value in weights_a.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(weights_b[name]), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, all rows of a step at once."""
    out = tmp_path_factory.mktemp("alone") / "run"
    toy(out, *STEPS, "--micro-batch", "4")
    return out


def test_two_processes_with_small_micro_batches_equal_one(tmp_path: Path, alone: Path) -> None:
    toy(tmp_path / "run", *STEPS, "--micro-batch", "1", processes=2)
    assert_same_training(tmp_path / "run", alone)


def test_sharded_over_two_processes_equals_one_also_when_continued(tmp_path: Path, alone: Path) -> None:
    first, elsewhere = tmp_path / "fsdp", tmp_path / "continued-alone"
    # Every third step has one row: the other process must make the same passes for nothing.
    sharded = [*STEPS, "--mode", "fsdp", "--micro-batch", "1", "--checkpoint-every", "3"]
    toy(first, *sharded, "--leave-after", "4", processes=2)
    assert [p.name for p in first.glob("checkpoints/*")] == ["step-3"]
    shutil.copytree(first, elsewhere)

    toy(first, *sharded, processes=2)
    assert_same_training(first, alone)
    # The checkpoint holds whole tensors: one process alone can go on from it.
    toy(elsewhere, *STEPS)
    assert_same_training(elsewhere, alone)


def test_nan_in_one_process_stops_all_of_them_before_the_update(tmp_path: Path) -> None:
    output = toy(tmp_path / "run", *STEPS, "--nan-at", "1", processes=2)
    lines = [line for line in output.splitlines() if line.startswith("HealthError")]
    assert len(lines) == 2
    assert all(line.startswith("HealthError: step 2, micro-batch 1 of 1, process 1: ") for line in lines)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1]


def test_an_optimizer_over_whole_copies_of_fsdps_weights_is_refused(tmp_path: Path) -> None:
    output = toy(tmp_path / "run", *STEPS, "--mode", "fsdp", "--look-first", processes=2)
    lines = [line for line in output.splitlines() if line.startswith("RuntimeError")]
    assert len(lines) == 2
    # the outer unit is whole after a pass: embedding (the output layer is tied to it) and last norm
    wanted = "and 1 more weights are whole, not fsdp's piece: call build_optimizer before any forward pass"
    assert all(wanted in line for line in lines), lines
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    # whole weights are right where nothing is cut
    toy(tmp_path / "ddp", *STEPS, "--look-first", processes=2)
    assert len(read_metrics(tmp_path / "ddp")) == 8


def test_alone_every_operation_is_the_identity() -> None:
    world = World()
    assert (world.sum(2.5), world.max(-1.0), world.broadcast_object("a"), world.gather_objects(3)) == (
        2.5,
        -1.0,
        "a",
        [3],
    )
    assert world.shard([5, 6, 7]) == [5, 6, 7]
    assert list(world.same_passes(["x"])) == [("x", True)]
    world.barrier()
    assert world.is_main


def test_shards_of_all_processes_hold_every_row_once() -> None:
    shards = [World(rank=rank, size=3).shard(list(range(10))) for rank in range(3)]
    assert shards == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize(("device", "message"), [("gpu7", "not known"), ("cuda:99", "no usable GPU|not there")])
def test_impossible_device_is_refused(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        World.start(device)


def test_gradient_of_indexing_repeats_to_the_bit_on_several_threads() -> None:
    # Without this switch threads add in any order (13 to 40 of 40 tries differed on 2 idle cores); a busy machine may
    # hide it, so the switch is looked at too.
    before = torch.get_num_threads()
    World.start("cpu").close()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    place, scale = torch.randint(0, 50, (400_000,), generator=generator), torch.randn(400_000, generator=generator)
    weight = torch.randn(200_000, requires_grad=True)
    try:
        gradients = [torch.autograd.grad((weight[place] * scale).sum(), weight)[0] for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, gradients[0]) for each in gradients)


def test_start_leaves_the_thread_count_alone() -> None:
    before = torch.get_num_threads()
    assert World.start("cpu").device == torch.device("cpu")
    assert torch.get_num_threads() == before
    World.current().close()
