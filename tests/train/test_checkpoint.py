"""Checkpoints are whole or absent, restore everything, and damaged ones are passed over."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from goodheart.errors import RunError
from goodheart.train import files, tensors
from goodheart.train.checkpoint import Checkpoints, TrainState
from goodheart.train.optimizer import AdamW, build_optimizer

FILES = ("tensors.safetensors", "state.json", "checksums.json", "COMPLETE")


class Counter:
    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def network(seed: int) -> tuple[nn.Module, AdamW]:
    """A network with a frozen part, a buffer and a bfloat16 layer, and an optimizer that has made a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).bfloat16())
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(model.named_parameters(), learning_rate=0.1)
    for param in optimizer.params:
        param.grad = torch.randn(param.shape)
    optimizer.step()
    model[1].running_mean.normal_()
    return model, optimizer


def tensors_of(model: nn.Module, optimizer: AdamW) -> dict[str, torch.Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad} | dict(model.named_buffers())
    return {name: t.detach().clone() for name, t in (trained | optimizer.state_tensors()).items()}


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = network(1)
    generator, counter = torch.Generator().manual_seed(9), Counter(0.1 + 0.2)
    generator_before, saved = generator.get_state(), tensors_of(model, optimizer)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, TrainState(model=model, opt=optimizer, gen=generator, count=counter))
    draws = torch.rand(2).tolist(), random.random(), np.random.rand()

    other, other_optimizer = network(2)
    frozen = other[0].weight.clone()
    generator.manual_seed(1)
    fresh = Counter()
    newest = checkpoints.latest()
    assert newest == (5, tmp_path / "checkpoints" / "step-5")
    TrainState(model=other, opt=other_optimizer, gen=generator, count=fresh).load(newest[1])

    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == draws
    assert torch.equal(generator.get_state(), generator_before)
    assert fresh.value == 0.1 + 0.2
    loaded = tensors_of(other, other_optimizer)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert torch.equal(other[0].weight, frozen)


def test_frozen_weights_are_not_in_the_file_and_no_pickle_is(tmp_path: Path) -> None:
    model, optimizer = network(1)
    folder = Checkpoints(tmp_path).save(1, TrainState(model=model, opt=optimizer))
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    names = set(load_file(folder / "tensors.safetensors"))
    assert "model/0.bias" in names
    assert "model/1.running_mean" in names
    assert "opt/master/2.weight" in names
    assert not any("0.weight" in name for name in names)


def test_a_weight_shared_by_two_modules_is_saved_once(tmp_path: Path) -> None:
    trunk = nn.Linear(2, 2)
    policy, value = nn.Sequential(trunk), nn.Sequential(trunk, nn.Linear(2, 1))
    folder = Checkpoints(tmp_path).save(1, TrainState(policy=policy, value=value))
    names = {name for name in load_file(folder / "tensors.safetensors") if not name.startswith("random/")}
    assert names == {"policy/0.weight", "policy/0.bias", "value/1.weight", "value/1.bias"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["half", "empty", "gone", "bit"])
def test_a_damaged_checkpoint_is_noted_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    notes: list[str] = []
    checkpoints = Checkpoints(tmp_path, note=notes.append)
    counter = Counter(1.0)
    for step in (1, 2):
        checkpoints.save(step, TrainState(model=network(step)[0], count=counter))
        counter.value = 2.0
    file = tmp_path / "checkpoints" / "step-2" / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "bit":
        # The last byte that means something: in JSON a changed letter, in tensors a changed weight.
        file.write_bytes(content[:3] + bytes([content[3] ^ 0x80]) + content[4:])
    else:
        file.write_bytes(content[: len(content) // 2 if damage == "half" else 0])

    newest = checkpoints.latest()
    assert newest is not None
    assert newest[0] == 1
    assert len(notes) == 1
    assert "step-2 is damaged" in notes[0]
    TrainState(model=network(3)[0], count=counter).load(newest[1])
    assert counter.value == 1.0
    # The step is made again, and the new checkpoint takes the damaged one's place.
    checkpoints.save(2, TrainState(model=network(2)[0], count=counter))
    assert checkpoints.latest() == (2, tmp_path / "checkpoints" / "step-2")


def test_no_checkpoint_or_only_damaged_ones_means_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, note=lambda text: None)
    assert checkpoints.latest() is None
    folder = checkpoints.save(1, TrainState(count=Counter()))
    (folder / "COMPLETE").unlink()
    assert checkpoints.latest() is None


def kept(tmp_path: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (tmp_path / "checkpoints").iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10, 11, 100, 101):
        checkpoints.save(step, TrainState(count=Counter()))
    assert kept(tmp_path) == [100, 101]
    # A step made again after falling back: what lies after it is from a past that did not happen.
    checkpoints.save(100, TrainState(count=Counter()))
    assert kept(tmp_path) == [100]


@pytest.mark.parametrize("place", ["goodheart.train.checkpoint.sync_folder", "pathlib.Path.rename"])
def test_nothing_is_pruned_or_named_before_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, TrainState(count=Counter()))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, TrainState(count=Counter()))
    assert checkpoints.latest() == (1, tmp_path / "checkpoints" / "step-1")
    assert kept(tmp_path) == [1]


def test_what_a_killed_process_left_half_written_is_ignored_and_cleared(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, TrainState(count=Counter()))
    for name in (".partial-step-2", ".replaced-step-1"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "tensors.safetensors").write_bytes(b"half")
    assert checkpoints.latest() == (1, tmp_path / "checkpoints" / "step-1")
    checkpoints.save(2, TrainState(count=Counter()))
    assert kept(tmp_path) == [1, 2]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "checksums.json", "COMPLETE"])
def test_full_disk_is_a_clear_error_and_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    model, optimizer = network(1)
    state = TrainState(model=model, opt=optimizer)
    checkpoints.save(1, state)
    real = files.write_chunks

    def full(path: Path, chunks: Any) -> str:
        if path.name != file:
            return real(path, chunks)
        path.write_bytes(next(iter(chunks))[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (files, tensors):
        monkeypatch.setattr(module, "write_chunks", full)
    with pytest.raises(RunError, match=r"the disk is full.* needs \d+\.\d MiB and \d+\.\d MiB are free"):
        checkpoints.save(2, state)
    assert kept(tmp_path) == [1]
    monkeypatch.undo()
    assert checkpoints.latest() == (1, tmp_path / "checkpoints" / "step-1")
    checkpoints.save(2, state)
    assert kept(tmp_path) == [1, 2]


def test_disk_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="cannot be written"):
        Checkpoints(tmp_path).save(1, TrainState(count=Counter()))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            TrainState(model=nn.Linear(3, 2), count=Counter()),
            r"model/weight has another shape: \(2, 2\) there, \(2, 3\)",
        ),
        (TrainState(model=nn.Linear(2, 2, bias=False), count=Counter()), "has unknown model/bias"),
        (TrainState(policy=nn.Linear(2, 2), count=Counter()), "lacks policy/bias, policy/weight and has unknown"),
        (TrainState(model=nn.Linear(2, 2)), r"has unknown count \(objects\)"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, state: TrainState, message: str) -> None:
    folder = Checkpoints(tmp_path).save(1, TrainState(model=nn.Linear(2, 2), count=Counter()))
    with pytest.raises(RunError, match=message):
        state.load(folder)


def test_names_and_things_are_checked_when_registered() -> None:
    state = TrainState(count=Counter())
    with pytest.raises(ValueError, match="'count' is registered already"):
        state.add("count", Counter())
    with pytest.raises(ValueError, match="int has no state_dict"):
        state.add("number", 3)  # type: ignore[arg-type]


def test_logs_are_flushed_before_the_checkpoint_counts_on_them(tmp_path: Path) -> None:
    order: list[bool] = []
    folder = tmp_path / "checkpoints" / "step-1"
    checkpoints = Checkpoints(tmp_path, before_save=lambda: order.append(folder.exists()))
    checkpoints.save(1, TrainState(count=Counter()))
    assert order == [False]
    assert json.loads((folder / "COMPLETE").read_text()) == {"step": 1}
