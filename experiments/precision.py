"""What bfloat16 weights change: the same training in float32 and in bfloat16, three seeds each.

    python -m experiments.precision --base runs/demo-0     # a finished demo

Four kinds of training of the demo's small model: pre-training from scratch, the reward model, DPO, and PPO. `dtype:
bfloat16` keeps the weights in bfloat16 and a float32 copy of them in the optimizer, which is what is updated. Each seed
is trained in both, on the same rows in the same order. A difference between the two is to be held against the
difference between seeds (standard deviation over the float32 runs). Pre-training is shown a third way too, in bfloat16
without the copy: a difference that the copy is there to prevent.

PPO samples in bfloat16 too, and what its sampler takes for a token's log-probability is not quite what its trainer
does; the log-probabilities that its ratios start from are the trainer's. In the end each policy answers the demo's test
prompts three times in float32, and the playground's truth, on which nothing was trained, scores the answers.

Writes experiments/results/precision.json and precision.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from experiments.optimisers import Judged
from goodheart.models.load import load_causal, resolve
from goodheart.stages.dpo import DPOConfig
from goodheart.stages.dpo import train as dpo
from goodheart.stages.ppo import PPOConfig
from goodheart.stages.ppo import train as ppo
from goodheart.stages.pretrain import PretrainConfig
from goodheart.stages.pretrain import train as pretrain
from goodheart.stages.reward import RewardConfig
from goodheart.stages.reward import train as reward
from goodheart.train import language_model
from goodheart.train.metrics import read_metrics
from goodheart.train.optimizer import AdamW, build_optimizer
from goodheart.train.run import Run

HERE = Path(__file__).parent
FULL, HALF = "float32", "bfloat16"
BARE = "bfloat16 alone"  # no float32 copy: what the copy is for
WINDOWS = 20  # pieces of a run over which a curve is averaged
_LINES = {FULL: ("#4477aa", "-"), HALF: ("#ee6677", "--"), BARE: ("#999999", ":")}
# What is drawn of each kind of training, and the unit.
CURVES = {
    "pretrain": ("loss", "nats per token"),
    "reward": ("loss", "nats per pair"),
    "dpo": ("loss", "nats per pair"),
    "ppo": ("objective/raw_scores", "reward model's score"),
}
GAP = "sampler/logprob_diff_mean"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("runs/demo"), help="finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], choices=CURVES)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for kind in CURVES
        if not arguments.only or kind in arguments.only
        for row in trained(kind, arguments.base, arguments.out, range(arguments.seeds))
    ]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "precision.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, results / "precision.svg")
    print("\n".join(table(rows)))


def trained(kind: str, base: Path, out: Path, seeds: Sequence[int]) -> Iterator[Row]:
    """Every seed in every precision."""
    judged = Judged(base) if kind == "ppo" else None
    for seed in seeds:
        for precision in (FULL, HALF, BARE) if kind == "pretrain" else (FULL, HALF):
            where = out / f"{kind}-{seed}-{precision.replace(' ', '-')}"
            begun = time.process_time()
            settings = {"out": where, "seed": seed, "dtype": precision.split()[0], "quiet": True}
            with without_copy() if precision == BARE else nullcontext():
                run = _TRAIN[kind](base, settings)
            seconds = time.process_time() - begun
            row = {"kind": kind, "seed": seed, "precision": precision, "seconds": seconds, **measured(run, kind)}
            if judged is not None:
                said, row["kl"] = judged.ask(load_causal(resolve(str(run.path))))
                row["truth"] = truth(judged, said)
                row["truth_sft"] = truth(judged, judged.start[0])
            print({name: value for name, value in row.items() if name != "curve"}, flush=True)
            yield row


def without_copy() -> AbstractContextManager[Any]:
    """An optimizer that updates bfloat16 weights as they are."""

    def optimizer(named_params: Any, config: PretrainConfig) -> AdamW:
        rate, betas = config.learning_rate, config.adam_betas
        return build_optimizer(named_params, learning_rate=rate, betas=betas, master_dtype=torch.bfloat16)

    return mock.patch.object(language_model, "optimizer_for", optimizer)


def _pretrain(base: Path, settings: Row) -> Run:
    demo = _settings(base, "pretrain", "new_model", "batch_size", "max_length", "learning_rate", "held_out")
    text = {"model": str(base / "tokenizer"), "data": str(base / "world" / "corpus.jsonl.gz")}
    return pretrain(PretrainConfig(**demo, **text, max_steps=400, checkpoint_every=1000, **settings))


def _reward(base: Path, settings: Row) -> Run:
    demo = _settings(base, "reward", "batch_size", "learning_rate", "heads")
    return reward(RewardConfig(**demo, **_labels(base, settings), **settings))


def _dpo(base: Path, settings: Row) -> Run:
    return dpo(DPOConfig(beta=0.3, learning_rate=3e-4, batch_size=16, **_labels(base, settings), **settings))


def _labels(base: Path, settings: Row) -> Row:
    """One epoch over nine tenths of the demo's labels, measured on the rest: the same ones for every seed."""
    lines = (base / "labels.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    parts = {"data": [line for i, line in enumerate(lines) if i % 10], "eval_data": lines[::10]}
    files = {name: settings["out"].parent / f"labels-{name}.jsonl" for name in parts}
    for name, own in parts.items():
        files[name].write_text("".join(own), encoding="utf-8")
    return {name: str(file) for name, file in files.items()} | {
        "model": str(base / "sft"),
        "epochs": 1,
        "checkpoint_every": 1000,
    }


def _ppo(base: Path, settings: Row) -> Run:
    return ppo(PPOConfig(**ppo_settings(base), steps=60, **settings))


def ppo_settings(base: Path) -> Row:
    """The demo's, for a run on its models and prompts."""
    demo = _settings(
        base, "ppo", "batch_size", "mini_batches", "ppo_epochs", "learning_rate", "schedule", "kl_coef",
        "missing_eos_penalty", "sampling",
    )  # fmt: skip
    roles = {"model": str(base / "sft"), "reward": str(base / "reward")}
    return {**demo, **roles, "prompts": str(base / "world" / "prompts-train.jsonl"), "checkpoint_every": 1000}


_TRAIN: dict[str, Callable[[Path, Row], Run]] = {"pretrain": _pretrain, "reward": _reward, "dpo": _dpo, "ppo": _ppo}


def _settings(base: Path, stage: str, *names: str) -> Row:
    known = yaml.safe_load((base / stage / "config.yaml").read_text(encoding="utf-8"))
    return {name: known[name] for name in names}


def measured(run: Run, kind: str) -> Row:
    """Means of a run's curve over equal pieces, what it came to, and how far its sampler was from its trainer."""
    steps = read_metrics(run.path)
    curve = windows([step[CURVES[kind][0]] for step in steps])
    results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
    row: Row = {"curve": curve, "last_quarter": statistics.fmean(curve[-len(curve) // 4 :]), "steps": len(steps)}
    row |= {name: results[name] for name in ("eval/loss", "accuracy") if name in results}
    if kind == "ppo":
        gaps = [step[GAP] for step in steps]
        row |= {"gap": statistics.fmean(gaps), "gap_most": max(gaps), "gap_curve": windows(gaps)}
    return row


def windows(values: Sequence[float]) -> list[float]:
    """Means over `WINDOWS` pieces of almost equal length."""
    ends = [round(i * len(values) / WINDOWS) for i in range(WINDOWS + 1)]
    return [statistics.fmean(values[a:b]) for a, b in pairwise(ends) if b > a]


def truth(judged: Judged, said: list[list[str]]) -> float:
    return statistics.fmean(e.score for own in judged.entries(said) for e in own if e.score is not None)


def table(rows: list[Row]) -> Iterator[str]:
    """Each quantity in float32 and otherwise, seed by seed; the mean difference, and that between seeds."""
    yield "| | float32, each seed | otherwise | otherwise less float32 | between seeds |\n|---|---|---|---|---|"
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for name in ("last_quarter", "eval/loss", "accuracy", "truth", "kl", "gap", "gap_most", "seconds"):
            own: dict[str, list[float]] = {}
            for row in rows:
                if row["kind"] == kind and name in row:
                    own.setdefault(row["precision"], []).append(row[name])
            for precision in list(own)[1:]:
                yield f"| {kind}, {name}, {precision} | {_line(own[FULL], own[precision])} |"


def _line(full: list[float], other: list[float]) -> str:
    apart = [b - a for a, b in zip(full, other, strict=True)]
    between = statistics.stdev(full) if len(full) > 1 else float("nan")
    shown = [" / ".join(f"{x:.4g}" for x in own) for own in (full, other)]
    each = " / ".join(f"{x:+.2g}" for x in apart)
    return f"{shown[0]} | {shown[1]} | {statistics.fmean(apart):+.2g} ({each}) | {between:.2g}"


def draw(rows: list[Row], path: Path) -> None:
    """One panel for each kind of training, one line for each run; the last: sampler beside trainer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    panels = [(kind, "curve", *CURVES[kind]) for kind in kinds]
    if "ppo" in kinds:
        panels.append(("ppo", "gap_curve", "sampler beside trainer", "nats per token"))
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3), layout="constrained", squeeze=False)
    for panel, (kind, what, title, unit) in zip(axes[0], panels, strict=True):
        for row in (row for row in rows if row["kind"] == kind):
            x = [(i + 0.5) * row["steps"] / len(row[what]) for i in range(len(row[what]))]
            colour, style = _LINES[row["precision"]]
            label = row["precision"] if row["seed"] == 0 else None
            panel.plot(x, row[what], lw=1, color=colour, ls=style, label=label)
        panel.set(title=f"{kind}: {title}", xlabel="steps", ylabel=unit)
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3)
        if what == "gap_curve" or kind == "pretrain":  # of several sizes
            panel.set_yscale("log")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
