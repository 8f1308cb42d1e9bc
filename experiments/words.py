"""PPO against a reward whose truth is known: share of cheerful words in a story, with a guard on its length.

    python -m experiments.words              # needs ../shared (or GOODHEART_SHARED); about ten minutes on two cores

Per seed: the reference's rewards (mean and standard deviation), PPO from it, and the result on prompts it never saw.
Succeeds when PPO lifts the reward by at least two of those standard deviations at a KL under 20 nats per answer.
Writes experiments/results/words.json and words.svg (reward against KL, one line a seed).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import sys
from pathlib import Path

from goodheart.data.writing import write_rows
from goodheart.train.metrics import read_metrics

HERE = Path(__file__).parent
CHEERFUL = frozenset(
    """happy love loved friend friends smile smiled play played fun kind nice sun hug hugged good laugh
    laughed""".split()  # noqa: SIM905
)
WANTED_WORDS = 40


def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Ten times the share of cheerful words, less half the relative distance from 40 words."""
    scores = []
    for text in completions:
        words = re.findall(r"[a-z']+", text.lower())
        share = sum(word in CHEERFUL for word in words) / max(len(words), 1)
        scores.append(10 * share - 0.5 * abs(len(words) - WANTED_WORDS) / WANTED_WORDS)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/words"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    shared = Path(os.environ.get("GOODHEART_SHARED", HERE.parents[1] / "shared"))
    if not shared.is_dir():
        sys.exit(f"{shared} is absent: this experiment needs the real model and stories (set GOODHEART_SHARED)")
    model = shared / "models" / "stories260k"
    train_prompts, test_prompts = prompts(shared, arguments.out)
    rows = [one_seed(seed, model, train_prompts, test_prompts, arguments) for seed in range(arguments.seeds)]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "words.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw([arguments.out / f"seed-{row['seed']}" for row in rows], results / "words.svg")
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "samples"})
    print("all seeds succeed" if all(row["succeeds"] for row in rows) else "NOT all seeds succeed")


def prompts(shared: Path, out: Path) -> tuple[Path, Path]:
    """The first eight words of real stories: 300 to train on, 100 others to test on."""
    text = gzip.decompress((shared / "data/tinystories_slice/stories.txt.gz").read_bytes()).decode()
    starts = [" ".join(story.split()[:8]) for story in text.split("<|endoftext|>") if story.strip()]
    starts = list(dict.fromkeys(starts))
    paths = out / "train.jsonl", out / "test.jsonl"
    for path, part in zip(paths, (starts[:300], starts[300:400]), strict=True):
        write_rows(path, [{"prompt": start} for start in part])
    return paths


def one_seed(seed: int, model: Path, train_prompts: Path, test_prompts: Path, arguments: argparse.Namespace) -> dict:
    """Trains one policy and measures it and its reference on the test prompts."""
    from goodheart.stages.ppo import PPOConfig, train
    from goodheart.stages.settings.sampling import SamplingSettings

    run = train(
        PPOConfig(
            model=str(model),
            reward="experiments.words:reward",
            prompts=str(train_prompts),
            out=arguments.out / f"seed-{seed}",
            seed=seed,
            steps=arguments.steps,
            batch_size=64,
            sampling=SamplingSettings(max_new_tokens=64),
            learning_rate=3e-4,
            kl_coef=0.1,
        )
    )
    reference, _ = measure(str(model), test_prompts, run.path / "reference.jsonl", seed)
    tuned, samples = measure(str(run.path), test_prompts, run.path / "tuned.jsonl", seed)
    spread = statistics.stdev(reference)
    lift = (statistics.mean(tuned) - statistics.mean(reference)) / spread
    kl = answer_kl(str(run.path), str(model), run.path / "tuned.jsonl")
    return {
        "seed": seed,
        "reference_reward": statistics.mean(reference),
        "reference_std": spread,
        "tuned_reward": statistics.mean(tuned),
        "lift_in_std": lift,
        "kl": kl,
        "succeeds": lift >= 2 and kl < 20,
        "samples": samples[:3],
    }


def measure(model: str, asked: Path, out: Path, seed: int) -> tuple[list[float], list[str]]:
    """Rewards of two answers to each test prompt, and the answers with their prompts."""
    from goodheart.stages.sample import SampleConfig, sample
    from goodheart.stages.settings.sampling import SamplingSettings

    sampling = SamplingSettings(max_new_tokens=64)
    sample(SampleConfig(model=model, prompts=str(asked), out=out, answers=2, seed=seed, sampling=sampling, quiet=True))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    texts = [text for row in rows for text in row["completions"]]
    return reward([], texts), [row["prompt"] + row["completions"][0] for row in rows]


def answer_kl(policy: str, reference: str, answered: Path) -> float:
    """KL of the finished policy from its reference in nats per answer, estimated on its own answers to test prompts."""
    import torch

    from goodheart.data.batches import pad
    from goodheart.data.records import Prompt
    from goodheart.data.template import Template, load_tokenizer
    from goodheart.models.causal import completion_logprobs
    from goodheart.models.load import load_causal, resolve

    template = Template(load_tokenizer(resolve(policy)))
    rows = [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    examples = [
        template.answer(Prompt(text=row["prompt"]), text, end=finish != "length")
        for row in rows
        for text, finish in zip(row["completions"], row["finish"], strict=True)
    ]
    batch = pad(examples, template.pad_id)
    with torch.no_grad():
        logps = [
            completion_logprobs(load_causal(resolve(m)), batch.ids_BT, batch.mask_BT).logps_BT
            for m in (policy, reference)
        ]
    return float((logps[0] - logps[1]).sum(1).mean())


def draw(runs: list[Path], path: Path) -> None:
    """Reward against KL over the steps of each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for run in runs:
        rows = read_metrics(run)
        axes.plot(
            [r["objective/kl"] for r in rows], [r["objective/raw_scores"] for r in rows], marker=".", label=run.name
        )
    axes.set(
        xlabel="KL from the reference (nats per answer)", ylabel="reward", title="Cheerful words: reward against KL"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
