"""Llama 2's recipe in the playground: its rounds, two reward models against one, the rule of 0.15, what PPO needs.

    python -m experiments.llama2 --base runs/demo-0 runs/demo-1 runs/demo-2      # finished demos, one per seed

1. rounds: recipes/llama2.yaml, and beside it one reward model with rounds and fresh labels of its own
   (experiments/llama2.yaml). After each: true preference, helpfulness, harmful answers, refusals of what is harmless.
2. rule: "the safety reward gives a probability under 0.15", held against the truth on the SFT model's answers to test
   prompts: precision (how many of the answers it finds are harmful) and recall (how many of the harmful it finds), for
   safety models with and without labels on helpfulness.
3. worth: what a reward has left to give on answers of a model: how often it orders two as the truth does, and what the
   best of 8 by it is truly better than the mean. Beside it the audits of PPO's first ten steps with that reward.

Writes experiments/results/llama2.json and llama2.svg. What is finished in `--out` is not run again.

Letters: P prompts, N answers to each, R resamples of prompts.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from goodheart.data.records import Answer, Prompt
from goodheart.errors import GateError
from goodheart.evaluate.answers import read_answers
from goodheart.evaluate.aspects import aspects_of
from goodheart.evaluate.interval import Array, Bootstrap
from goodheart.judges.best_of_n import best_of_n
from goodheart.judges.combinations import sigmoid
from goodheart.judges.load import load_judge
from goodheart.judges.settings import RewardSetting
from goodheart.loop.live import seen
from goodheart.loop.pipeline import Pipeline
from goodheart.loop.record import Record
from goodheart.losses.reward import wilson_interval
from goodheart.stages.ppo import PPOConfig
from goodheart.stages.rejection import RejectionConfig

HERE = Path(__file__).parent
RECIPE, BESIDE = HERE.parent / "recipes" / "llama2.yaml", HERE / "llama2.yaml"
TRUTH, ASPECTS = "goodheart.playground.truth:score", "goodheart.playground.truth:aspects"
NAMES = ("score", "helpful", "harmful", "over_refusal", "wrong_fact", "format_valid")
THRESHOLDS = (0.05, 0.15, 0.3, 0.5)
# Prompts where an answer can do harm by the world's truth; lookalikes sound like it and are not.
KINDS = {"harmful": ("harmful",), "lookalike": ("lookalike",), "all": None}
# Safety models that the rule is tried with: two of the recipe, and the same without labels on helpfulness.
SAFE, ALONE = ("reward-safe-0", "reward-safe-1"), ("alone-0", "alone-1")
SHOWN = {"helpful": "helpful", "harmful": "harmful answers", "over_refusal": "harmless refused"}
DIFFERENT = 0.02  # in true preference, under which two answers are as good as each other

Case = tuple[int, bool, float]  # prompt, harmful by the truth, probability that it is safe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base", type=Path, nargs="+", default=[Path("runs/demo")], help="finished demos, one per seed"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/llama2"))
    parser.add_argument("--beside", type=int, default=1, help="on so many of them what is beside the recipe runs too")
    parser.add_argument("--trust-code", action="store_true", help="keep what other code finished")
    arguments = parser.parse_args()
    rows = [
        one_demo(base, arguments.out, beside=i < arguments.beside, trust_code=arguments.trust_code)
        for i, base in enumerate(arguments.base)
    ]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    (results / "llama2.json").write_text(text, encoding="utf-8")
    draw(rows, results / "llama2.svg")
    show(rows)


def one_demo(base: Path, out: Path, *, beside: bool, trust_code: bool) -> dict[str, Any]:
    """The recipe with the demo's seed, what is beside it where wanted, and all that is measured on them."""
    seed = yaml.safe_load((base / "sft" / "config.yaml").read_text(encoding="utf-8"))["seed"]
    ours, theirs = out / f"seed-{seed}", out / f"seed-{seed}-beside"
    sets = [f"vars.base={base}", f"seed={seed}"]
    recipe = Pipeline.load(RECIPE, [*sets, f"out={ours}"], trust_code=trust_code)
    row = {"seed": seed, "gates": walk(recipe), **measured(recipe, SAFE, ours / "test-start.jsonl")}
    if not beside:
        return row
    arms = Pipeline.load(BESIDE, [*sets, f"out={theirs}", f"vars.recipe={ours}"], trust_code=trust_code)
    walk(arms)
    learned = [step for step in recipe.steps if step.name in ("round-1", "round-2", "ppo")]
    rewards = {s.name: s.settings.reward for s in learned if isinstance(s.settings, RejectionConfig | PPOConfig)}
    drawn = {name: theirs / f"drawn-{name}.jsonl" for name in ("start", "distill")}
    given = {model: {name: worth(of, file) for name, of in rewards.items()} for model, file in drawn.items()}
    return row | {"beside": {**measured(arms, ALONE, ours / "test-start.jsonl"), "worth": given}}


def measured(pipeline: Pipeline, safe: Sequence[str], start: Path) -> dict[str, Any]:
    """Figures of one pipeline's stages.

    Args:
        safe: its safety models that the rule is tried with, on the SFT model's answers `start`.
    """
    results, out = pipeline.results(), pipeline.out
    found = results["evaluate"]
    return {
        "labels": {name: of["labels"] for name, of in results.items() if "labels" in of},
        "rewards": {name: accuracy(of) for name, of in results.items() if "trained_on" in of},
        "rounds": {model: {name: of[name] for name in NAMES} for model, of in found["models"].items()},
        "wins": {a: {b: record["rate"] for b, record in of.items()} for a, of in found["wins"].items()},
        "selected": {name: of for name, of in results.items() if "score_selected" in of},
        "rule": {name: rule(out / name, start) for name in safe},
        "audits": {name: looks(out / name / "audit.jsonl") for name, of in results.items() if "goodhart" in of},
        "seconds": sum(done["made"]["seconds"] for done in Record(out).read()["done"].values()),
    }


def walk(pipeline: Pipeline) -> str:
    """Runs it; a gate in the end that does not hold is a result like others."""
    try:
        with seen(pipeline) as view:
            pipeline.run(view=view)
    except GateError as error:
        if "evaluate" not in pipeline.results():
            raise
        return str(error)
    return "all hold"


def noise(prompts: Sequence[Any], completions: Sequence[Any], **_columns: Any) -> list[float]:
    """Standard normal scores that depend on prompt and answer and say nothing about them."""
    return [random.Random(f"{p} {c}").gauss(0, 1) for p, c in zip(prompts, completions, strict=True)]


def accuracy(results: dict[str, Any]) -> dict[str, Any]:
    """How often a reward model agrees with held-out labels."""
    names = ("trained_on", "pairs", "accuracy", "accuracy_low", "accuracy_high", "always_longest")
    return {name: results[name] for name in names}


def looks(audit: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.read_text(encoding="utf-8").splitlines()]


def worth(reward: RewardSetting, answers: Path) -> dict[str, Any]:
    """What a reward has to give on these answers: its agreement with the truth, and what the best of all N gains."""
    read = read_answers({"them": answers})
    prompts, said = flat(read.prompts, read.models["them"])
    shape = (len(read.prompts), -1)
    proxy_PN = np.array(load_judge(reward).score(prompts, said), dtype=float).reshape(shape)
    truth_PN = np.array(load_judge(TRUTH).score(prompts, said), dtype=float).reshape(shape)
    agrees_P = np.array([agreement(p, t) for p, t in zip(proxy_PN, truth_PN, strict=True)])
    gain_P = best_of_n(proxy_PN, truth_PN, truth_PN.shape[1]) - truth_PN.mean(1)
    bootstrap = Bootstrap(len(read.prompts))
    return {"agrees": bootstrap.mean(agrees_P).as_dict(), "gain": bootstrap.mean(gain_P).as_dict()}


def agreement(proxy_N: Array, truth_N: Array) -> float:
    """Share of the pairs that differ by the truth whose order the proxy tells, ties half; NaN without such a pair."""
    differ_NN = truth_N[:, None] - truth_N[None] > DIFFERENT
    if not differ_NN.any():
        return float("nan")
    return float((np.sign(proxy_N[:, None] - proxy_N[None])[differ_NN].mean() + 1) / 2)


def rule(reward: Path, answers: Path) -> dict[str, Any]:
    """Precision and recall of each threshold on each kind of prompt."""
    read = read_answers({"them": answers})
    prompts, said = flat(read.prompts, read.models["them"])
    places = [p for p, of_prompt in enumerate(read.models["them"]) for _ in of_prompt]
    cases = [(p, harm, safe) for p, (harm, safe) in zip(places, judged(reward, prompts, said), strict=True)]
    found: dict[str, Any] = {}
    for name, kinds in KINDS.items():
        mine = [case for case in cases if kinds is None or read.prompts[case[0]].meta["kind"] in kinds]
        found[name] = {
            "answers": len(mine),
            "harmful": sum(harm for _, harm, _ in mine),
            "at": {str(t): rates(mine, t, len(read.prompts)) for t in THRESHOLDS},
        }
    return found


def flat(prompts: Sequence[Prompt], answers_PN: Sequence[Sequence[Answer]]) -> tuple[list[Prompt], list[Answer]]:
    """Every answer with its prompt, in order."""
    pairs = [(prompt, answer) for prompt, own in zip(prompts, answers_PN, strict=True) for answer in own]
    return [prompt for prompt, _ in pairs], [answer for _, answer in pairs]


def judged(reward: Path, prompts: list[Prompt], answers: list[Answer]) -> list[tuple[bool, float]]:
    """For each answer whether the truth calls it unsafe, and the probability of being safe by the reward model.

    Where the truth knows no safety (a sum, a list) an answer does no harm.
    """
    truth = aspects_of(ASPECTS, prompts, answers)["safe"]
    scores = load_judge(str(reward)).score(prompts, answers)
    return [(value == 0.0, sigmoid(score or 0.0)) for value, score in zip(truth, scores, strict=True)]


def rates(cases: list[Case], threshold: float, prompts: int) -> dict[str, Any]:
    """Counts, and both rates with 95 % intervals over resampled prompts; None where there is nothing to divide by."""
    hits_P, flagged_P, harmful_P = np.zeros(prompts), np.zeros(prompts), np.zeros(prompts)
    for p, harm, safe in cases:
        flagged = safe < threshold
        hits_P[p] += harm and flagged
        flagged_P[p] += flagged
        harmful_P[p] += harm
    return {
        "flagged": int(flagged_P.sum()),
        "hits": int(hits_P.sum()),
        "precision": share(hits_P, flagged_P),
        "recall": share(hits_P, harmful_P),
    }


def share(part_P: np.ndarray[Any, Any], whole_P: np.ndarray[Any, Any]) -> dict[str, float] | None:
    """Sum of the parts over sum of the wholes, with its percentile interval; Wilson's where none or all are parts."""
    part, whole = float(part_P.sum()), float(whole_P.sum())
    if not whole:
        return None
    if part in (0, whole):
        low, high = wilson_interval(part, whole)
        return {"value": part / whole, "low": low, "high": high}
    weights_RP = Bootstrap(len(part_P)).weights_RP
    wholes_R = weights_RP @ whole_P
    drawn_R = (weights_RP @ part_P)[wholes_R > 0] / wholes_R[wholes_R > 0]
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return {"value": part / whole, "low": float(low), "high": float(high)}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """What each step makes of the model: means over seeds, and each seed as a thin line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = ("start", "round-1", "round-2", "distill", "ppo")
    lines: dict[str, tuple[str, Sequence[dict[str, Any]], tuple[str, ...]]] = {
        "two reward models": ("#4477aa", rows, steps)
    }
    if both := [row for row in rows if "beside" in row]:
        lines["one"] = ("#ee6677", both, ("start", "mixed-1", "mixed-2"))
    figure, panes = plt.subplots(1, len(SHOWN), figsize=(12, 3.6), layout="constrained")
    for axes, (name, title) in zip(panes, SHOWN.items(), strict=True):
        for label, (colour, of, models) in lines.items():
            each = [[rounds(row)[model][name]["value"] for model in models] for row in of]
            axes.plot(np.mean(each, axis=0), "o-", color=colour, label=label, lw=1.6, ms=5)
            for own in each:
                axes.plot(own, color=colour, lw=0.6, alpha=0.5)
        axes.set_xticks(range(len(steps)), ["SFT", "round 1", "round 2", "distill", "PPO"])
        axes.set_title(title)
        axes.set_ylim(bottom=0.5 if name == "helpful" else 0)
    panes[0].legend(frameon=False)
    figure.savefig(path)


def rounds(row: dict[str, Any]) -> dict[str, Any]:
    """Every model of a row with its measures, those beside the recipe too."""
    return row.get("beside", {"rounds": {}})["rounds"] | row["rounds"]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The tables of docs/llama2.md: mean over seeds (each seed)."""
    both = [row["beside"] for row in rows if "beside" in row]
    for of in (rows, both):
        for model in of[0]["rounds"] if of else ():
            found = [row["rounds"][model] for row in of]
            print(model, *(cell([each[name]["value"] for each in found]) for name in ("score", *SHOWN)), sep=" | ")
        for name in of[0]["rule"] if of else ():
            for kind in KINDS:
                show_rule(name, kind, [row["rule"][name][kind] for row in of])
        for name in of[0]["audits"] if of else ():
            audits = [[f"{look['audit']:.3f}" for look in row["audits"][name]] for row in of]
            print(name, *(" ".join(own) for own in audits), sep=" | ")
    for model, rewards in both[0]["worth"].items() if both else ():
        for name in rewards:
            found = [each["worth"][model][name] for each in both]
            print(
                model, name, *(cell([each[what]["value"] for each in found]) for what in ("agrees", "gain")), sep=" | "
            )


def show_rule(name: str, kind: str, found: Sequence[dict[str, Any]]) -> None:
    """The rule of 0.15: counts over all seeds (each seed), precision, recall."""
    at = [each["at"]["0.15"] for each in found]
    flagged, hits = (sum(each[what] for each in at) for what in ("flagged", "hits"))
    harmful, answers = (sum(each[what] for each in found) for what in ("harmful", "answers"))
    each = " ".join(str(one["flagged"]) for one in at)
    print(name, kind, answers, harmful, f"{flagged} ({each})", f"{hits / max(flagged, 1):.2f}", sep=" | ", end=" | ")
    print(f"{hits / max(harmful, 1):.2f}")


def cell(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({' '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
