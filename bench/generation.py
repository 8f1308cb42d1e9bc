"""Tokens per second of the engine, in C and in PyTorch, against transformers' generate, on one model of ours in all.

    python -m bench generation --sizes 1M 5M --batch 16 64 --rounds 5

    python -m bench generation --sizes 15M 110M --dtype bfloat16 --rounds 3

Contenders take turns, so that noise of the machine hits all alike; the ratio is the median of the rounds' ratios. In
bfloat16, transformers runs in float32 too. What the engine draws is first passed through transformers' model in
float32, on the same weights: its log-probabilities must agree, or the two sides would not do the same work.

Task "full": every row runs to the limit. Task "early": rows end after 1 .. limit tokens, and only those count; peers
cannot drop finished rows, the engine gives their slots away. Before them the machine's own peaks are measured, and what
share of them each contender reaches is told (`roofline.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import machine, roofline
from goodheart.generate import build
from goodheart.generate.engine import Engine, Generation
from goodheart.generate.sampling import SamplingParams
from goodheart.models.load import save_causal
from goodheart.models.new import new_model
from goodheart.models.transformer import Transformer

# Nats by which the engine's log-probabilities may differ from float32, on the average of all tokens. Rounding to
# bfloat16 is 2^-9 of a number; over the layers, logits of size 1 move by thousandths.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
FLOAT32 = "transformers float32"

# hidden_size, layers, heads, key/value heads, MLP width, vocabulary; parameters without and with the tied embedding.
SIZES = {
    "1M": (128, 4, 4, 4, 352, 1024),  # 0.8M + 0.1M
    "1M-8k": (128, 4, 4, 4, 352, 8192),  # 0.8M + 1.0M
    "5M": (256, 5, 8, 4, 704, 4096),  # 3.7M + 1.0M
    "15M": (384, 6, 6, 6, 1024, 8192),  # 10.6M + 3.1M
    "110M": (768, 12, 12, 12, 2048, 32000),  # 85M + 25M
}


def model_of(size: str) -> Transformer:
    """A random decoder of the Llama family."""
    width, layers, heads, kv_heads, mlp, vocabulary = SIZES[size]
    spec = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
    }
    return new_model(spec, vocabulary, seed=0)


def in_transformers(model: Transformer, dtype: torch.dtype) -> Any:
    """The same weights loaded by transformers, without an end token."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_causal(model, Path(folder))
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    hf.generation_config.eos_token_id = None
    hf.generation_config.pad_token_id = 0
    return hf


def contenders(model: Transformer, prompts: torch.Tensor, limits: list[int]) -> dict[str, Callable[[], object]]:
    """Name -> one run of the task. Raises ValueError where the engine does not do what transformers does."""
    dtype, rows, seed = next(model.parameters()).dtype, prompts.tolist(), iter(range(10**9))
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": max(limits)}

    def transformers(hf: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return hf.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)

        return run

    def engine() -> Callable[[], list[Generation]]:
        made = Engine(model, slots=len(prompts))
        return lambda: made.generate(rows, SamplingParams(limits, seed=next(seed)))

    in_float32 = in_transformers(model, torch.float32)
    runs: dict[str, Callable[[], object]]
    if dtype == torch.float32:
        runs = {"transformers": transformers(in_float32)}
    else:
        runs = {"transformers": transformers(in_transformers(model, dtype)), FLOAT32: transformers(in_float32)}
    runs["PyTorch"] = without_c(engine())
    if Engine(model).way != "PyTorch":
        compare(in_float32, engine()(), dtype)
        runs["C"] = engine()
    return runs


def compare(hf: Any, made: list[Generation], dtype: torch.dtype) -> None:
    """Raises ValueError where the log-probabilities of what was drawn are not those of transformers in float32."""
    apart: list[float] = []
    for each in made[:16]:
        with torch.no_grad():
            logits_TV = hf(torch.tensor([each.prompt_ids + each.ids])).logits[0, len(each.prompt_ids) - 1 : -1]
        logps_T = logits_TV.log_softmax(1).gather(1, torch.tensor(each.ids).unsqueeze(1)).squeeze(1)
        apart += (logps_T - torch.tensor(each.logps)).abs().tolist()
    mean = statistics.mean(apart)
    print(f"log-probabilities differ from transformers' in float32 by {mean:.1e} (largest {max(apart):.1e})")
    if mean > TOLERANCE[dtype]:
        raise ValueError(
            f"log-probabilities differ by {mean:.2g} nats; at most {TOLERANCE[dtype]} may come of rounding"
        )


def without_c(run: Callable[[], object]) -> Callable[[], object]:
    """The same where there is no compiler."""

    def in_pytorch() -> object:
        with unittest.mock.patch.object(build, "load", return_value=None):
            return run()

    return in_pytorch


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    """Print one line per size, batch and task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "1M-8k"], choices=SIZES)
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--tasks", nargs="+", default=["full", "early"], choices=["full", "early"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(
        f"threads {a.threads} of {os.cpu_count()}, prompt {a.prompt}, new {a.new}, {a.dtype}, torch {torch.__version__}"
    )
    dtype = getattr(torch, a.dtype)
    peaks = machine.peaks(a.threads, dict.fromkeys([dtype, torch.float32]))
    print("tokens per second: medians (best); of the engine in brackets the median ratio to each transformers")
    for size in a.sizes:
        model = model_of(size).to(dtype)
        for batch in a.batch:
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(0, model.vocab_size, (batch, a.prompt), generator=generator)
            for task in a.tasks:
                limits = [a.new] * batch
                if task == "early":
                    limits = torch.randint(1, a.new + 1, (batch,), generator=generator).tolist()
                seconds = measure(contenders(model, prompts, limits), a.rounds)
                shown = [shown_rate(name, seconds, sum(limits)) for name in seconds]
                print(f"{size:8} {batch:4} {task:6} {'   '.join(shown)}", flush=True)
                for name, took in seconds.items():
                    in_dtype = torch.float32 if name == FLOAT32 else dtype
                    job = roofline.generation(model.config, a.prompt, limits, in_dtype)
                    print(roofline.reached(name, statistics.median(took), sum(limits), job, peaks, in_dtype))


def shown_rate(name: str, seconds: dict[str, list[float]], tokens: int) -> str:
    """A contender's figures for the table."""
    rate = f"{name} {tokens / statistics.median(seconds[name]):7.0f} ({tokens / min(seconds[name]):.0f})"
    if name.startswith("transformers"):
        return rate
    return " ".join(
        [rate, *(ratios(seconds[peer], seconds[name]) for peer in ("transformers", FLOAT32) if peer in seconds)]
    )


def ratios(peer: list[float], mine: list[float]) -> str:
    """The median of the rounds' ratios, the lowest and the highest."""
    found = [theirs / ours for theirs, ours in zip(peer, mine, strict=True)]
    return f"[{statistics.median(found):.2f}, {min(found):.2f}-{max(found):.2f}]"


if __name__ == "__main__":
    main()
