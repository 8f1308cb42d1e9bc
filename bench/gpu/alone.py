"""Parts without TRL: the machine's peaks, the tests that need a GPU, generation, packed training.

Letters: B rows, T tokens.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench import roofline, trainers_job
from bench.contender import Watch, peak_mib, wait_for
from bench.roofline import Peaks

Row = dict[str, Any]

# The shape of Qwen3-0.6B, and a small one of the same family.
_QWEN3 = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 4096,
}
_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_GPU_TESTS = ("tests/models/test_attention.py", "tests/generate/test_engine.py", "tests/generate/test_graphs.py")


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    shape: dict[str, int]
    vocabulary: int
    batch: int
    prompt: int
    new: int
    rounds: int
    size: str  # of the packed model, see bench/tiny.py
    length: int  # tokens of a packed row
    rows: int  # of a step
    steps: int
    documents: int


FULL = Scale(_QWEN3, 151_936, 128, 64, 512, 2, "0.6B", 4096, 8, 6, 128)
TINY = Scale(_SMALL, 512, 4, 8, 8, 1, "1M", 256, 2, 3, 8)


def peaks(told: dict[str, Any]) -> Iterator[Row]:
    """Matmul and copies. The last row is what other parts are told."""
    device = told["device"]
    found = roofline.measure(1 if device == "cpu" else 0, [torch.bfloat16, torch.float32], device)
    name = platform.processor() or platform.machine() if device == "cpu" else torch.cuda.get_device_name()
    yield {
        "machine": f"{name}, Python {platform.python_version()}, torch {torch.__version__}",
        "text": str(found),
        "flops": {str(dtype).removeprefix("torch."): value for dtype, value in found.flops.items()},
        "copies": found.copies,
    }


def peaks_of(told: dict[str, Any]) -> Peaks | None:
    """What the part `peaks` has measured, if it has."""
    known = told.get("peaks")
    if not known:
        return None
    flops = {getattr(torch, name): value for name, value in known["flops"].items()}
    return Peaks(flops, tuple((size, speed) for size, speed in known["copies"]), int(told["device"] == "cpu"))


def dtype_of(told: dict[str, Any]) -> torch.dtype:
    """bfloat16 on a GPU; small models on a CPU are as well seen in float32."""
    return torch.float32 if told["device"] == "cpu" else torch.bfloat16


def tests(told: dict[str, Any]) -> Iterator[Row]:
    """The tests marked gpu; the count of those that passed (without a GPU they are skipped)."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *_GPU_TESTS]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    print(ended.stdout, ended.stderr)
    last = (ended.stdout.strip().splitlines() or ["nothing printed"])[-1]
    passed = next(
        (int(word) for word, what in zip(last.split(), last.split()[1:], strict=False) if "passed" in what), 0
    )
    yield {"what": "tests that need a GPU", "unit": "passed", "goodheart": float(passed), "note": last}
    if ended.returncode:
        sys.exit(f"tests failed: {last}")


def generation(told: dict[str, Any]) -> Iterator[Row]:
    """Tokens a second, many rows beside transformers' generate with a static cache, and one row beside the roofline;
    on a GPU without CUDA graphs and with them."""
    from goodheart.generate.engine import Engine
    from goodheart.generate.graphs import records
    from goodheart.generate.sampling import SamplingParams
    from goodheart.models.load import new_model, save_causal

    scale, device, dtype = TINY if told["tiny"] else FULL, told["device"], dtype_of(told)
    model = new_model({"family": "qwen3", **scale.shape}, scale.vocabulary, seed=0).to(dtype).to(device)
    config, known = model.config, peaks_of(told)
    ids_BT = torch.randint(4, scale.vocabulary, (scale.batch, scale.prompt), generator=torch.Generator().manual_seed(0))
    ways = ("0", "1") if records(torch.device(device)) else ("0",)
    for rows, graphed in product((1, scale.batch), ways):
        engine = Engine(model, slots=rows)
        draw = partial(engine.generate, ids_BT[:rows].tolist(), SamplingParams(scale.new, seed=0))
        with unittest.mock.patch.dict(os.environ, GOODHEART_GRAPHS=graphed):
            seconds, mib = timed(draw, scale.rounds, device)
        job = roofline.generation(config, scale.prompt, [scale.new] * rows, dtype)
        how = ", CUDA graphs" if graphed == "1" else ""
        row: Row = {
            "what": f"generation, {rows} row{'s' if rows > 1 else ''} of {scale.new} tokens{how}",
            "unit": "tokens/s",
            "goodheart": rows * scale.new / seconds,
            "roofline": known and roofline.seconds(job, known, dtype) / seconds,
            "mib": mib,
            "note": _graphs(engine),
        }
        yield row
    with tempfile.TemporaryDirectory() as folder:
        save_causal(model, Path(folder))
        del model, engine, draw
        gc.collect()
        peer = _transformers(folder, device, dtype)
    seconds, mib = timed(partial(_generate, peer, ids_BT.to(device), scale.new), scale.rounds, device)
    peer_rate = scale.batch * scale.new / seconds
    yield {**row, "peer": peer_rate, "peer_name": "transformers, static cache", "peer_mib": mib}


def _graphs(engine: Any) -> str:
    """How many steps are recorded, or that a check failed."""
    graphs = getattr(engine._cache, "graphs", None)
    if graphs is None:
        return ""
    recorded = sum(shape.play is not None for shape in graphs.shapes.values())
    return f"{recorded} steps recorded" if graphs.on else "CUDA graphs FAILED, see gpu.log"


def _transformers(folder: str, device: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    hf.generation_config.eos_token_id = None
    hf.generation_config.pad_token_id = 0
    return hf


@torch.no_grad()
def _generate(hf: Any, ids_BT: torch.Tensor, new: int) -> Any:
    return hf.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=new, cache_implementation="static",
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
    )  # fmt: skip


def timed(work: Callable[[], Any], rounds: int, device: str) -> tuple[float, float]:
    """Seconds (median) after a round to warm up, and the peak of memory on the device in MiB."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for turn in range(rounds + 1):
        wait_for(device)
        begun = time.perf_counter()
        work()
        wait_for(device)
        if turn:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds), peak_mib(device)


def packed(told: dict[str, Any]) -> Iterator[Row]:
    """Fine-tuning on packed rows through the stage: tokens a second, and the share of the peak in matmuls."""
    from goodheart.models.architecture import TransformerConfig
    from goodheart.stages.sft import SFTConfig, train
    from goodheart.train.metrics import read_metrics
    from goodheart.train.run import Run

    scale, device, dtype = TINY if told["tiny"] else FULL, told["device"], dtype_of(told)
    watch, log = Watch(time.time(), device), Run.log

    def log_and_note(run: Run, *args: Any, **kwargs: Any) -> None:
        log(run, *args, **kwargs)
        watch.step_done()

    Run.log = log_and_note  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        room = scale.length // 8
        job = trainers_job.Settings("sft", folder, 0, scale.steps, scale.documents, room, room, max(1, room // 4))
        trainers_job.build(job, scale.size)
        lengths = _lengths(Path(folder) / "rows.jsonl", room)
        run = train(
            SFTConfig(
                out=Path(folder) / "run", model=f"{folder}/policy", data=f"{folder}/rows.jsonl", held_out=0.0,
                pack=True, max_length=scale.length, batch_size=scale.rows, max_tokens=scale.rows * scale.length,
                epochs=float(scale.steps * scale.rows), max_steps=scale.steps, dtype=str(dtype).removeprefix("torch."),
                device=device, seed=1, quiet=True,
            )
        )  # fmt: skip
        learnt = statistics.median(row["tokens"] for row in read_metrics(run.path)[1:])
        hf = json.loads((Path(folder) / "policy" / "config.json").read_text(encoding="utf-8"))
    seconds = statistics.median(watch.result()["step_seconds"])
    answered = sum(lengths) - room * len(lengths)
    share = learnt / answered  # of all documents, in a step
    whole = roofline.training(TransformerConfig.from_hf(hf), lengths, answered, dtype)
    work = replace(whole, flops=share * whole.flops)
    known = peaks_of(told)
    yield {
        "what": f"fine-tuning, {scale.size}, {scale.rows} rows packed to {scale.length}",
        "unit": "tokens/s",
        "goodheart": share * sum(lengths) / seconds,
        "roofline": known and work.seconds(known, dtype) / seconds,
        "mib": watch.peak_mib,
        "note": f"{work.flops / seconds / 1e12:.3g} TFLOP/s of matmuls and attention that a model needs",
    }


def _lengths(file: Path, prompt: int) -> list[int]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [prompt + len(row["completion"].split()) + 1 for row in rows]
