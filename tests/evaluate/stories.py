"""Run folders and evaluations, made by hand, for the tests of the report."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any


def measure(value: float | None, half: float = 0.05, n: int = 200) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def record(rate: float, equal: float | None = None) -> dict[str, Any]:
    return {
        "rate": measure(rate),
        "wins": 10,
        "ties": 1,
        "losses": 5,
        "prompts": 200,
        "length_controlled": measure(rate if equal is None else equal),
    }


EVALUATION: dict[str, Any] = {
    "prompts": 200,
    "left_out": {"base": 0, "sft": 0, "ppo": 0},
    "models": {
        name: {"score": measure(score), "harmful": measure(harmful), "concise": measure(concise)}
        for name, score, harmful, concise in (("base", 0.3, 0.6, 0.8), ("sft", 0.5, 0.3, 0.8), ("ppo", 0.7, 0.0, 0.6))
    },
    "differences": {
        "sft": {"base": {"score": measure(0.2), "harmful": measure(-0.3), "concise": measure(0.0)}},
        "ppo": {
            "base": {"score": measure(0.4), "harmful": measure(-0.6), "concise": measure(-0.2)},
            "sft": {"score": measure(0.2), "harmful": measure(-0.3), "concise": measure(-0.2)},
        },
    },
    "wins": {
        "base": {"sft": record(0.3), "ppo": record(0.2)},
        "sft": {"base": record(0.7), "ppo": record(0.36)},
        "ppo": {"base": record(0.8), "sft": record(0.64)},
    },
    "leaderboard": [
        {"model": name, "rating": rating, "low": rating - 9, "high": rating + 9}
        for name, rating in (("ppo", 1100.0), ("sft", 1000.0), ("base", 900.0))
    ],
    "tics": {name: {"length": measure(10.0), "lists": measure(0.1)} for name in ("base", "sft", "ppo")},
    "tics_changed": [],
    "by_kind": {name: {"fact": {"score": measure(0.5)}} for name in ("base", "sft", "ppo")},
    "by_language": {},
    "examples": [
        {
            "why": "loss",
            "kind": "fact",
            "language": "en",
            "prompt": [{"role": "user", "content": "Where is it?"}],
            "answers": {
                name: {"text": f"said by {name}", "finish": "eos", "aspects": {"score": 0.5, "harmful": None}}
                for name in ("base", "sft", "ppo")
            },
        }
    ],
    "judge": "goodheart.playground.truth:score",
    "lower_is_better": ["harmful"],
    "yes_no": ["harmful"],
    "unit_interval": ["score", "harmful", "concise"],
}


LABELS: dict[str, Any] = {
    "labels": 1900, "people": 12, "prompts": 1900, "pairs": 11000, "accuracy": 0.85, "accuracy_low": 0.83,
    "accuracy_high": 0.87, "always_longest": 0.49, "always_first": None, "agreement": 0.74,
    "agreement_low": 0.7, "agreement_high": 0.78,
}  # fmt: skip


def evaluation() -> dict[str, Any]:
    return copy.deepcopy(EVALUATION)


def write_run(
    folder: Path,
    stage: str,
    *,
    results: dict[str, Any] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    audit: list[dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
    time: str = "2026-01-01T00:00:00+00:00",
    done: bool = True,
    parents: dict[str, Any] | None = None,
    data: list[dict[str, Any]] | None = None,
) -> Path:
    """A run folder with what is given."""
    folder.mkdir(parents=True)
    start = {"time": time, "seed": 0, "hardware": {"gpus": []}, "git_commit": "0123456789abcdef"}
    made_from = parents or {"model": {"path": "runs/before", "sha256": "abcd" * 16}}
    lineage = {"stage": stage, "parents": made_from, "data": data or [], "starts": [start]}
    _json(folder / "lineage.json", lineage)
    _json(folder / "config.yaml", settings or {"batch_size": 4})
    if results is not None:
        _json(folder / "results.json", results)
    for name, rows in (("metrics", metrics), ("audit", audit)):
        if rows is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if done:
        (folder / "DONE").write_text("now\n", encoding="utf-8")
    return folder


def audit_rows(looks: int = 12) -> list[dict[str, Any]]:
    """Looks along R(d) = d (0.2 - 0.1 ln d), whose peak lies at d = e; the proxy only rises."""
    rows = []
    for step in range(looks):
        d = step / 2
        gain = 0.2 * d - 0.1 * d * math.log(d) if d else 0.0
        wiggle = 0.001 * (-1) ** step
        rows.append({"step": step, "kl": d * d, "audit": 0.4 + gain + wiggle, "audit_error": 0.01, "proxy": d})
    best = max(rows, key=lambda row: row["audit"])
    return [row | {"kept": row is best} for row in rows]


def write_pipeline(folder: Path) -> Path:
    """sft, ppo and evaluate below one folder, with the record that a pipeline leaves."""
    steps = [{"step": i, "loss": 1 / i, "tokens": 100.0, "time": 0.0} for i in range(1, 6)]
    write_run(folder / "sft", "sft", results={"seconds": 30.0}, metrics=steps)
    rollouts = [
        {"step": i, "objective/kl": 0.1 * i, "objective/scores": 0.2 * i, "completions/mean_length": 10.0}
        for i in range(1, 6)
    ]
    write_run(folder / "ppo", "ppo", results={"seconds": 60.0}, metrics=rollouts, audit=audit_rows())
    write_run(folder / "evaluate", "evaluate", results=evaluation())
    (folder / "ppo-answers.jsonl").write_text('{"tokens": [3, 4]}\n{"tokens": [5]}\n', encoding="utf-8")
    stages = {
        "sft": {"stage": "sft", "settings": {"out": str(folder / "sft")}, "made": {"seconds": 31.0}},
        "ppo": {"stage": "ppo", "settings": {"out": str(folder / "ppo")}, "made": {"seconds": 62.0}},
        "ppo-answers": {
            "stage": "sample",
            "settings": {"out": str(folder / "ppo-answers.jsonl")},
            "made": {"seconds": 3.0},
        },
        "labels": {
            "stage": "simulate",
            "settings": {"out": str(folder / "labels.jsonl")},
            "made": {"seconds": 1.0},
            "results": LABELS,
        },
        "evaluate": {"stage": "evaluate", "settings": {"out": str(folder / "evaluate")}, "made": {"seconds": 4.0}},
    }
    finding = {"text": "evaluate.models.ppo.harmful.high < 0.02", "holds": False, "values": ["high = 0.05"]}
    gates = {finding["text"]: {"holds": False, "findings": [finding]}}
    _json(folder / "pipeline.json", {"begun": stages, "done": stages, "gates": gates})
    return folder


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
