"""The plan of memory before a run beside what the run then took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from goodheart.losses.logprobs import token_logprobs
from goodheart.models.load import load_causal
from goodheart.stages.sft import SFTConfig
from goodheart.stages.sft import train as sft
from goodheart.train import memory
from goodheart.train.memory import MemoryPlan, cache_bytes, saved_per_token

MIB = 2**20


def words(folder: Path, rows: int, length: int) -> Path:
    file = folder / "rows.jsonl"
    text = "".join(
        json.dumps(
            {"prompt": f"say {n}", "completion": " no" * length, "chosen": " a" * length, "rejected": " b" * length}
        )
        + "\n"
        for n in range(rows)
    )
    file.write_text(text, encoding="utf-8")
    return file


_RUN = """
import sys
from goodheart.loop.registry import stage
kind, rest = sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])
config, train = stage(kind).load()
from goodheart.train.config import build
train(build(config, sets=[f"{k}={v}" for k, v in rest.items()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "sets"),
    [
        ("sft", {"batch_size": "192", "max_tokens": "100000"}),
        ("reward", {"batch_size": "64", "held_out": "0"}),
        ("ppo", {"batch_size": "256", "mini_batches": "1", "steps": "1", "sampling.max_new_tokens": "64"}),
    ],
)
def test_what_is_foretold_is_what_is_taken(tiny_model: Path, tmp_path: Path, kind: str, sets: dict[str, str]) -> None:
    data = words(tmp_path, 256, 90)
    named = {"model": str(tiny_model), "out": str(tmp_path / "run"), "quiet": "true", **sets}
    if kind == "ppo":
        named |= {"prompts": str(data), "reward": "tests.train.test_memory:by_length", "value_model": "policy"}
    else:
        named |= {"data": str(data), "max_steps": "2"}
    arguments = [f"{name}={value}" for name, value in named.items()]
    subprocess.run([sys.executable, "-c", _RUN, kind, *arguments], check=True, cwd=Path(__file__).parents[2])
    found = json.loads((tmp_path / "run" / "memory.json").read_text(encoding="utf-8"))
    # Something to foretell: more than the libraries alone, which are there before.
    assert found["passes"] > 100 * MIB
    assert found["planned"] == pytest.approx(found["peak"], rel=0.15), found


def by_length(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(len(text) % 5) for text in completions]


def test_what_a_pass_keeps_grows_with_its_tokens_as_measured(tiny_model: Path) -> None:
    model = load_causal(tiny_model)
    per_token, layers = saved_per_token(model)
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes  # counts views of one storage again, so it can only be more
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.zeros(3, 40, dtype=torch.long))
    assert layers == model.hf_config["num_hidden_layers"]
    # By hand, of a layer: its input and the normed input, queries, keys and values, what attention gives, the middle
    # and the normed middle, gate, up, the sigmoid, and what goes down: at least 8 widths and 4 MLP widths of 4 bytes.
    width, mlp = model.hf_config["hidden_size"], model.hf_config["intermediate_size"]
    assert layers * 4 * (8 * width + 4 * mlp) * 0.8 < per_token <= kept / 120


def test_the_cache_of_answers_by_hand(tiny_model: Path) -> None:
    model = load_causal(tiny_model)
    c = model.hf_config
    of_head = c["hidden_size"] // c["num_attention_heads"]
    # keys and values, 10 slots of 50 tokens, float32
    assert cache_bytes(model, 10, 50) == 2 * 10 * 50 * c["num_hidden_layers"] * c["num_key_value_heads"] * of_head * 4


def test_halvings_until_it_fits() -> None:
    def plan(available: float) -> MemoryPlan:
        return MemoryPlan(100.0, 10.0, 800.0, 90.0, 4096, available)

    # 1000 in all; a tenth is left to others. 900/0.9 = 1000 + 1: fits without.
    assert plan(1200.0).total == 1000.0
    assert plan(1200.0).halvings == 0
    # 0.9 * 800 - 200 = 520: 800 does not fit, 400 does.
    assert plan(800.0).halvings == 1
    # 0.9 * 350 - 200 = 115: 800, 400, 200 do not, 100 does.
    assert plan(350.0).halvings == 3
    # The weights alone are too much: smaller passes would not help.
    assert plan(150.0).halvings == 0


def test_a_run_begins_with_what_fits(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": str(tiny_model), "data": str(words(tmp_path, 64, 90)), "batch_size": 64, "max_steps": 1}
    free = sft(SFTConfig(**settings, out=tmp_path / "free", quiet=True))
    # Room for what is there and 20 MiB for the pass, which takes more.
    monkeypatch.setattr(memory, "available", lambda device: (memory.present(device) + 70 * MIB) / 0.9)
    tight = sft(SFTConfig(**settings, out=tmp_path / "tight", quiet=True))
    said = (tight.path / "log.txt").read_text(encoding="utf-8")
    assert "as large, to fit the memory" in said
    rows = [json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0]) for run in (free, tight)]
    assert rows[1]["memory/halvings"] >= 1
    assert "memory/halvings" not in rows[0]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_logits_are_kept_up_to_the_size_that_is_planned_with() -> None:
    # The plan has the most that `token_logprobs` keeps as a number of its own.
    default = token_logprobs.__kwdefaults__["max_elements"]
    assert 4 * default == memory._LOGITS
