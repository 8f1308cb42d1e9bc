"""Out of memory: micro-batches are halved until they fit, and the update is the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from goodheart.errors import HealthError
from goodheart.losses.metrics import MetricSums
from goodheart.stages.sft import SFTConfig
from goodheart.stages.sft import train as sft
from goodheart.train import language_model
from goodheart.train.fitting import halved, is_out_of_memory
from goodheart.train.metrics import read_metrics
from goodheart.train.optimizer import build_optimizer
from goodheart.train.parallel import World
from goodheart.train.run import Run
from goodheart.train.step import train_step

ROWS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Small:
    """A loss that has room for so many rows in backward, and fails after its gradients are half made."""

    def __init__(self, room: int) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.room, self.seen = room, []

    def __call__(self, rows: list[int]) -> tuple[Tensor, MetricSums]:
        self.seen.append(len(rows))
        hidden = self.model[1](self.model[0](ROWS[rows]))
        if len(rows) > self.room:
            hidden.register_hook(self._burst)
        loss = self.model[2](hidden).square().sum() / len(ROWS)
        sums = MetricSums()
        sums.add("rows", float(len(rows)), 1.0)
        return loss, sums

    def _burst(self, grad: Tensor) -> Tensor:
        assert self.model[2].weight.grad is not None  # half made
        raise torch.OutOfMemoryError("no room")

    def step(self, world: World, pieces: list[list[int]]) -> dict[str, float]:
        optimizer = build_optimizer(self.model.named_parameters(), learning_rate=0.1)
        return train_step(world, optimizer, pieces, self, lr=0.1)


def test_the_update_is_that_of_pieces_that_fit_and_the_next_step_begins_with_them() -> None:
    enough, tight, world = Small(8), Small(2), World()
    whole = enough.step(World(), [list(range(8))])
    split = tight.step(world, [list(range(8))])
    for a, b in zip(enough.model.parameters(), tight.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert whole["loss"] == pytest.approx(split["loss"])
    assert whole["grad_norm"] == pytest.approx(split["grad_norm"], rel=1e-5)
    # 8 do not fit, nor do 4; what the failed passes said is not counted: four pieces of 2 are.
    assert tight.seen == [8, 4, 2, 2, 2, 2]
    assert split["rows"] == 2.0
    assert (split["memory/halvings"], "memory/halvings" in whole) == (2.0, False)
    tight.seen.clear()
    tight.step(world, [list(range(8))])
    assert tight.seen == [2, 2, 2, 2]


def test_one_row_that_does_not_fit_is_an_error_and_changes_nothing() -> None:
    tight = Small(0)
    before = [p.clone() for p in tight.model.parameters()]
    with pytest.raises(HealthError, match=r"single rows: max_tokens does not help.*activation_checkpointing.*no room"):
        tight.step(World(), [[0, 1, 2], [3]])
    assert all(torch.equal(a, b) for a, b in zip(before, tight.model.parameters(), strict=True))
    assert all(p.grad is None for p in tight.model.parameters())


def test_other_errors_pass_through() -> None:
    def broken(rows: list[int]) -> tuple[Tensor, MetricSums]:
        raise RuntimeError("shapes do not match")

    model = nn.Linear(2, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        train_step(World(), build_optimizer(model.named_parameters(), learning_rate=0.1), [[0, 1]], broken)


def test_a_continued_run_keeps_the_halves_it_had(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"say {n}", "completion": " word" * (n % 7 + 1)} for n in range(64)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"model": str(tiny_model), "data": str(data), "batch_size": 16, "epochs": 2, "quiet": True}
    settings |= {"checkpoint_every": 1}
    plain, calls, short = language_model.next_token_loss, 0, True

    def short_of_memory(model, batch, num_tokens):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 5 and short:
            raise torch.OutOfMemoryError("no room")
        if calls == 11 and killed:
            raise KeyboardInterrupt
        return plain(model, batch, num_tokens)

    monkeypatch.setattr(language_model, "next_token_loss", short_of_memory)
    killed = False
    whole = sft(SFTConfig(**settings, out=tmp_path / "whole"))
    calls, killed = 0, True
    with pytest.raises(KeyboardInterrupt):
        sft(SFTConfig(**settings, out=tmp_path / "cut"))
    killed = short = False  # memory is there again; the numbers must stay those of the halves
    again = sft(SFTConfig(**settings, out=tmp_path / "cut"))

    def numbers(run: Run) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k not in {"time", "timing"}} for row in read_metrics(run.path)]

    assert [row.get("memory/halvings") for row in numbers(whole)][-1] == 1.0
    assert numbers(again) == numbers(whole)
    a, b = (load_file(run.model_dir / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_halves_hold_every_row_once_in_order() -> None:
    assert halved([[1, 2, 3, 4, 5], [6]], 1) == [[1, 2, 3], [4, 5], [6]]
    assert halved([[1, 2, 3, 4, 5], [6]], 2) == [[1, 2], [3], [4], [5], [6]]
    assert halved([[1, 2]], 0) == [[1, 2]]
    assert halved([(1, 2)], 3) == [(1, 2)]  # what is no list is left alone


def test_what_torch_raises_is_known() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)


_LIMITED = """
import json, resource, sys
from pathlib import Path
from goodheart.stages.sft import SFTConfig, train
from goodheart.train.metrics import read_metrics

model, data, out, limit = sys.argv[1:]
config = SFTConfig(model=model, data=data, out=Path(out), batch_size=512, max_tokens=10**6, max_steps=2, quiet=True)
import torch, goodheart.models.load, goodheart.train.language_model  # what a run imports is there before the limit
if int(limit):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(limit) * 2**20,) * 2)
run = train(config)
print(json.dumps([read_metrics(run.path), (run.path / "log.txt").read_text()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_a_real_run_in_too_little_memory_ends_with_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n}", "completion": " word" * 60} for n in range(512)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def losses(name: str, limit: int) -> tuple[list[dict[str, float]], str]:
        arguments = [str(tiny_model), str(data), str(tmp_path / name), str(limit)]
        done = subprocess.run([sys.executable, "-c", _LIMITED, *arguments], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return tuple(json.loads(done.stdout.splitlines()[-1]))

    free, _ = losses("free", 0)
    tight, log = losses("tight", 260)
    assert tight[-1]["memory/halvings"] >= 1
    # 512 rows of some 125 tokens in one pass: what would begin so is told from that, not from the larger setting.
    told = int(re.search(r"out of memory; .*max_tokens: (\d+) would begin so", log)[1])  # type: ignore[index]
    assert told < 512 * 150
    assert [row["loss"] for row in tight] == pytest.approx([row["loss"] for row in free], rel=1e-5)
