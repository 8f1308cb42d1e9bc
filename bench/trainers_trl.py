"""TRL's trainers on the jobs of bench/trainers_job.py. Runs in an environment of its own, started by bench/trainers.py.

Nothing of TRL is replaced; methods are wrapped to time them and to note what they return.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from bench.contender import Watch, arguments, count_positions
from bench.trainers_reward import low_words


def main() -> None:
    settings, result_file, started = arguments()
    watch = Watch(started, settings["device"])
    import torch

    torch.set_num_threads(settings["threads"])
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback
    from transformers.models.llama.modeling_llama import LlamaModel

    disable_progress_bar()
    count = count_positions(LlamaModel)
    positions: list[int] = []
    split = Split()

    class EndOfStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            split.end_step()
            watch.step_done()
            positions.append(count())

    folder, task = settings["folder"], settings["task"]
    data = load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train", cache_dir=f"{result_file}.cache")
    seen: dict[str, Any] = {}
    trainer = _TRAINERS[task](settings, data, _shared(settings, f"{result_file}.out"), EndOfStep())
    losses: list[float] = []
    trainer.compute_loss = _noting(losses, trainer.compute_loss)
    if task in ("grpo", "rloo"):
        split.watch(trainer, seen)
    trainer.train()
    trained = trainer.model
    kind = AutoModelForSequenceClassification if task == "reward" else AutoModelForCausalLM
    start = kind.from_pretrained(f"{folder}/{'reward' if task == 'reward' else 'policy'}")
    pairs = zip(trained.parameters(), start.to(trained.device).parameters(), strict=True)
    moved = [(a.detach().float() - b.detach()).abs().mean() for a, b in pairs]
    measured = watch.result() | {
        "losses": losses,
        "baseline": [row["kl"] for row in trainer.state.log_history if "kl" in row],
        "positions": [after - before for before, after in pairwise(positions)],
        "split": split.medians(),
        "new_tokens": split.tokens,
        "weight_change": float(torch.stack(moved).mean()),
        "fixed_logps": _fixed(torch, AutoModelForCausalLM.from_pretrained(f"{folder}/policy"), settings),
        **seen,
    }
    result_file.write_text(json.dumps(measured), encoding="utf-8")


def _shared(settings: dict[str, Any], out: str) -> dict[str, Any]:
    """What all trainers are told alike; not set: what TRL takes by default."""
    return {
        "output_dir": out,
        "per_device_train_batch_size": settings["batch_size"],
        "max_steps": settings["steps"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": settings["max_grad_norm"],
        "seed": settings["seed"],
        "bf16": settings["dtype"] == "bfloat16",
        "use_cpu": settings["device"] == "cpu",
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": settings["peer_weights"]},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _sft(settings: dict[str, Any], data: Any, shared: dict[str, Any], end: Any) -> Any:
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    return SFTTrainer(f"{settings['folder']}/policy", args=SFTConfig(**shared), train_dataset=data, callbacks=[end])


def _reward(settings: dict[str, Any], data: Any, shared: dict[str, Any], end: Any) -> Any:
    from trl import RewardConfig, RewardTrainer

    args = RewardConfig(**shared, center_rewards_coefficient=settings["center_coefficient"])
    return RewardTrainer(f"{settings['folder']}/reward", args=args, train_dataset=data, callbacks=[end])


def _dpo(settings: dict[str, Any], data: Any, shared: dict[str, Any], end: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(**shared, beta=settings["beta"], precompute_ref_log_probs=settings["precomputed"])
    return DPOTrainer(f"{settings['folder']}/policy", args=args, train_dataset=data, callbacks=[end])


def _kto(settings: dict[str, Any], data: Any, shared: dict[str, Any], end: Any) -> Any:
    from trl import KTOConfig, KTOTrainer

    args = KTOConfig(**shared, beta=settings["beta"], precompute_ref_log_probs=settings["precomputed"])
    return KTOTrainer(f"{settings['folder']}/policy", args=args, train_dataset=data, callbacks=[end])


def _grpo(settings: dict[str, Any], data: Any, shared: dict[str, Any], end: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(**shared, **_sampling(settings), beta=settings["kl_in_loss"], loss_type="grpo")
    return GRPOTrainer(f"{settings['folder']}/policy", low_words, args=args, train_dataset=data, callbacks=[end])


def _rloo(settings: dict[str, Any], data: Any, shared: dict[str, Any], end: Any) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    args = RLOOConfig(**shared, **_sampling(settings), beta=settings["kl_in_reward"])
    return RLOOTrainer(f"{settings['folder']}/policy", low_words, args=args, train_dataset=data, callbacks=[end])


_TRAINERS: dict[str, Callable[[dict[str, Any], Any, dict[str, Any], Any], Any]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "kto": _kto,
    "grpo": _grpo,
    "rloo": _rloo,
}


def _sampling(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_generations": settings["num_generations"],
        "max_completion_length": settings["new_tokens"],
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def _noting(losses: list[float], compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        losses.append(float(loss))
        return loss

    return run


class Split:
    """Seconds of each phase of a step of GRPO or RLOO, and what the first step thought of its answers."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.tokens: list[int] = []  # sampled in each step
        self.now: dict[str, float] = {}
        self.scored = 0.0

    def watch(self, trainer: Any, seen: dict[str, Any]) -> None:
        """Wraps the trainer's methods."""
        self._wrap(trainer, "_generate", "generate", lambda _: None)
        self._wrap(trainer, "_calculate_rewards", "score", lambda found: _first(seen, "rewards", found[:, 0]))

        def answered(found: dict[str, Any]) -> None:
            self.tokens.append(int(found["completion_mask"].sum()))
            _first(seen, "advantages", found["advantages"])

        self._wrap(trainer, "_generate_and_score_completions", "before", answered)

    def _wrap(self, trainer: Any, method: str, name: str, note: Callable[[Any], None]) -> None:
        inner = getattr(trainer, method)

        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            found = inner(*args, **kwargs)
            self.scored = time.perf_counter()
            self.now[name] = self.scored - begun
            note(found)
            return found

        setattr(trainer, method, run)

    def end_step(self) -> None:
        if self.now:
            rest = self.now.pop("before") - sum(self.now.values())
            self.steps.append({**self.now, "log-probs": rest, "update": time.perf_counter() - self.scored})
            self.now = {}

    def medians(self) -> dict[str, float]:
        """Over the steps after the first; empty for other trainers."""
        return {name: statistics.median(step[name] for step in self.steps[1:]) for name in (self.steps or [{}])[0]}


def _first(seen: dict[str, Any], name: str, values: Any) -> None:
    seen.setdefault(name, values.tolist())


def _fixed(torch: Any, policy: Any, settings: dict[str, Any]) -> list[float]:
    """Log-probabilities of the answers in fixed rows, by transformers alone."""
    ids = torch.tensor(settings["fixed_rows"], device=settings["device"])
    with torch.no_grad():
        logps = policy.to(ids.device)(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return logps[:, settings["prompt_tokens"] - 1 :].sum(1).tolist()


if __name__ == "__main__":
    main()
