"""One command for each stage, made from a table: its options are settings that are given often enough to have a name.

Imported by the command line at its start, so nothing heavy is imported here.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from goodheart.errors import ConfigError


def _one_or_all(given: Any) -> Any:
    """A list of one is the one."""
    return given[0] if isinstance(given, list) and len(given) == 1 else given


@dataclass(frozen=True)
class Option:
    """An option `--setting`, with underscores as dashes."""

    setting: str
    kind: Any
    help: str
    read: Callable[[Any], Any] = _one_or_all  # what was given -> the setting's value

    @property
    def parameter(self) -> inspect.Parameter:
        """The option as typer reads it from a function."""
        flag = typer.Option(f"--{self.setting.replace('_', '-')}", help=self.help)
        kind, default = (bool, False) if self.kind is bool else (self.kind | None, None)
        return inspect.Parameter(
            self.setting, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, flag]
        )


@dataclass(frozen=True)
class Command:
    """A stage's command."""

    name: str
    help: str
    options: tuple[Option, ...]
    written: str = "run"  # what it writes, in a word
    parallel: bool = False  # may run in several processes


def _named_files(given: list[str]) -> dict[str, str]:
    """`name=file` each."""
    files: dict[str, str] = {}
    for text in given:
        name, _, file = text.partition("=")
        if not name or not file or name in files:
            raise ConfigError(f"--answers {text}: write --answers name=file, each name once")
        files[name] = file
    return files


JUDGE = "run folder, Hugging Face folder, package.module:function, or YAML file of several."
_ROWS = "File to write: .jsonl, .json, .csv or .parquet."
MODEL = Option("model", str, "Run folder, Hugging Face folder or Hub id.")
DATA = Option("data", list[str], "File, folder, pattern or Hub id; may be repeated.")
PROMPTS = Option("prompts", list[str], "Data with prompts; may be repeated.")
RUN = Option("out", Path, "Run folder to write; continued when it is unfinished.")
SEED = Option("seed", int, "Seed of the random draws.")
CONFIG = Option("config", Path, "YAML file with settings.")
SET = Option("set", list[str], "One setting: key=value or block.key=value.")
PROFILE = Option("profile", bool, "Measure where a few steps spend time and memory, into the run's profile/.")
QUIET = Option("quiet", bool, "Nothing on the console but errors and the result.")

COMMANDS = (
    Command(
        "playground",
        "Write a small invented world, with data of every kind, whose true preferences are known.",
        (
            Option("language", list[str], "en or zh; repeat for both.", list),
            Option("out", Path, "Folder to write."),
            SEED,
        ),
        "world",
    ),
    Command(
        "tokenizer",
        "Train a byte-level BPE tokenizer from text.",
        (DATA, Option("out", Path, "Tokenizer folder to write."), Option("vocab_size", int, "Number of tokens.")),
        "tokenizer",
    ),
    Command(
        "pretrain",
        "Continue pre-training on plain text, or pre-train from scratch.",
        (MODEL, DATA, RUN, QUIET),
        parallel=True,
    ),
    Command(
        "sft",
        "Fine-tune on demonstrations (of preference pairs: the chosen answers).",
        (MODEL, DATA, RUN, QUIET),
        parallel=True,
    ),
    Command(
        "sample",
        "Draw K answers per prompt, for people to compare.",
        (
            Option("model", list[str], "Model; repeat to let several share the answers."),
            PROMPTS,
            Option("answers", int, "Answers per prompt (K)."),
            Option("out", Path, _ROWS),
            SEED,
            QUIET,
        ),
        "answers",
    ),
    Command(
        "simulate",
        "Let simulated people rank answers.",
        (
            Option("answers", list[str], "Answers as `goodheart sample` writes them; may be repeated."),
            Option("population", str, "Who they are: careful, crowd, two-cultures, fond-of-length, hasty."),
            Option("overlap", int, "People per prompt."),
            Option("aspects", str, "package.module:function that scores answers aspect by aspect."),
            Option("out", Path, _ROWS),
            SEED,
        ),
        "labels",
    ),
    Command(
        "reward",
        "Train a reward model on pairs, rankings, ratings or thumbs.",
        (MODEL, DATA, RUN, QUIET),
        parallel=True,
    ),
    Command(
        "dpo",
        "Learn from pairs or rankings without a reward model (DPO, IPO, SimPO, ORPO and others).",
        (MODEL, DATA, RUN, QUIET),
        parallel=True,
    ),
    Command(
        "kto",
        "Learn from thumbs up and down without a reward model (KTO, BCO).",
        (MODEL, DATA, RUN, QUIET),
        parallel=True,
    ),
    Command(
        "ppo",
        "Optimise a model against a reward with PPO.",
        (MODEL, Option("reward", str, f"What is optimised: {JUDGE}"), PROMPTS, RUN, QUIET),
        parallel=True,
    ),
    Command(
        "grpo",
        "Optimise a model against a reward without a critic (GRPO, DAPO, GSPO, RLOO, REINFORCE++ and others).",
        (
            MODEL,
            Option("reward", str, f"What is optimised: {JUDGE}"),
            PROMPTS,
            Option("recipe", str, "grpo, dr-grpo, dapo, gspo, rloo, reinforce++, reinforce++-baseline or remax."),
            RUN,
            QUIET,
        ),
        parallel=True,
    ),
    Command(
        "online",
        "Learn at once from comparisons of the model's own answers (online DPO, XPO, Nash-MD, SPIN).",
        (
            MODEL,
            Option("reward", str, f"What compares: {JUDGE} Or an object with `compare`."),
            PROMPTS,
            Option("recipe", str, "online-dpo, xpo, nash-md or spin."),
            Option("opponent", str, "self, reference, previous, mixture, or a model."),
            RUN,
            QUIET,
        ),
        parallel=True,
    ),
    Command(
        "rejection",
        "Draw many answers, keep what a reward likes best, and fine-tune on it.",
        (
            MODEL,
            Option("reward", str, f"What chooses: {JUDGE}"),
            PROMPTS,
            Option("num_generations", int, "Answers per prompt (n)."),
            Option(
                "history", list[str], "Earlier run of this command whose answers compete too; may be repeated.", list
            ),
            RUN,
            QUIET,
        ),
        parallel=True,
    ),
    Command(
        "score",
        "Score answers, or compare pairs, with a reward model.",
        (
            Option("reward", str, f"What scores: {JUDGE}"),
            DATA,
            Option("out", Path, "File to write: the rows with their scores."),
            QUIET,
        ),
        "scores",
    ),
    Command(
        "difficulty",
        "Measure how hard prompts and pairs are, from scored answers, for a curriculum.",
        (
            Option("data", list[str], "What `goodheart score` wrote; may be repeated."),
            Option("bar", float, "Score over which an answer passes; without it the mean score."),
            Option("kind", str, "Column whose values are reported apart."),
            Option("out", Path, _ROWS),
            QUIET,
        ),
        "difficulty",
    ),
    Command(
        "evaluate",
        "Compare models by their answers to the same prompts.",
        (
            Option("answers", list[str], "name=file of `goodheart sample`; repeat, the base first.", _named_files),
            Option("score", str, f"What decides who wins: {JUDGE}"),
            Option("aspects", str, "package.module:function that scores answers aspect by aspect."),
            RUN,
            QUIET,
        ),
        "evaluation",
    ),
)


def add_commands(app: typer.Typer) -> None:
    """Gives the command line a command for each stage."""
    for command in COMMANDS:
        app.command(command.name, help=command.help)(_function(command))


def _is_given(value: Any) -> bool:
    """Whether an option was given: 0 was. For a flag that was not the file decides."""
    return not (value is None or value is False or value == [])


def _function(command: Command) -> Callable[..., None]:
    options = (*command.options, *[PROFILE] * command.parallel, CONFIG, SET)

    def run(**given: Any) -> None:
        from goodheart.loop.registry import stage
        from goodheart.train.config import build

        if not command.parallel and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"{command.name} runs in one process: start it without torchrun")
        file, sets = given.pop("config"), given.pop("set")
        named = {o.setting: o.read(given[o.setting]) for o in options if _is_given(given.get(o.setting))}
        kind = stage(command.name)
        settings = build(kind.load_settings(), file=file, sets=sets, overrides=named)
        made = kind.load()(settings)
        from goodheart.loop.view import show

        show(made, command.written)

    run.__signature__ = inspect.Signature([option.parameter for option in options])  # type: ignore[attr-defined]
    return run
