"""Reward models on real HH-RLHF pairs, beside two rulers: "always the longest" and a bag of words.

    python -m experiments.hh_reward          # needs ../shared (or GOODHEART_SHARED)

All see the same training and held-out conversations (split by first question, 20 % held out). The bag of words is a
logistic regression (scikit-learn) on the difference of the two answers' word counts. Three seeds of the split.
Writes experiments/results/hh_reward.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from goodheart.data.formats import read_records, split_by_prompt
from goodheart.data.records import Judgement
from goodheart.losses.reward import wilson_interval

HERE = Path(__file__).parent
HELD_OUT = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/hh-small/pretrain", help="start; must not have seen the pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/hh-reward"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=320)
    arguments = parser.parse_args()
    shared = Path(os.environ.get("GOODHEART_SHARED", HERE.parents[1] / "shared"))
    if not shared.is_dir():
        sys.exit(f"{shared} is absent: this experiment needs the real pairs (set GOODHEART_SHARED)")
    rows = []
    for name in ("hh_helpful_base", "hh_harmless_base"):
        source = str(shared / "data" / name)
        for seed in range(arguments.seeds):
            row = {"data": name, "seed": seed, **reward_model(source, name, seed, arguments)}
            rows.append(row | bag_of_words(source, seed, arguments))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "hh_reward.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def reward_model(source: str, name: str, seed: int, arguments: argparse.Namespace) -> dict:
    """Held-out accuracy of a reward model, with always-longest on the same pairs."""
    from goodheart.stages.reward import RewardConfig, train

    run = train(
        RewardConfig(
            model=arguments.model,
            data=source,
            out=arguments.out / f"{name}-{seed}",
            seed=seed,
            held_out=HELD_OUT,
            max_length=arguments.max_length,
            batch_size=32,
            learning_rate=3e-4,
            epochs=2,
        )
    )
    wanted = ("accuracy", "accuracy_low", "accuracy_high", "always_longest", "pairs", "trained_on", "skipped", "ece")
    return {key: run.results[key] for key in wanted}


def bag_of_words(source: str, seed: int, arguments: argparse.Namespace) -> dict:
    """A linear model that knows words, not their order; trained and measured on the pairs that fit the reward model."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    from goodheart.data.examples import comparisons
    from goodheart.data.template import Template, load_tokenizer
    from goodheart.models.load import resolve

    records = read_records(source, "preference").records
    template = Template(load_tokenizer(resolve(arguments.model)))
    records = [r for r in records if comparisons([r], template, arguments.max_length).items]
    kept, aside = split_by_prompt(records, HELD_OUT, seed)
    counts = CountVectorizer(min_df=3, ngram_range=(1, 1)).fit([a.words for r in kept for a in r.answers])

    def difference(rows: list[Judgement]):
        good = [r.answers[r.ranks.index(min(r.ranks))].words for r in rows]
        bad = [r.answers[r.ranks.index(max(r.ranks))].words for r in rows]
        return counts.transform(good) - counts.transform(bad)

    from scipy.sparse import vstack

    step = difference(kept)
    labels = [1] * step.shape[0] + [0] * step.shape[0]
    model = LogisticRegression(C=0.03, max_iter=2000, fit_intercept=False).fit(vstack([step, -step]), labels)
    right = int((model.decision_function(difference(aside)) > 0).sum())
    low, high = wilson_interval(right, len(aside))
    return {
        "bag_accuracy": right / len(aside),
        "bag_low": low,
        "bag_high": high,
        "bag_pairs": len(aside),
    }


if __name__ == "__main__":
    main()
