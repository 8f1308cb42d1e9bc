"""goodheart's stages on the jobs of bench/trainers_job.py: the real ones, through their Python entry points."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.contender import Watch, arguments, count_positions


def main() -> None:
    settings, result_file, started = arguments()
    watch = Watch(started, settings["device"])
    import torch

    torch.set_num_threads(settings["threads"])
    from goodheart.models import build, native
    from goodheart.models.transformer import Trunk
    from goodheart.train.run import Run

    log = Run.log
    count = count_positions(Trunk, "embed")
    positions: list[int] = []

    def log_and_note(run: Run, *args: Any, **kwargs: Any) -> None:
        log(run, *args, **kwargs)
        watch.step_done()
        positions.append(count())

    if settings["task"] in ("dpo", "kto"):  # each round computes the reference's log-probabilities itself
        # From the usual place: what is compiled once per machine is not once per round.
        build.load(native.CODES[torch.float32])
        os.environ["GOODHEART_CACHE"] = str(result_file.with_suffix(".cache"))
    Run.log = log_and_note  # type: ignore[method-assign, assignment]
    seen: dict[str, Any] = {}
    folder = Path(settings["folder"])
    run = _STAGES[settings["task"]](settings, seen, _shared(settings, result_file.with_suffix(".run")))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = [row["timing"] for row in rows[1:] if row.get("timing")]
    measured = watch.result() | {
        "losses": [row["loss"] for row in rows if "loss" in row],
        "baseline": [row["kl"] for row in rows if "kl" in row],
        "positions": [after - before for before, after in pairwise(positions)],
        "split": {name: statistics.median(clock[name] for clock in clocks) for name in clocks[0]} if clocks else {},
        **seen,
        **_compared(torch, settings, folder, run.model_dir),
    }
    if "completions/mean_length" in rows[0]:
        measured["new_tokens"] = [round(row["completions/mean_length"] * settings["batch_size"]) for row in rows]
    result_file.write_text(json.dumps(measured), encoding="utf-8")


def _shared(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """What all stages are told alike."""
    return {
        "out": out,
        "model": f"{settings['folder']}/policy",
        "batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "adam_betas": (0.9, 0.999),
        "max_grad_norm": settings["max_grad_norm"],
        "max_tokens": settings["max_tokens"],
        "dtype": settings["dtype"],
        "device": settings["device"],
        "seed": settings["seed"],
        "quiet": True,
    }


def _offline(settings: dict[str, Any]) -> dict[str, Any]:
    steps = settings["steps"]
    return {"data": f"{settings['folder']}/rows.jsonl", "held_out": 0.0, "epochs": float(steps), "max_steps": steps}


def _sft(settings: dict[str, Any], seen: dict[str, Any], shared: dict[str, Any]) -> Any:
    from goodheart.stages.sft import SFTConfig, train

    return train(SFTConfig(**shared, **_offline(settings)))


def _reward(settings: dict[str, Any], seen: dict[str, Any], shared: dict[str, Any]) -> Any:
    from goodheart.stages.reward import RewardConfig, train

    return train(RewardConfig(**shared, **_offline(settings), center_coefficient=settings["center_coefficient"]))


def _dpo(settings: dict[str, Any], seen: dict[str, Any], shared: dict[str, Any]) -> Any:
    from goodheart.stages import dpo

    _time_reference(dpo, seen)
    return dpo.train(dpo.DPOConfig(**shared, **_offline(settings), beta=settings["beta"]))


def _kto(settings: dict[str, Any], seen: dict[str, Any], shared: dict[str, Any]) -> Any:
    from goodheart.stages import kto

    _time_reference(kto, seen)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return kto.train(kto.KTOConfig(**shared, **_offline(settings), beta=settings["beta"], **weights))


def _grpo(settings: dict[str, Any], seen: dict[str, Any], shared: dict[str, Any]) -> Any:
    return _without_critic(settings, seen, shared | {"recipe": "grpo", "beta": settings["kl_in_loss"]})


def _rloo(settings: dict[str, Any], seen: dict[str, Any], shared: dict[str, Any]) -> Any:
    return _without_critic(settings, seen, shared | {"recipe": "rloo", "kl_coef": settings["kl_in_reward"]})


def _without_critic(settings: dict[str, Any], seen: dict[str, Any], shared: dict[str, Any]) -> Any:
    from goodheart.stages import grpo

    advantages = grpo.advantages

    def noted(batch: Any, groups: Any, *rest: Any) -> dict[str, float]:
        metrics = advantages(batch, groups, *rest)
        if "rewards" not in seen:
            seen["rewards"] = groups.scores_PK.reshape(-1).tolist()
            ends = batch.mask_BT.long().argmax(1, keepdim=True)
            seen["advantages"] = batch.advantages_BT.gather(1, ends)[:, 0].tolist()
        return metrics

    grpo.advantages = noted
    return grpo.train(
        grpo.GRPOConfig(
            **shared,
            reward="bench.trainers_reward:low_words",
            prompts=f"{settings['folder']}/rows.jsonl",
            steps=settings["steps"],
            num_generations=settings["num_generations"],
            sampling={"max_new_tokens": settings["new_tokens"], "temperature": 1.0},
        )
    )


_STAGES: dict[str, Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Any]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "kto": _kto,
    "grpo": _grpo,
    "rloo": _rloo,
}


def _time_reference(stage: Any, seen: dict[str, Any]) -> None:
    """Times the reference's only pass over the data, before the first step."""
    inner = stage.reference_logps

    def timed(*args: Any) -> Any:
        begun = time.perf_counter(), time.process_time()
        found = inner(*args)
        seen["reference_seconds"] = [time.perf_counter() - begun[0], time.process_time() - begun[1]]
        return found

    stage.reference_logps = timed


def _compared(torch: Any, settings: dict[str, Any], folder: Path, trained: Path) -> dict[str, Any]:
    """Log-probabilities of fixed rows before training, and how far it moved the weights."""
    from goodheart.models.causal import completion_logprobs
    from goodheart.models.load import load_causal, load_reward

    where = {"dtype": torch.float32, "device": settings["device"]}
    start = load_causal(folder / "policy", **where)
    ids_BT = torch.tensor(settings["fixed_rows"], device=settings["device"])
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    mask_BT[:, settings["prompt_tokens"] :] = True
    with torch.no_grad():
        logps_B = completion_logprobs(start, ids_BT, mask_BT).logps_BT.sum(1)
    before, after = start, trained
    if settings["task"] == "reward":
        before, after = (load_reward(place, **where) for place in (folder / "reward", trained))
    else:
        after = load_causal(trained, **where)
    moved = [
        (a.detach() - b.detach()).abs().mean() for a, b in zip(before.parameters(), after.parameters(), strict=True)
    ]
    return {"fixed_logps": logps_B.tolist(), "weight_change": float(torch.stack(moved).mean())}


if __name__ == "__main__":
    main()
