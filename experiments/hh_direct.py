"""DPO and KTO on real HH-RLHF pairs: does the implicit reward tell which answer people preferred?

    python -m experiments.hh_direct          # needs ../shared (or GOODHEART_SHARED); minutes on one core

For each file and split of the conversations (20 % held out, the same for all): SFT on the chosen answers, then DPO on
the pairs and KTO on their two ends, and a reward model on the same pairs, all from the same SFT model. Held-out
accuracy of each beside "always the longest". Writes results/hh_direct.json. The rate of DPO and KTO was lowered once,
to a third, after a first run of one split in which KTO with 3e-4 fell below chance; the rest is as in that run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from goodheart.stages import dpo, kto, reward, sft
from goodheart.train.config import TrainingSettings

HERE = Path(__file__).parent
WANTED = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "always_longest",
    "always_longest_low",
    "always_longest_high",
    "prompts",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="start; None = the 260,032-parameter model of the test data")
    parser.add_argument("--out", type=Path, default=Path("runs/hh-direct"))
    parser.add_argument("--data", nargs="+", default=["hh_helpful_base", "hh_harmless_base"])
    parser.add_argument("--seeds", type=int, default=1, help="splits; about five minutes each and file")
    parser.add_argument("--max-length", type=int, default=320)
    arguments = parser.parse_args()
    shared = Path(os.environ.get("GOODHEART_SHARED", HERE.parents[1] / "shared"))
    if not shared.is_dir():
        sys.exit(f"{shared} is absent: this experiment needs the real pairs (set GOODHEART_SHARED)")
    start = arguments.model or str(shared / "models" / "stories260k")
    rows = []
    for name in arguments.data:
        for seed in range(arguments.seeds):
            out = arguments.out / f"{name}-{seed}"
            found = compare(start, str(shared / "data" / name), out, seed, arguments.max_length)
            rows += [{"data": name, "seed": seed, **row} for row in found]
            for row in rows[-len(found) :]:
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "hh_direct.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def compare(start: str, data: str, out: Path, seed: int, max_length: int) -> list[dict[str, Any]]:
    """Held-out accuracy of three judges made from one SFT model."""
    common: dict[str, Any] = {"data": data, "seed": seed, "held_out": 0.2, "max_length": max_length, "batch_size": 32}
    tuned = sft.train(sft.SFTConfig(model=start, out=out / "sft", learning_rate=1e-3, epochs=3, **common))
    common |= {"model": str(tuned.path), "epochs": 2}
    stages: list[tuple[str, Any, TrainingSettings]] = [
        ("reward", reward.train, reward.RewardConfig(out=out / "reward", learning_rate=3e-4, **common)),
        ("dpo", dpo.train, dpo.DPOConfig(out=out / "dpo", learning_rate=1e-4, **common)),
        ("kto", kto.train, kto.KTOConfig(out=out / "kto", learning_rate=1e-4, **common)),
    ]
    rows = []
    for method, train, config in stages:
        found = train(config).results
        measured = found.get("pairs") if method == "kto" else found
        if not measured or "accuracy" not in measured:
            raise SystemExit(
                f"{method} on {data}: no held-out pair to measure on; give more data or a larger --max-length"
            )
        rows.append({"method": method, **{key: measured[key] for key in WANTED}})
    return rows


if __name__ == "__main__":
    main()
