"""goodheart's PPO stage on the job of bench/ppo_job.py: the real one, through its Python entry point."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bench.contender import Watch, arguments


def main() -> None:
    settings, result_file, started = arguments()
    watch = Watch(started, settings["device"])
    import torch

    torch.set_num_threads(settings["threads"])
    from goodheart.stages.ppo import PPOConfig, train
    from goodheart.train.run import Run

    log = Run.log

    def log_and_note(run: Run, *args: Any, **kwargs: Any) -> None:
        log(run, *args, **kwargs)
        watch.step_done()

    Run.log = log_and_note  # type: ignore[method-assign, assignment]
    folder = Path(settings["folder"])
    run = train(
        PPOConfig(
            out=result_file.with_suffix(".run"),
            model=str(folder / "policy"),
            reward=str(folder / "reward"),
            value_model="reward",
            prompts=str(folder / "prompts.jsonl"),
            steps=settings["steps"],
            batch_size=settings["batch_size"],
            mini_batches=settings["mini_batches"],
            ppo_epochs=settings["ppo_epochs"],
            sampling={"max_new_tokens": settings["new_tokens"], "temperature": settings["temperature"]},
            learning_rate=settings["learning_rate"],
            warmup_ratio=0.0,
            adam_betas=(0.9, 0.999),
            max_grad_norm=1e9,  # TRL's loop does not clip
            kl_coef=settings["kl_coef"],
            gamma=settings["gamma"],
            lam=settings["lam"],
            cliprange=settings["cliprange"],
            cliprange_value=settings["cliprange_value"],
            vf_coef=settings["vf_coef"],
            normalize_reward=False,
            dtype=settings["dtype"],
            device=settings["device"],
            max_tokens=settings["max_tokens"],
            seed=settings["seed"],
            quiet=True,
        )
    )
    measured = watch.result()
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = [row["timing"] for row in rows[1:]]
    tokens = [round(row["completions/mean_length"] * settings["batch_size"]) for row in rows]
    measured |= {
        "split": {name: statistics.median(clock[name] for clock in clocks) for name in clocks[0]},
        "new_tokens": tokens,
        "updates": round(sum(row["policy/updates"] for row in rows)),
        "first": {name: value for name, value in rows[0].items() if "/" in name},
        **fixed(torch, settings, folder, run.model_dir),
    }
    result_file.write_text(json.dumps(measured), encoding="utf-8")


def fixed(torch: Any, settings: dict[str, Any], folder: Path, trained: Path) -> dict[str, Any]:
    """Scores and log-probabilities of fixed rows, the prompts' lengths, and how far the weights have moved."""
    from goodheart.data.formats import read_records
    from goodheart.data.template import Template, load_tokenizer
    from goodheart.judges.reward import RewardJudge
    from goodheart.models.causal import completion_logprobs
    from goodheart.models.load import load_causal

    template = Template(load_tokenizer(folder / "policy"))
    prompts = read_records(str(folder / "prompts.jsonl"), "prompt").records
    judge = RewardJudge.load(str(folder / "reward"), dtype=torch.float32, device=torch.device(settings["device"]))
    where = {"dtype": torch.float32, "device": settings["device"]}
    start, end = (load_causal(path, **where) for path in (folder / "policy", trained))
    ids_BT = torch.tensor(settings["fixed_rows"], device=settings["device"])
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    mask_BT[:, settings["prompt_tokens"] :] = True
    with torch.no_grad():
        logps_BT = completion_logprobs(start, ids_BT, mask_BT).logps_BT
    moved = [(a.detach() - b.detach()).abs().mean() for a, b in zip(start.parameters(), end.parameters(), strict=True)]
    return {
        "fixed_scores": judge.score_tokens(settings["fixed_rows"])[:, 0].tolist(),
        "fixed_logps": logps_BT.sum(1).tolist(),
        "prompt_tokens": sorted({len(template.prompt_ids(prompt)) for prompt in prompts}),
        "weight_change": float(torch.stack(moved).mean()),
    }


if __name__ == "__main__":
    main()
