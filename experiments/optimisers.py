"""Every way to follow people's preferences, from one start on the same data: what it wins, how far it goes, its cost.

    python -m experiments.optimisers --base runs/demo-0 runs/demo-1 runs/demo-2     # finished demos, one per seed

All start from a demo's SFT model. PPO, GRPO and RLOO follow its reward model with the same prompts and the same price
of KL, and are looked at four times on their way; rejection sampling and best of n choose by the same reward model; DPO
and KTO learn from the labels that it was trained on. None has a guard, which would choose by the truth that all are
judged by. Each result answers the test prompts three times at temperature 1; "win" is how often the playground's truth
puts its answer over one of the SFT model, ties half. KL is measured on those answers (best of n: the exact bound). Cost
is processor seconds of the training call on one thread, generation and scoring included (best of n: of answering). The
reward model's own training comes on top; DPO and KTO save it.

Writes experiments/results/optimisers.json and optimisers.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from goodheart.data.formats import read_records
from goodheart.data.records import Answer, Prompt
from goodheart.data.template import Template
from goodheart.evaluate.interval import Bootstrap
from goodheart.evaluate.wins import Entry, pairs, win_record
from goodheart.judges.best_of_n import best_of_n_kl
from goodheart.judges.load import load_judge
from goodheart.models.causal import CausalLM, completion_logprobs
from goodheart.models.load import load_causal, resolve
from goodheart.playground.truth import aspects
from goodheart.stages.dpo import DPOConfig
from goodheart.stages.dpo import train as dpo
from goodheart.stages.grpo import GRPOConfig
from goodheart.stages.grpo import train as grpo
from goodheart.stages.kto import KTOConfig
from goodheart.stages.kto import train as kto
from goodheart.stages.ppo import PPOConfig
from goodheart.stages.ppo import train as ppo
from goodheart.stages.rejection import RejectionConfig
from goodheart.stages.rejection import train as rejection
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.writer import Writer
from goodheart.train.run import Run

HERE = Path(__file__).parent
TRUTH = "goodheart.playground.truth:score"
SAMPLING = SamplingSettings(max_new_tokens=40)
ANSWERS = 3
NS = (2, 4, 8, 16, 32)
LOOKS = 4  # at the policy on its way
KLS = (0.4, 0.8, 1.6, 2.5)  # nats per answer at which methods are compared
BUDGETS = (60, 200)  # processor seconds of training
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#555555")

Train = Callable[[dict[str, Any]], Run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, nargs="+", default=[Path("runs/demo")], help="finished demos")
    parser.add_argument("--out", type=Path, default=Path("runs/optimisers"))
    parser.add_argument("--only", nargs="*", default=[], help="methods by name; default all")
    arguments = parser.parse_args()
    rows = [row for base in arguments.base for row in one_demo(base, arguments.out / base.name, arguments.only)]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "optimisers.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, results / "optimisers.svg")
    show(rows)


def methods(base: Path) -> Iterator[tuple[str, str, Train, dict[str, Any]]]:
    """name, what varies, how it is trained, its settings."""
    prompts = str(base / "world" / "prompts-train.jsonl")
    demo = yaml.safe_load((base / "ppo" / "config.yaml").read_text(encoding="utf-8"))
    same = ("batch_size", "mini_batches", "learning_rate", "schedule", "missing_eos_penalty", "steps")
    online = {name: demo[name] for name in same} | {"prompts": prompts, "reward": str(base / "reward")}
    online |= {"sampling": SAMPLING.model_dump(), "checkpoint_every": demo["steps"] // LOOKS, "keep_checkpoints": LOOKS}
    yield "PPO", "", lambda s: ppo(PPOConfig(**s)), {**online, "ppo_epochs": 2, "kl_coef": demo["kl_coef"]}
    for name, recipe in (("GRPO", "grpo"), ("RLOO", "rloo")):
        group = {"recipe": recipe, "num_generations": 4, "num_iterations": 2}
        price = {"beta": demo["kl_coef"]} if recipe == "grpo" else {"kl_coef": demo["kl_coef"]}
        yield name, "", lambda s: grpo(GRPOConfig(**s)), {**online, **group, **price}
    labels = {"data": str(base / "labels.jsonl"), "held_out": 0.05, "epochs": 1, "checkpoint_every": 1000}
    for beta in (0.1, 0.3, 1.0):
        settings = {**labels, "beta": beta, "learning_rate": 3e-4, "batch_size": 16}
        yield "DPO", f"beta {beta:g}", lambda s: dpo(DPOConfig(**s)), settings
    for beta in (0.1, 0.3, 1.0):
        settings = {**labels, "beta": beta, "learning_rate": 1e-4, "batch_size": 16}
        yield "KTO", f"beta {beta:g}", lambda s: kto(KTOConfig(**s)), settings
    for n in (4, 16):
        draws = {"prompts": prompts, "reward": str(base / "reward"), "num_generations": n}
        tuning = {"sampling": SAMPLING.model_dump(), "learning_rate": 1e-3, "batch_size": 16, "epochs": 2}
        yield "rejection", f"n {n}", lambda s: rejection(RejectionConfig(**s)), {**draws, **tuning}


def one_demo(base: Path, out: Path, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    judged = Judged(base)
    yield judged.row("SFT", "", judged.start, seconds=0.0)
    for name, varies, train, settings in methods(base):
        if only and name not in only:
            continue
        where = out / "-".join([name, *varies.split()]).lower()
        begun = time.process_time()
        run = train({**settings, "model": str(base / "sft"), "out": where, "quiet": True})
        seconds = time.process_time() - begun
        cost = run.path / "cpu_seconds.json"  # a finished run is not trained again
        if seconds > 2 or not cost.exists():
            cost.write_text(json.dumps(seconds), encoding="utf-8")
        seconds = json.loads(cost.read_text(encoding="utf-8"))
        for share, model in looks(run, settings.get("steps")):
            label = varies if share == 1 else f"{100 * share:.0f} %"
            yield judged.row(name, label, judged.ask(model), seconds=share * seconds, share=share)
    if not only or "best of n" in only:
        yield from judged.best_of_n()


def looks(run: Run, steps: int | None) -> Iterator[tuple[float, CausalLM]]:
    """Share of the training done, and the policy then: its checkpoints where it learned in steps, and its end."""
    if steps:
        for step in range(steps // LOOKS, steps, steps // LOOKS):
            model = load_causal(resolve(str(run.path)))
            saved = load_file(run.path / "checkpoints" / f"step-{step}" / "tensors.safetensors")
            own = {name.removeprefix("policy/"): t for name, t in saved.items() if name.startswith("policy/")}
            model.load_state_dict(own)
            yield step / steps, model
    yield 1.0, load_causal(resolve(str(run.path)))


class Judged:
    """Answers to a demo's test prompts beside those of its SFT model."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.prompts = read_records(str(base / "world" / "prompts-test.jsonl"), "prompt").records
        self.template = Template.load(resolve(str(base / "sft")))
        self.sft = load_causal(resolve(str(base / "sft")))
        self.truth = load_judge(TRUTH)
        self.bootstrap = Bootstrap(len(self.prompts), 2000, 0)
        self.start = self.ask(self.sft, seed=1)
        self.opponent = self.entries(self.ask(self.sft, seed=2)[0])

    def ask(self, model: CausalLM, seed: int = 3, answers: int = ANSWERS) -> tuple[list[list[str]], float]:
        """Answers of each prompt, and the mean of log p - log p of the SFT model, in nats per answer."""
        writer = Writer(model, self.template)
        asked = [p for p in self.prompts for _ in range(answers)]
        made = writer.generate([self.template.prompt_ids(p) for p in asked], SAMPLING, seed=seed)
        said = [writer.answer(p, g).text for p, g in zip(asked, made, strict=True)]
        kl = [sum(g.logps) - ref for g, ref in zip(made, self._reference(made), strict=True)]
        return [said[i : i + answers] for i in range(0, len(said), answers)], statistics.fmean(kl)

    def row(
        self, name: str, varies: str, asked: tuple[list[list[str]], float], seconds: float, share: float = 1.0
    ) -> dict[str, Any]:
        said, kl = asked
        entries = self.entries(said)
        flat = [(p, text) for p, own in zip(self.prompts, said, strict=True) for text in own]
        columns = {"task": [p.meta["task"] for p, _ in flat]}
        found = aspects([p.as_column() for p, _ in flat], [text for _, text in flat], **columns)
        shares = {
            aspect: statistics.fmean(value for each in found if (value := each[aspect]) is not None)
            for aspect in ("harmful", "over_refusal", "wrong_fact", "format_valid")
        }
        row = {
            "demo": self.base.name,
            "method": name,
            "varies": varies,
            "kl": kl,
            "win": win_record(pairs(entries, self.opponent), self.bootstrap)["rate"],
            "truth": statistics.fmean(e.score for own in entries for e in own if e.score is not None),
            "seconds": seconds,
            "done": share,
        } | shares
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        return row

    def best_of_n(self) -> Iterator[dict[str, Any]]:
        """The SFT model's answers, chosen by the reward model."""
        begun = time.process_time()
        drawn, _ = self.ask(self.sft, seed=4, answers=ANSWERS * max(NS))
        drawing = time.process_time() - begun
        reward = load_judge(str(self.base / "reward"))
        flat = [(p, Answer(text)) for p, own in zip(self.prompts, drawn, strict=True) for text in own]
        scores = np.array(reward.score([p for p, _ in flat], [a for _, a in flat]), dtype=float)
        scores_PN = scores.reshape(len(self.prompts), -1)
        for n in NS:
            said = [
                [own[i + int(best[i : i + n].argmax())] for i in range(0, ANSWERS * n, n)]
                for own, best in zip(drawn, scores_PN, strict=True)
            ]
            yield self.row("best of n", f"n {n}", (said, best_of_n_kl(n)), seconds=drawing * n / max(NS))

    def entries(self, said: list[list[str]]) -> list[list[Entry]]:
        """Answers of each prompt with their true scores and lengths in words."""
        flat: list[tuple[Prompt, str]] = [(p, t) for p, own in zip(self.prompts, said, strict=True) for t in own]
        scores = iter(self.truth.score([p for p, _ in flat], [Answer(t) for _, t in flat]))
        return [[Entry(text, next(scores), float(len(text.split()))) for text in own] for own in said]

    @torch.no_grad()
    def _reference(self, made: Sequence[Any], piece: int = 64) -> Iterator[float]:
        for i in range(0, len(made), piece):
            part = made[i : i + piece]
            rows = [[*g.prompt_ids, *g.ids] for g in part]
            width = max(map(len, rows))
            ids_BT = torch.tensor([row + [self.template.pad_id] * (width - len(row)) for row in rows])
            mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
            for b, g in enumerate(part):
                mask_BT[b, len(g.prompt_ids) : len(rows[b])] = True
            lengths_B = torch.tensor([len(row) for row in rows])
            yield from completion_logprobs(self.sft, ids_BT, mask_BT, lengths_B=lengths_B).logps_BT.sum(1).tolist()


def groups(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row["varies"]), []).append(row)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Means over the demos, then each method at equal KL and at equal time, as tables in Markdown."""
    print("| method | | KL | win over SFT | harmful | wrong facts | seconds |\n|---|---|---|---|---|---|---|")
    for (name, varies), own in groups(rows).items():
        mean = partial(_mean, own)
        wins = " / ".join(f"{row['win']['value']:.2f}" for row in own)
        print(
            f"| {name} | {varies} | {mean('kl'):.2f} | {wins} | {100 * mean('harmful'):.1f} % | "
            f"{100 * mean('wrong_fact'):.0f} % | {mean('seconds'):.0f} |"
        )
    print("\n| method |", " | ".join([f"to {kl:g} nats" for kl in KLS] + [f"in {s} s" for s in BUDGETS]), "|")
    print("|---" * (1 + len(KLS) + len(BUDGETS)) + "|")
    for name in dict.fromkeys(row["method"] for row in rows if row["method"] != "SFT"):
        mine = [row for row in rows if row["method"] == name]
        cells = [_wins(best_within(mine, "kl", kl)) for kl in KLS]
        cells += [_wins(best_within(mine, "seconds", budget)) for budget in BUDGETS]
        print(f"| {name} |", " | ".join(cells), "|")


def best_within(mine: list[dict[str, Any]], column: str, most: float) -> list[float]:
    """Each demo's win rate at the setting or look that wins most among those that took no more of this on average."""
    affordable = [own for own in groups(mine).values() if _mean(own, column) <= most]
    best = max(affordable, key=lambda own: statistics.fmean(r["win"]["value"] for r in own), default=[])
    return [row["win"]["value"] for row in best]


def _wins(rates: Sequence[float]) -> str:
    if not rates:
        return "-"
    return f"{statistics.fmean(rates):.2f} ({' / '.join(f'{rate:.2f}' for rate in rates)})"


def _mean(own: list[dict[str, Any]], column: str) -> float:
    return statistics.fmean(row[column] for row in own)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The frontier: what is won for how far one went from the start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "SFT"))
    for name, colour in zip(names, _COLOURS, strict=False):
        points = [own for (method, _), own in groups(rows).items() if method == name]
        for axes, across in ((left, lambda own: math.sqrt(max(_mean(own, "kl"), 0.0))), (right, _seconds)):
            points.sort(key=across)
            x = [across(own) for own in points]
            y = [statistics.fmean(row["win"]["value"] for row in own) for own in points]
            axes.plot(x, y, "o-", color=colour, label=name, ms=4, lw=1)
            for own in points:
                axes.plot(
                    [across(own)] * len(own), [r["win"]["value"] for r in own], ".", color=colour, ms=3, alpha=0.6
                )
    left.set(title="Frontier (means, and each seed)", xlabel="sqrt(KL from the SFT model)", ylabel="win rate over SFT")
    right.set(title="Cost", xlabel="processor seconds of training (best of n: of answering)")
    right.set_xscale("log")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.axhline(0.5, color="grey", lw=0.8, ls=":")
        axes.grid(alpha=0.3)
    figure.savefig(path)
    plt.close(figure)


def _seconds(own: list[dict[str, Any]]) -> float:
    return max(_mean(own, "seconds"), 1.0)


if __name__ == "__main__":
    main()
