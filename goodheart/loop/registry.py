"""Which stages there are, and where their settings and functions live; imported only when one is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from goodheart.errors import ConfigError
from goodheart.train.config import Settings, nearest


@dataclass(frozen=True)
class Stage:
    """A stage by name: its settings class, its function, and what it writes."""

    module: str
    settings: str
    function: str
    suffix: str = ""  # of the output: "" = a folder, ".jsonl" = one file
    last: str = "DONE"  # the file of an output folder that is written last

    def load(self) -> tuple[type[Settings], Callable[[Any], Any]]:
        module = importlib.import_module(f"goodheart.stages.{self.module}")
        return getattr(module, self.settings), getattr(module, self.function)


STAGES = {
    "tokenizer": Stage("tokenizer", "TokenizerConfig", "train", last="tokenizer_config.json"),
    "pretrain": Stage("pretrain", "PretrainConfig", "train"),
    "sft": Stage("sft", "SFTConfig", "train"),
    "reward": Stage("reward", "RewardConfig", "train"),
    "ppo": Stage("ppo", "PPOConfig", "train"),
    "sample": Stage("sample", "SampleConfig", "sample", ".jsonl"),
    "score": Stage("score", "ScoreConfig", "score", ".jsonl"),
}


def stage(name: str, where: str = "") -> Stage:
    """The stage of that name.

    Raises:
        ConfigError: there is none, with the nearest name.
    """
    if name not in STAGES:
        raise ConfigError(f"{where}unknown stage `{name}`{nearest(name, list(STAGES))}")
    return STAGES[name]
