"""What importance weights are worth when the sampler is not the trainer: PPO with a sampler made coarse on purpose.

    python -m experiments.importance --base runs/demo-0     # a finished demo

PPO on the demo's SFT model and reward model, in bfloat16. Answers are drawn by a copy of the policy whose matrices are
rounded to a few significant bits before each step, as a quantised sampler's are: to 3, which is what float8 e5m2 keeps,
and to 1, powers of two. The trainer is not rounded. Each is trained without weights (`importance_cap: null`) and with
them (2), and beside them the policy that samples by itself. What is compared is the trained policy, not rounded and in
float32, on the demo's test prompts: the reward model's score, which was optimised, the playground's truth, which was
not, and the KL from the SFT model. Four seeds; a difference is to be held against that between seeds.

Writes experiments/results/importance.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from experiments.optimisers import Judged
from experiments.precision import Row, ppo_settings, truth
from goodheart.data.records import Answer
from goodheart.data.template import Template
from goodheart.judges.load import load_judge
from goodheart.models.causal import CausalLM
from goodheart.models.load import load_causal, resolve
from goodheart.stages import ppo
from goodheart.stages.settings.ppo import PPOConfig
from goodheart.stages.writer import Writer
from goodheart.train.metrics import read_metrics

HERE = Path(__file__).parent
CAP = 2.0
ARMS: tuple[tuple[int | None, float | None], ...] = ((None, None), (1, None), (1, CAP), (3, None), (3, CAP))
METRICS = ("sampler/logprob_diff_mean", "sampler/importance_mean", "sampler/importance_capped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("runs/demo"), help="finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/importance"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    rows = list(trained(arguments.base, arguments.out, range(arguments.seeds), arguments.steps))
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "importance.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))


class RoundedWriter(Writer):
    """Answers with a copy of the model that keeps `bits` significant bits of its matrices."""

    bits = 8

    def __init__(self, model: CausalLM, template: Template, *, slots: int = 64) -> None:
        self.trained = model
        super().__init__(copy.deepcopy(model), template, slots=slots)

    @torch.no_grad()
    def generate(self, *arguments: Any, **named: Any) -> Any:
        for own, trained in zip(self.engine.model.parameters(), self.trained.parameters(), strict=True):
            own.copy_(rounded(trained, self.bits) if trained.dim() > 1 else trained)
        return super().generate(*arguments, **named)


def rounded(x: Tensor, bits: int) -> Tensor:
    """Each number to its nearest with so many significant bits; float32."""
    fraction, exponent = torch.frexp(x.float())  # x = fraction * 2^exponent, 1/2 <= |fraction| < 1
    return torch.ldexp((fraction * 2**bits).round() / 2**bits, exponent)


def trained(base: Path, out: Path, seeds: Sequence[int], steps: int) -> Iterator[Row]:
    """Every seed in every arm."""
    judged, reward = Judged(base), load_judge(str(base / "reward"))
    for seed in seeds:
        for bits, cap in ARMS:
            begun = time.process_time()
            settings = ppo_settings(base) | {"steps": steps, "seed": seed, "dtype": "bfloat16", "importance_cap": cap}
            where = out / f"{seed}-{bits}-{cap}"
            writer = Writer if bits is None else type("Coarse", (RoundedWriter,), {"bits": bits})
            with mock.patch.object(ppo, "Writer", writer):
                run = ppo.train(PPOConfig(**settings, out=where, quiet=True))
            row: Row = {"seed": seed, "bits": bits, "cap": cap, "seconds": time.process_time() - begun}
            logged = read_metrics(run.path)
            row |= {name: statistics.fmean(step[name] for step in logged) for name in METRICS if name in logged[0]}
            said, row["kl"] = judged.ask(load_causal(resolve(str(run.path))))
            row["truth"] = truth(judged, said)
            flat = [(p, Answer(text)) for p, own in zip(judged.prompts, said, strict=True) for text in own]
            scores = reward.score([p for p, _ in flat], [a for _, a in flat])
            row["score"] = statistics.fmean(score for score in scores if score is not None)
            print(row, flush=True)
            yield row


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Each arm's measures, seed by seed."""
    yield "| sampler | weights | nats apart | capped | score | truth | KL |\n|---|---|---|---|---|---|---|"
    for bits, cap in dict.fromkeys((row["bits"], row["cap"]) for row in rows):
        own = [row for row in rows if (row["bits"], row["cap"]) == (bits, cap)]
        apart = statistics.fmean(row["sampler/logprob_diff_mean"] for row in own)
        capped = statistics.fmean(row.get("sampler/importance_capped", 0.0) for row in own)
        each = " | ".join(_each([row[name] for row in own]) for name in ("score", "truth", "kl"))
        name = "the policy" if bits is None else f"{bits} bits"
        yield f"| {name} | {cap or 'none'} | {apart:.4f} | {capped:.2%} | {each} |"


def _each(values: Sequence[float]) -> str:
    return f"{' / '.join(f'{x:.3f}' for x in values)}: {statistics.fmean(values):.3f}"


if __name__ == "__main__":
    main()
