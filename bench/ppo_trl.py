"""TRL's PPO on the job of bench/ppo_job.py. Runs in an environment of its own, started by bench/ppo.py.

Nothing of TRL is replaced; generation and scoring are timed from outside to split its step.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.contender import Watch, arguments


def main() -> None:
    settings, result_file, started = arguments()
    watch = Watch(started, settings["device"])
    import torch

    torch.set_num_threads(settings["threads"])
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

    class EndOfStep(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            split.end_step()
            watch.step_done()

    folder = settings["folder"]
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/policy", padding_side="left")
    with open(f"{folder}/prompts.jsonl", encoding="utf-8") as file:
        prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in file]
    data = Dataset.from_dict({"input_ids": prompts})
    policy, reference = (AutoModelForCausalLM.from_pretrained(f"{folder}/policy") for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward", num_labels=1) for _ in range(2)
    )
    split = Split(ppo_trainer)
    updates = count_updates()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=f"{folder}/trl",
            per_device_train_batch_size=settings["batch_size"],
            gradient_accumulation_steps=1,  # with more, TRL makes fewer optimizer steps
            num_mini_batches=settings["mini_batches"],
            local_rollout_forward_batch_size=settings["batch_size"],
            total_episodes=settings["steps"] * settings["batch_size"],
            num_ppo_epochs=settings["ppo_epochs"],
            response_length=settings["new_tokens"],
            temperature=settings["temperature"],
            kl_coef=settings["kl_coef"],
            gamma=settings["gamma"],
            lam=settings["lam"],
            cliprange=settings["cliprange"],
            cliprange_value=settings["cliprange_value"],
            vf_coef=settings["vf_coef"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            seed=settings["seed"],
            bf16=settings["dtype"] == "bfloat16",
            use_cpu=settings["device"] == "cpu",
            gradient_checkpointing=False,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[EndOfStep()],
    )
    trainer.train()
    measured = watch.result()
    first = trainer.state.log_history[0]
    start = AutoModelForCausalLM.from_pretrained(f"{folder}/policy")
    start, reward = start.to(settings["device"]), reward.to(settings["device"])
    pairs = zip(policy.parameters(), start.parameters(), strict=True)
    moved = [(a.detach() - b.detach()).abs().mean() for a, b in pairs]
    measured |= {
        "split": split.medians(),
        "prompt_tokens": sorted({len(p) for p in prompts}),
        "new_tokens": split.tokens,
        "updates": updates(),
        "weight_change": float(torch.stack(moved).mean()),
        "first": {name: first[name] for name in first if "/" in name},
        **fixed(torch, ppo_trainer, start, reward, tokenizer, settings["fixed_rows"], settings["prompt_tokens"]),
    }
    result_file.write_text(json.dumps(measured), encoding="utf-8")


class Split:
    """Seconds of each phase of a step: answers, scores and values, the rest before the update, the update."""

    def __init__(self, module: Any) -> None:
        self.steps: list[dict[str, float]] = []
        self.tokens: list[int] = []  # sampled in each step
        self.now = {"generate": 0.0, "score": 0.0}
        self.begun = self.scored = 0.0
        module.batch_generation = self._timed("generate", module.batch_generation)
        module.get_reward = self._timed("score", module.get_reward)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            self.scored = time.perf_counter()
            self.now[name] += self.scored - begun
            if name == "generate":
                self.begun = begun
                responses = result[0][:, args[1].shape[1] :]
                self.tokens.append(int((responses != args[3]).sum()))
            return result

        return run

    def end_step(self) -> None:
        rest = self.scored - self.begun - sum(self.now.values())
        update = time.perf_counter() - self.scored
        self.steps.append({**self.now, "reference": rest, "update": update})
        self.now = {"generate": 0.0, "score": 0.0}

    def medians(self) -> dict[str, float]:
        """Over the steps after the first."""
        return {name: statistics.median(step[name] for step in self.steps[1:]) for name in self.steps[0]}


def count_updates() -> Callable[[], int]:
    """Counts optimizer steps from now on, whoever makes them."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    seen: list[None] = []
    register_optimizer_step_post_hook(lambda *_: seen.append(None))
    return lambda: len(seen)


def fixed(
    torch: Any, module: Any, policy: Any, reward: Any, tokenizer: Any, rows: list[list[int]], prompt: int
) -> dict[str, list[float]]:
    """Scores and log-probabilities of fixed rows, computed the way its trainer does."""
    ids = torch.tensor(rows, device=policy.device)
    with torch.no_grad():
        _, scores, _ = module.get_reward(reward, ids, tokenizer.pad_token_id, prompt)
        logits = module.forward(policy, ids, tokenizer.pad_token_id).logits[:, prompt - 1 : -1]
        logps = module.selective_log_softmax(logits, ids[:, prompt:]).sum(1)
    return {"fixed_scores": scores.tolist(), "fixed_logps": logps.tolist()}


if __name__ == "__main__":
    main()
