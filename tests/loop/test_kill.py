"""A pipeline killed at ten instants ends with what it would have made undisturbed, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from goodheart.train.metrics import comparable, read_metrics
from tests.stages.commands import ONE_THREAD, ROOT

PIPELINE = """\
out: out
stages:
  world: {stage: playground, documents: 200, demonstrations: 60}
  tokenizer: {data: "${world}/corpus.jsonl.gz", vocab_size: 500}
  base:
    stage: pretrain
    model: ${tokenizer}
    data: ${world}/corpus.jsonl.gz
    new_model:
      hidden_size: 32
      num_hidden_layers: 2
      num_attention_heads: 4
      num_key_value_heads: 2
      max_position_embeddings: 192
    batch_size: 4
    max_length: 64
    learning_rate: 3.0e-3
    max_steps: 12
    checkpoint_every: 3
  sft: {model: "${base}", data: "${world}/demonstrations.jsonl", batch_size: 8, max_steps: 6, checkpoint_every: 2}
  answers:
    stage: sample
    model: ${sft}
    prompts: ${world}/prompts-train.jsonl
    limit: 60
    answers: 3
    sampling: {max_new_tokens: 16}
  labels: {stage: simulate, answers: "${answers}", overlap: 2}
  reward: {model: "${sft}", data: "${labels}", batch_size: 16, checkpoint_every: 2}
  ppo:
    model: ${sft}
    reward: ${reward}
    prompts: ${world}/prompts-train.jsonl
    steps: 4
    batch_size: 8
    mini_batches: 2
    ppo_epochs: 2
    checkpoint_every: 1
    sampling: {max_new_tokens: 12}
  test-sft:
    stage: sample
    model: ${sft}
    prompts: ${world}/prompts-test.jsonl
    limit: 20
    answers: 2
    sampling: {max_new_tokens: 12}
  test-ppo:
    stage: sample
    model: ${ppo}
    prompts: ${world}/prompts-test.jsonl
    limit: 20
    answers: 2
    sampling: {max_new_tokens: 12}
  evaluate:
    answers: {sft: "${test-sft}", ppo: "${test-ppo}"}
    score: goodheart.playground.truth:score
    aspects: goodheart.playground.truth:aspects
    resamples: 1000
gates:
  - reward.accuracy >= 0 and evaluate.models.ppo.score.value >= 0
"""


def test_killed_at_ten_instants(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE, encoding="utf-8")
    folders = [tmp_path / "undisturbed", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.loop.killer", str(file), *map(str, folders)],
        cwd=ROOT,
        env=ONE_THREAD | {"KILL_SEED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr + "".join(log.read_text() for log in tmp_path.glob("*/log"))
    reached = json.loads(ran.stdout.splitlines()[-1])
    assert len(reached) == 10
    assert reached[0] < 0.3
    assert reached[-1] > 0.8
    one, other = (made(folder / "out") for folder in folders)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert not (folders[1] / "out" / "replaced").exists()


def made(out: Path) -> dict[str, Any]:
    """Everything that a pipeline made, less what the clock says."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "metrics.jsonl":
            found[name] = comparable(read_metrics(path))
        elif path.name == "results.json":
            results = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in results.items() if key != "seconds"}
        elif path.name == "pipeline.json":
            found[name] = _without_clock(json.loads(path.read_text(encoding="utf-8")))
        elif path.is_file() and "checkpoints" not in path.parts and path.name not in _PRIVATE:
            found[name] = path.read_bytes()
    return found


_PRIVATE = {".lock", "log.txt", "lineage.json", "memory.json", "DONE"}  # who, when, how often, on what machine


def _without_clock(record: dict[str, Any]) -> dict[str, Any]:
    """Without `code` too: it may be edited while the test runs; `output` has the clock in it."""
    for noted in (*record["begun"].values(), *record["done"].values()):
        noted.pop("made", None)
        noted.pop("output", None)
        del noted["code"]
    return record
