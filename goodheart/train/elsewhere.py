"""What settings are called in TRL, transformers, OpenRLHF and verl, and what they are called here.

Only to say it in the error about an unknown key: no setting has two names.
"""

from __future__ import annotations

from collections.abc import Collection

# name there -> name here (`block.key` of a block), and what is different where something is
NAMES: dict[str, tuple[str, str]] = {
    "output_dir": ("out", ""),
    "save_path": ("out", ""),
    "model_name_or_path": ("model", ""),
    "pretrain": ("model", ""),
    "ref_model": ("reference", ""),
    "reward_model_path": ("reward", ""),
    "reward_funcs": ("reward", ""),
    "value_model_path": ("value_model", ""),
    "dataset": ("data", ""),
    "dataset_name": ("data", ""),
    "train_dataset": ("data", ""),
    "prompt_data": ("prompts", ""),
    "eval_dataset": ("eval_data", ""),
    "lr": ("learning_rate", ""),
    "actor_learning_rate": ("learning_rate", ""),
    "critic_learning_rate": ("value_learning_rate", ""),
    "lr_scheduler_type": ("schedule", ""),
    "adam_beta1": ("adam_betas", "both in a list"),
    "adam_beta2": ("adam_betas", "both in a list"),
    "adam_epsilon": ("adam_eps", ""),
    "per_device_train_batch_size": ("batch_size", "per optimizer step, over all devices"),
    "train_batch_size": ("batch_size", "per optimizer step, over all devices"),
    "gradient_accumulation_steps": ("max_tokens", "a step is cut into pieces of so many tokens by itself"),
    "micro_train_batch_size": ("max_tokens", "a step is cut into pieces of so many tokens by itself"),
    "num_train_epochs": ("epochs", ""),
    "max_epochs": ("epochs", ""),
    "max_seq_length": ("max_length", ""),
    "max_len": ("max_length", ""),
    "max_prompt_length": ("max_length", "of prompt and answer together"),
    "packing": ("pack", ""),
    "gradient_checkpointing": ("activation_checkpointing", ""),
    "bf16": ("dtype", "bfloat16"),
    "fp16": ("dtype", "bfloat16 or float32"),
    "torch_dtype": ("dtype", ""),
    "use_peft": ("lora", "a block, such as `{rank: 16}`"),
    "lora_r": ("lora.rank", ""),
    "lora_rank": ("lora.rank", ""),
    "lora_alpha": ("lora.alpha", ""),
    "lora_target_modules": ("lora.targets", ""),
    "logging_steps": ("log_every", ""),
    "save_steps": ("checkpoint_every", ""),
    "save_total_limit": ("keep_checkpoints", ""),
    "eval_steps": ("eval_every", ""),
    "report_to": ("tensorboard", "true or false"),
    "loss_type": ("loss", ""),
    "num_ppo_epochs": ("ppo_epochs", ""),
    "num_mini_batches": ("mini_batches", ""),
    "init_kl_coef": ("kl_coef", ""),
    "lambd": ("lam", ""),
    "eps_clip": ("cliprange", ""),
    "vllm_importance_sampling_clip_max": ("importance_cap", "of each token's weight"),
    "vllm_importance_sampling_cap": ("importance_cap", "of each token's weight"),
    "vllm_importance_sampling_correction": ("importance_cap", "null for none"),
    "vllm_is_truncated_threshold": ("importance_cap", "of each token's weight"),
    "enable_vllm_is_correction": ("importance_cap", "null for none"),
    "tis_imp_ratio_cap": ("importance_cap", "of each token's weight"),
    "rollout_is": ("importance_cap", "null for none"),
    "rollout_is_threshold": ("importance_cap", "of each token's weight"),
    "n_samples_per_prompt": ("num_generations", ""),
    "generate_max_len": ("sampling.max_new_tokens", ""),
    "max_completion_length": ("sampling.max_new_tokens", ""),
    "response_length": ("sampling.max_new_tokens", ""),
    "max_new_tokens": ("sampling.max_new_tokens", ""),
    "temperature": ("sampling.temperature", ""),
}


def called_here(name: str, known: Collection[str]) -> str:
    """`; here it is called X`, to be put behind an error, where that is one of the keys `known`; else nothing."""
    here, note = NAMES.get(name, ("", ""))
    if not here or here.partition(".")[0] not in known:
        return ""
    return f"; here it is `{here}`" + (f": {note}" if note else "")
