"""What the order of prompts changes: GRPO without a curriculum, easy first, hard first, and by measured spread.

    python -m experiments.curriculum --base runs/demo-0 runs/demo-1 runs/demo-2     # finished demos, one per seed

Two rewards: the demo's reward model, whose scores are numbers, and a check (the playground's truth over 0.75), which an
answer passes or not. Before that the SFT model answers every training prompt 8 times, and `goodheart difficulty`
measures how hard each is for it. All runs start from the SFT model and make equally many steps, of equally many
answers, to the same prompts; only the order and, with order adaptive, the shares of the prompts differ. On the check
only the adaptive order is held against none.

Each result answers the test prompts three times at temperature 1. "win" is how often the playground's truth puts its
answer over one of the SFT model, "against none" over one of the run without a curriculum, ties half; intervals come
from resampling the test prompts of all demos. On the way 230 validation prompts are answered at the start, at each
quarter and the end. Seconds are of the processor, on one thread.

Writes experiments/results/curriculum.json and curriculum.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from experiments.optimisers import ANSWERS, SAMPLING, TRUTH, Judged
from goodheart.evaluate.interval import Bootstrap
from goodheart.evaluate.wins import Entry, by_prompt, pairs
from goodheart.models.load import load_causal, resolve
from goodheart.playground.truth import score as truth
from goodheart.stages.difficulty import DifficultyConfig, beside, difficulty
from goodheart.stages.grpo import GRPOConfig
from goodheart.stages.grpo import train as grpo
from goodheart.stages.sample import SampleConfig, sample
from goodheart.stages.score import ScoreConfig, score
from goodheart.train.metrics import read_metrics

HERE = Path(__file__).parent
CHECK = "experiments.curriculum:passes"
BAR = 0.75  # of the truth, in [0, 1]
STEPS = 40
LOOKS = 4  # on the way
DRAWS = 8  # answers that a prompt is measured by
ARMS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "easy first": {"by": "pass_rate", "order": "easy"},
    "hard first": {"by": "pass_rate", "order": "hard"},
    "adaptive": {"by": "reward_std", "order": "adaptive"},
}
# what is followed (None = the demo's reward model), the score over which an answer passes (None = over the mean), and
# what is tried: the check is there for the groups without spread, which concern the adaptive order
REWARDS: dict[str, tuple[str | None, float | None, tuple[str, ...]]] = {
    "reward model": (None, None, tuple(ARMS)),
    "check": (CHECK, 0.5, ("none", "adaptive")),
}
_COLOURS = ("#555555", "#228833", "#ee6677", "#4477aa")

Shares = dict[str, NDArray[np.float64]]


def passes(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for an answer that the truth puts over the bar, else 0."""
    return [float(value > BAR) for value in truth(prompts, completions, **columns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, nargs="+", default=[Path("runs/demo")], help="finished demos")
    parser.add_argument("--out", type=Path, default=Path("runs/curriculum"))
    arguments = parser.parse_args()
    demos = {base: Judged(base) for base in arguments.base}
    found: dict[str, Any] = {"steps": STEPS, "rows": [], "pooled": []}
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    for name in REWARDS:
        done = [one_demo(name, judged, arguments.out / base.name) for base, judged in demos.items()]
        found["rows"] += [row for own, _ in done for row in own]
        found["pooled"] += pooled(name, [won for _, won in done])
        (results / "curriculum.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found["rows"], results / "curriculum.svg")
    show(found)


def one_demo(name: str, judged: Judged, out: Path) -> tuple[list[dict[str, Any]], dict[str, Shares]]:
    """What every run on one reward of one demo came to, and the share of its pairs that it wins at each test prompt."""
    reward, bar, arms = REWARDS[name]
    reward = reward or str(judged.base / "reward")
    prompts, about = measure(judged.base, out / name.replace(" ", "-"), reward, bar)
    rows: list[dict[str, Any]] = []
    won: dict[str, Shares] = {}
    plain: list[list[Entry]] = []
    for arm in arms:
        where = out / name.replace(" ", "-") / arm.replace(" ", "-")
        run, seconds = train(judged.base, where, reward, prompts, ARMS[arm])
        entries = answered(judged, run)
        plain = plain or entries
        won[arm] = {
            "win": by_prompt(pairs(entries, judged.opponent)),
            "against none": by_prompt(pairs(entries, plain)),
        }
        row = {"demo": judged.base.name, "reward": name, "arm": arm, "seconds": seconds, "measured": about}
        row |= {what: float(np.nanmean(share_P)) for what, share_P in won[arm].items()}
        row |= on_the_way(run)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "measured"}, flush=True)
        rows.append(row)
    return rows, won


def measure(base: Path, out: Path, reward: str, bar: float | None) -> tuple[Path, dict[str, Any]]:
    """The training prompts with measured columns, and what they are like."""
    drawn, scored, prompts = out.parent / "answers.jsonl", out / "scored.jsonl", out / "prompts.jsonl"
    if not drawn.exists():
        source = str(base / "world" / "prompts-train.jsonl")
        model = str(base / "sft")
        sample(SampleConfig(model=model, prompts=source, out=drawn, answers=DRAWS, sampling=SAMPLING, quiet=True))
    if not prompts.exists():
        score(ScoreConfig(reward=reward, data=str(drawn), out=scored, quiet=True))
        difficulty(DifficultyConfig(data=str(scored), out=prompts, bar=bar, kind="kind", quiet=True))
    about = json.loads(beside(prompts).read_text(encoding="utf-8"))
    return prompts, {name: about[name] for name in ("pass_rate", "all_pass", "none_pass", "no_spread", "reliability")}


def train(base: Path, out: Path, reward: str, prompts: Path, curriculum: dict[str, Any] | None) -> tuple[Path, float]:
    """One run; its folder and processor seconds."""
    demo = yaml.safe_load((base / "ppo" / "config.yaml").read_text(encoding="utf-8"))
    validation = str(base / "world" / "prompts-validation.jsonl")
    audit = {"judge": TRUTH, "prompts": validation, "count": 230, "every": STEPS // LOOKS, "stop": False, "keep": False}
    settings: dict[str, Any] = {name: demo[name] for name in ("learning_rate", "schedule", "missing_eos_penalty")}
    settings |= {"beta": demo["kl_coef"]} if reward != CHECK else {"missing_eos_penalty": None}
    settings |= {"num_generations": 4, "batch_size": 128, "mini_batches": 4, "steps": STEPS}
    settings |= {"audit": audit, "sampling": SAMPLING.model_dump(), "checkpoint_every": 1000, "quiet": True}
    settings |= {"model": str(base / "sft"), "reward": reward, "prompts": str(prompts), "curriculum": curriculum}
    begun = time.process_time()
    run = grpo(GRPOConfig(**settings, out=out))
    cost = run.path / "cpu_seconds.json"  # a finished run is not trained again
    if not cost.exists():
        cost.write_text(json.dumps(time.process_time() - begun), encoding="utf-8")
    return run.path, json.loads(cost.read_text(encoding="utf-8"))


def answered(judged: Judged, run: Path) -> list[list[Entry]]:
    """A run's answers to the test prompts with their true scores."""
    said, _ = judged.ask(load_causal(resolve(str(run))), answers=ANSWERS)
    return judged.entries(said)


def on_the_way(run: Path) -> dict[str, Any]:
    """Groups without spread, the spread of the others, and reward and truth on the same prompts at every look."""
    log = read_metrics(run)
    looks = [json.loads(line) for line in (run / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "no_spread": statistics.fmean(row["frac_reward_zero_std"] for row in log),
        "spread": statistics.fmean(row["reward_std"] for row in log),
        "kl": log[-1]["objective/kl"],
        "reward_at": [look["proxy"] for look in looks],
        "truth_at": [look["audit"] for look in looks],
    }


def pooled(reward: str, demos: Sequence[Mapping[str, Shares]]) -> list[dict[str, Any]]:
    """Win rates over the test prompts of all demos together, with intervals."""
    found = []
    for arm in REWARDS[reward][2]:
        row: dict[str, Any] = {"reward": reward, "arm": arm}
        for what in ("win", "against none"):
            share_P = np.concatenate([own[arm][what] for own in demos])
            row[what] = Bootstrap(len(share_P), 2000, 0).mean(share_P).as_dict()
        found.append(row)
    return found


def show(found: Mapping[str, Any]) -> None:
    """The table of the docs, in Markdown."""
    print("| reward | curriculum | win over SFT | against none | each seed | no spread | reward at ¼, ½, end |")
    print("|---|---|---|---|---|---|---|")
    for row in found["pooled"]:
        own = [r for r in found["rows"] if (r["reward"], r["arm"]) == (row["reward"], row["arm"])]
        at = [statistics.fmean(r["reward_at"][i] for r in own) for i in (1, 2, -1)]
        seeds = " / ".join(f"{r['against none']:.3f}" for r in own)
        no_spread = statistics.fmean(r["no_spread"] for r in own)
        against = f"{_interval(row['against none'])} | {seeds}" if row["arm"] != "none" else "- | -"
        rates = f"{_interval(row['win'])} | {against}"
        rest = f"{100 * no_spread:.1f} % | {', '.join(f'{x:.3f}' for x in at)}"
        print(f"| {row['reward']} | {row['arm']} | {rates} | {rest} |")


def _interval(measure: Mapping[str, float]) -> str:
    return f"{measure['value']:.3f} ({measure['low']:.3f} to {measure['high']:.3f})"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Truth on the validation prompts over the run: means, and each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["reward"] for row in rows))
    figure, panes = plt.subplots(1, len(names), figsize=(11, 4.4), layout="constrained", squeeze=False)
    for axes, name in zip(panes[0], names, strict=True):
        for arm, colour in zip(ARMS, _COLOURS, strict=True):
            own = [row["truth_at"] for row in rows if (row["reward"], row["arm"]) == (name, arm)]
            if not own:
                continue
            x = np.linspace(0, STEPS, len(own[0]))
            axes.plot(x, np.mean(own, axis=0), "o-", color=colour, label=arm, ms=4, lw=1.2)
            for each in own:
                axes.plot(x, each, color=colour, lw=0.5, alpha=0.4)
        axes.set(title=f"Reward: {name}", xlabel="steps", ylabel="truth on validation prompts")
        axes.grid(alpha=0.3)
    panes[0, 0].legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
