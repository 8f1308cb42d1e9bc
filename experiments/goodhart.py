"""Overoptimisation in the playground: the trained score rises, the truth falls, a law tells where, the guard stops.

    python -m experiments.goodhart --base runs/demo        # after `goodheart demo --out runs/demo`

For every seed a weak reward model (few labels of a crowd that likes length) is trained, and PPO follows it far
too long without KL penalty. "Truth" is the playground's true preference on test prompts, on which nothing is trained.

1. free: guard off. Truth at every look; the law of RL, fitted to the first part of the looks, predicts the rest.
2. guarded: the same run with the guard on (audit: the truth on 100 validation prompts). What is kept, beside the best.
3. best of n: up to 1,024 samples of the SFT model, chosen by the same reward model; its law is fitted on n <= 64.

Writes experiments/results/goodhart.json and goodhart.svg.

Letters: P prompts, N samples of each.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from goodheart.data.files import read_rows
from goodheart.data.formats import read_records
from goodheart.data.records import Answer
from goodheart.errors import DataError
from goodheart.judges.best_of_n import best_of_n_curve
from goodheart.judges.goodhart import BEST_OF_N, RL, Fit, Law, fit_law
from goodheart.judges.load import load_judge

HERE = Path(__file__).parent
TRUTH = "goodheart.playground.truth:score"
WEAK = {"like": "crowd", "length_bias": 0.05}  # the crowd, and how much it likes length
NEW_TOKENS = 40
EVERY = 3  # steps between looks
# The law knows no floor, but the truth cannot fall below 0: it is held against the looks above this share of the start.
FLOOR = 0.25
NS = [2**k for k in range(11)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("runs/demo"), help="finished demo: its world and SFT model")
    parser.add_argument("--out", type=Path, default=Path("runs/goodhart"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed; what is finished already is not run again")
    parser.add_argument("--steps", type=int, default=60, help="PPO steps of a free run")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of PPO")
    parser.add_argument("--labels", type=int, default=400, help="prompts that the weak crowd labels")
    parser.add_argument("--samples", type=int, default=2048, help="answers per prompt for best of n; 0 = leave it out")
    arguments = parser.parse_args()
    rows = [one_seed(arguments.first + seed, arguments) for seed in range(arguments.seeds)]
    chosen = best_of_n(arguments) if arguments.samples else None
    kept = [row["kept_share"] >= 0.95 for row in rows]
    print(f"guard: at least 95 % of the best truth seen is kept in {sum(kept)} of {len(kept)} seeds")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    found = {"seeds": rows, "best_of_n": chosen}
    (results / "goodhart.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, results / "goodhart.svg")


def part(base: Path, name: str) -> str:
    """The output of a stage of the demo."""
    found = [path for path in (base / name, base / f"{name}.jsonl") if path.exists()]
    if not found:
        raise SystemExit(f"{base} holds no {name}: run `goodheart demo --out {base}` first")
    return str(found[0])


def one_seed(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Weak reward model, free run, guarded run."""
    base, out = arguments.base, arguments.out / f"seed-{seed}"
    reward = weak_reward(seed, arguments, out)
    world, test = Path(part(base, "world")), str(Path(part(base, "world")) / "prompts-test.jsonl")
    watched = {
        "judge": TRUTH,
        "prompts": test,
        "every": EVERY,
        "count": 300,
        "answers": 2,
        "stop": False,
        "keep": False,
    }
    free = ppo(seed, arguments, reward, out / "free", watched)
    looks = [row.data for row in read_rows(str(free / "audit.jsonl"))]
    validation = str(world / "prompts-validation.jsonl")
    guard = {"judge": TRUTH, "prompts": validation, "every": EVERY, "count": 200, "answers": 2}
    guarded = ppo(seed, arguments, reward, out / "guarded", guard)
    ended = json.loads((guarded / "results.json").read_text(encoding="utf-8"))
    best = max(looks, key=lambda look: look["audit"])
    at = {look["step"]: look["audit"] for look in looks}
    kept = at[ended["goodhart"]["kept_step"]]  # the same weights as those of the free run at that step
    row = {
        "seed": seed,
        "accuracy": json.loads((Path(reward) / "results.json").read_text(encoding="utf-8"))["accuracy"],
        "start": looks[0]["audit"],
        "best": best["audit"],
        "best_step": best["step"],
        "best_kl": best["kl"],
        "last": looks[-1]["audit"],
        "last_kl": looks[-1]["kl"],
        "proxy": [look["proxy"] for look in (looks[0], best, looks[-1])],
        "guard_stopped": ended["steps"],
        "kept_step": ended["goodhart"]["kept_step"],
        "kept": kept,
        "kept_share": kept / best["audit"],
        "looks": looks,
    } | law_of(looks)
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "looks"}, flush=True)
    return row


def weak_reward(seed: int, arguments: argparse.Namespace, out: Path) -> str:
    """A reward model of few and careless labels."""
    from goodheart.loop.simulate import SimulateConfig, simulate
    from goodheart.stages.reward import RewardConfig, train

    labels = out / "labels.jsonl"
    if not labels.exists():
        answers = part(arguments.base, "answers")
        crowd: Any = WEAK
        out.mkdir(parents=True, exist_ok=True)
        simulate(
            SimulateConfig(answers=answers, out=labels, population=crowd, limit=arguments.labels, seed=seed, quiet=True)
        )
    run = train(
        RewardConfig(
            model=part(arguments.base, "sft"),
            data=str(labels),
            out=out / "reward",
            held_out=0.2,
            batch_size=32,
            epochs=3,
            learning_rate=1e-3,
            seed=seed,
            quiet=True,
        )
    )
    return str(run.path)


def ppo(seed: int, arguments: argparse.Namespace, reward: str, out: Path, audit: dict[str, Any]) -> Path:
    """The recipe of the demo, but for the KL penalty and the number of steps."""
    from goodheart.stages.ppo import PPOConfig, train

    demo = yaml.safe_load((Path(part(arguments.base, "ppo")) / "config.yaml").read_text(encoding="utf-8"))
    settings = {name: demo[name] for name in ("batch_size", "mini_batches", "ppo_epochs", "missing_eos_penalty")}
    changes: Any = {"sampling": {"max_new_tokens": NEW_TOKENS}, "audit": audit}
    return train(
        PPOConfig(
            model=part(arguments.base, "sft"),
            reward=reward,
            prompts=str(Path(part(arguments.base, "world")) / "prompts-train.jsonl"),
            out=out,
            steps=arguments.steps,
            kl_coef=0.0,
            learning_rate=arguments.learning_rate,
            seed=seed,
            quiet=True,
            checkpoint_every=1000,
            **settings,
            **changes,
        )
    ).path


def law_of(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """The law of RL fitted to the first part of a run, and how well it predicts the rest; beside it the law of best of
    n, a parabola.
    """
    high = [i for i, look in enumerate(looks) if look["audit"] < FLOOR * looks[0]["audit"]]
    used = looks[: high[0]] if high else looks
    d = [math.sqrt(max(look["kl"], 0.0)) for look in used]
    gains = [look["audit"] - looks[0]["audit"] for look in used]
    first = 0.65 * max(d)
    return predicted(RL, d, gains, first) | {
        "r2_beyond_of_parabola": predicted(BEST_OF_N, d, gains, first)["r2_beyond"]
    }


def predicted(law: Law, d: list[float], gains: list[float], first: float) -> dict[str, Any]:
    """Fitted on distances up to `first`; R2 on those beyond."""
    fitted = [i for i, x in enumerate(d) if x <= first]
    rest = [i for i, x in enumerate(d) if x > first]
    try:
        fit: Fit = fit_law(law, [d[i] for i in fitted], [gains[i] for i in fitted])
    except DataError as error:
        return {"law": str(error), "r2_beyond": None}
    r2 = fit.score([d[i] for i in rest], [gains[i] for i in rest]) if len(rest) > 1 else None
    shown = {k: v for k, v in fit.as_dict().items() if k in ("alpha", "beta", "peak", "peak_low", "peak_high", "r2")}
    return {"law": shown, "fitted_to": first, "points": [len(fitted), len(rest)], "r2_beyond": r2}


def best_of_n(arguments: argparse.Namespace) -> dict[str, Any]:
    """Many answers to some test prompts, chosen by the weak reward model of seed 0."""
    from goodheart.stages.sample import SampleConfig, sample
    from goodheart.stages.settings.sampling import SamplingSettings

    world = Path(part(arguments.base, "world"))
    asked, answers = arguments.out / "some-prompts.jsonl", arguments.out / "many-answers.jsonl"
    rows = [row.data for row in read_rows(str(world / "prompts-test.jsonl"))]
    every = max(1, len(rows) // 48)
    asked.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[::every]), encoding="utf-8")
    if not answers.exists():
        sample(
            SampleConfig(
                model=part(arguments.base, "sft"),
                prompts=str(asked),
                out=answers,
                answers=arguments.samples,
                sampling=SamplingSettings(max_new_tokens=NEW_TOKENS),
                quiet=True,
            )
        )
    weak, true = load_judge(str(arguments.out / "seed-0" / "reward")), load_judge(TRUTH)
    prompts = read_records(str(asked), "prompt").records
    proxy_PN, truth_PN = [], []
    for prompt, row in zip(prompts, read_rows(str(answers)), strict=True):
        said = [Answer(text) for text in row.data["completions"]]
        for scores_PN, judge in ((proxy_PN, weak), (truth_PN, true)):
            scores_PN.append([score or 0.0 for score in judge.score([prompt] * len(said), said)])
    curve = best_of_n_curve(np.array(proxy_PN), np.array(truth_PN), [n for n in NS if n <= arguments.samples])
    d = [math.sqrt(point.kl) for point in curve]
    gains = [point.truth - curve[0].truth for point in curve]
    found = {
        "prompts": len(prompts),
        "curve": [{"n": p.n, "kl": p.kl, "proxy": p.proxy, "truth": p.truth, "error": p.truth_error} for p in curve],
        **predicted(BEST_OF_N, d, gains, first=math.sqrt(math.log(32))),
    }
    for point in found["curve"]:
        print({k: round(v, 3) for k, v in point.items()})
    print({k: v for k, v in found.items() if k != "curve"}, flush=True)
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Truth and trained score against the distance from the start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for row in found["seeds"]:
        d = [math.sqrt(max(look["kl"], 0.0)) for look in row["looks"]]
        left.plot(d, [look["audit"] for look in row["looks"]], color="tab:green", alpha=0.5, lw=1)
        right.plot(d, [look["proxy"] for look in row["looks"]], color="tab:orange", alpha=0.5, lw=1)
        left.plot([d[row["kept_step"] // EVERY]], [row["kept"]], "o", color="black", ms=4)
    left.set(title="Truth (dots: kept by the guard)", xlabel="sqrt(KL)", ylabel="true preference")
    right.set(title="Score trained on", xlabel="sqrt(KL)", ylabel="reward model's score, std of its labels")
    if found["best_of_n"]:
        points = found["best_of_n"]["curve"]
        d = [math.sqrt(p["kl"]) for p in points]
        left.plot(d, [p["truth"] for p in points], "--", color="tab:blue", label="best of n")
        left.legend()
    mean = statistics.fmean(row["best"] for row in found["seeds"])
    left.axhline(mean, color="grey", lw=0.8, ls=":")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
