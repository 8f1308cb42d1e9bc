"""Which stages there are, what they read and write, and where their code lives.

A stage's settings are imported when they are read, its work only when it is run: a wrong setting is told without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from goodheart.errors import ConfigError
from goodheart.train.config import Path_, Settings, nearest

# Values of an input that are words, not places.
_WORDS = ("auto", "reward", "policy", "self", "reference", "previous", "mixture", "demonstration")


@dataclass(frozen=True)
class Stage:
    """A kind of stage: its settings and its work, both as `package.module:name`, and what it reads and writes."""

    settings: str
    work: str
    models: tuple[str, ...] = ()  # settings (`block.key`) that name a model folder, a judge or a Hub id
    data: tuple[str, ...] = ()  # settings that name data: files, folders, patterns, data sets on the Hub
    campaigns: tuple[str, ...] = ()  # settings that name a campaign of a store, see `loop.campaign_place`
    suffix: str = ""  # of the output: "" = a folder, ".jsonl" = one file
    last: str = "DONE"  # the file of an output folder that is written last

    @property
    def module(self) -> str:
        """Where its work is."""
        return self.work.partition(":")[0]

    def load_settings(self) -> type[Settings]:
        """The class of its settings, without its work."""
        return _imported(self.settings)

    def load(self) -> Callable[[Any], Any]:
        """Its work: settings -> what it made."""
        return _imported(self.work)

    def inputs(self, settings: Mapping[str, Any]) -> Iterator[tuple[Path_, str, bool]]:
        """What the settings name as input: where it stands in them, its text, and whether it is data (not a model)."""
        for name in (*self.models, *self.data):
            path = tuple(name.split("."))
            value: Any = settings
            for part in path:
                value = (value or {}).get(part)
            for where, text in _texts(path, value):
                if text not in _WORDS:
                    yield where, text, name in self.data


STAGES = {
    "playground": Stage("goodheart.loop.settings:PlaygroundConfig", "goodheart.loop.world:make", last="world.json"),
    "tokenizer": Stage(
        "goodheart.stages.settings.tokenizer:TokenizerConfig",
        "goodheart.stages.tokenizer:train",
        data=("data",),
        last="tokenizer_config.json",
    ),
    "pretrain": Stage(
        "goodheart.stages.settings.pretrain:PretrainConfig",
        "goodheart.stages.pretrain:train",
        models=("model",),
        data=("data",),
    ),
    "sft": Stage(
        "goodheart.stages.settings.sft:SFTConfig",
        "goodheart.stages.sft:train",
        models=("model",),
        data=("data", "eval_data"),
    ),
    "sample": Stage(
        "goodheart.stages.settings.sample:SampleConfig",
        "goodheart.stages.sample:sample",
        models=("model", "reward"),
        data=("prompts",),
        suffix=".jsonl",
    ),
    "simulate": Stage(
        "goodheart.loop.settings:SimulateConfig",
        "goodheart.loop.simulate:simulate",
        models=("aspects", "truth"),
        data=("answers",),
        suffix=".jsonl",
    ),
    "reward": Stage(
        "goodheart.stages.settings.reward:RewardConfig",
        "goodheart.stages.reward:train",
        models=("model",),
        data=("data", "eval_data"),
    ),
    "dpo": Stage(
        "goodheart.stages.settings.dpo:DPOConfig",
        "goodheart.stages.dpo:train",
        models=("model", "reference"),
        data=("data", "eval_data"),
    ),
    "kto": Stage(
        "goodheart.stages.settings.kto:KTOConfig",
        "goodheart.stages.kto:train",
        models=("model", "reference"),
        data=("data", "eval_data"),
    ),
    "ppo": Stage(
        "goodheart.stages.settings.ppo:PPOConfig",
        "goodheart.stages.ppo:train",
        models=("model", "reference", "reward", "value_model", "audit.judge"),
        data=("prompts", "audit.prompts"),
    ),
    "grpo": Stage(
        "goodheart.stages.settings.grpo:GRPOConfig",
        "goodheart.stages.grpo:train",
        models=("model", "reference", "reward", "audit.judge"),
        data=("prompts", "audit.prompts"),
    ),
    "online": Stage(
        "goodheart.stages.settings.online:OnlineConfig",
        "goodheart.stages.online:train",
        models=("model", "reference", "reward", "opponent", "audit.judge"),
        data=("prompts", "audit.prompts"),
    ),
    "rejection": Stage(
        "goodheart.stages.settings.rejection:RejectionConfig",
        "goodheart.stages.rejection:train",
        models=("model", "reward", "history"),
        data=("prompts",),
    ),
    "score": Stage(
        "goodheart.stages.settings.score:ScoreConfig",
        "goodheart.stages.score:score",
        models=("reward",),
        data=("data",),
        suffix=".jsonl",
    ),
    "difficulty": Stage(
        "goodheart.stages.settings.difficulty:DifficultyConfig",
        "goodheart.stages.difficulty:difficulty",
        data=("data",),
        suffix=".jsonl",
    ),
    "export": Stage(
        "goodheart.loop.settings:ExportConfig",
        "goodheart.loop.campaign_data:export",
        data=("weights",),
        campaigns=("campaign",),
        suffix=".jsonl",
    ),
    "evaluate": Stage(
        "goodheart.evaluate.settings:EvaluateConfig",
        "goodheart.evaluate.stage:evaluate",
        models=("score", "aspects", "reward"),
        data=("answers", "labels"),
    ),
}


def stage(name: str, where: str = "") -> Stage:
    """The stage of that name.

    Raises:
        ConfigError: there is none, with the nearest name.
    """
    if name == "label":  # what `simulate` was called; `goodheart label` is where people label
        raise ConfigError(f"{where}unknown stage `label`: simulated people rank answers in the stage `simulate`")
    if name not in STAGES:
        raise ConfigError(f"{where}unknown stage `{name}`{nearest(name, list(STAGES))}")
    return STAGES[name]


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _texts(path: Path_, value: Any) -> Iterator[tuple[Path_, str]]:
    """Every text in a setting: it may be one, a list, or a block of them; of a block of several rewards the judges."""
    if value is None:
        return
    if isinstance(value, Mapping) and isinstance(value.get("rewards"), Mapping):
        for key, term in value["rewards"].items():
            yield from _texts((*path, "rewards", key, "judge"), term["judge"])
        return
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if not isinstance(value, Mapping | list | tuple):
        yield path, str(value)
    for key, part in parts:
        yield from _texts((*path, key), part)
