"""The command line: it only dispatches. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from goodheart.errors import ConfigError, GoodheartError, Interrupted

app = typer.Typer(
    name="goodheart",
    help="The whole loop of human feedback for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Every command takes --debug to show the traceback of an error.",
)
data_app = typer.Typer(help="Look at data files and convert them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Model = Annotated[str | None, typer.Option("--model", help="Run folder, Hugging Face folder or Hub id.")]
Data = Annotated[list[str] | None, typer.Option("--data", help="File, folder, pattern or Hub id; may be repeated.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder to write; continued when it is unfinished.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting: key=value or block.key=value.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Nothing on the console but errors and the result.")]


@app.command()
def pretrain(
    model: Model = None,
    data: Data = None,
    out: Out = None,
    config: Config = None,
    set_: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Continue pre-training on plain text, or pre-train from scratch."""
    _train("pretrain", config, set_, model=model, data=data, out=out, quiet=quiet or None)


@app.command()
def sft(
    model: Model = None,
    data: Data = None,
    out: Out = None,
    config: Config = None,
    set_: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune on demonstrations (of preference pairs: the chosen answers)."""
    _train("sft", config, set_, model=model, data=data, out=out, quiet=quiet or None)


@app.command()
def reward(
    model: Model = None,
    data: Data = None,
    out: Out = None,
    config: Config = None,
    set_: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Train a reward model on pairs, rankings, ratings or thumbs."""
    _train("reward", config, set_, model=model, data=data, out=out, quiet=quiet or None)


@app.command()
def ppo(
    model: Model = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="Run folder, Hugging Face folder, or package.module:function.")
    ] = None,
    prompts: Annotated[list[str] | None, typer.Option("--prompts", help="Data with prompts; may be repeated.")] = None,
    out: Out = None,
    config: Config = None,
    set_: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Optimise a model against a reward with PPO."""
    _train("ppo", config, set_, model=model, reward=reward, prompts=prompts, out=out, quiet=quiet or None)


@app.command()
def tokenizer(
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", help="Tokenizer folder to write.")] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", help="Number of tokens.")] = None,
    config: Config = None,
    set_: Sets = None,
) -> None:
    """Train a byte-level BPE tokenizer from text."""
    typer.echo(f"tokenizer written to {_run('tokenizer', config, set_, data=data, out=out, vocab_size=vocab_size)}")


@app.command()
def sample(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Model; repeat to let several share the answers.")
    ] = None,
    prompts: Annotated[list[str] | None, typer.Option("--prompts", help="Data with prompts; may be repeated.")] = None,
    answers: Annotated[int | None, typer.Option("--answers", help="Answers per prompt (K).")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write: .jsonl, .json, .csv or .parquet.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the random draws.")] = None,
    config: Config = None,
    set_: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Draw K answers per prompt, for people to compare."""
    path = _run(
        "sample", config, set_, model=model, prompts=prompts, answers=answers, out=out, seed=seed, quiet=quiet or None
    )
    typer.echo(f"answers written to {path}")


@app.command()
def score(
    reward: Annotated[
        str | None, typer.Option("--reward", help="Run folder, Hugging Face folder, or package.module:function.")
    ] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write: the rows with their scores.")] = None,
    config: Config = None,
    set_: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Score answers, or compare pairs, with a reward model."""
    typer.echo(_run("score", config, set_, reward=reward, data=data, out=out, quiet=quiet or None).summary())


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline file (YAML).")],
    stage: Annotated[str | None, typer.Argument(help="Run this stage alone.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and why, then stop.")] = False,
    set_: Sets = None,
) -> None:
    """Run the stages of a pipeline file; what is finished and unchanged is skipped."""
    from goodheart.loop.pipeline import Pipeline
    from goodheart.loop.view import show_plan, show_results

    loaded = Pipeline.load(pipeline, set_)
    show_plan(loaded.plan())
    if not plan:
        loaded.run(stage)
        show_results(loaded)


@app.command()
def chat(
    model: Model = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Sampling setting: temperature=0.7")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue plain text instead of answering a user.")] = False,
) -> None:
    """Talk to a model in the terminal."""
    from goodheart.stages.chat import chat as talk
    from goodheart.stages.writer import SamplingSettings
    from goodheart.train.config import build

    if model is None:
        raise ConfigError("--model is missing: give a run folder, a Hugging Face folder or a Hub id")
    talk(model, build(SamplingSettings, sets=set_), seed=seed, raw=raw)


@app.command()
def plot(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Draw the curves of a run into its plots/ folder."""
    from goodheart.train.metrics import plot_run

    for path in plot_run(run):
        typer.echo(path)


@data_app.command("check")
def data_check(
    files: Annotated[list[str], typer.Argument(help="Files, folders, patterns or Hub ids.")],
    tokenizer: Annotated[str | None, typer.Option("--model", help="Count tokens with this model's tokenizer.")] = None,
) -> None:
    """Report what is in the data and what is wrong with it; exit status 1 where rows cannot be used."""
    from rich.console import Console

    from goodheart.data.check import check_data

    count = None
    if tokenizer is not None:
        from goodheart.data.template import load_tokenizer
        from goodheart.models.load import resolve

        encode = load_tokenizer(resolve(tokenizer))
        count = lambda text: len(encode(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    report = check_data(files, count_tokens=count)
    report.render(Console())
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    source: Annotated[str, typer.Argument(help="File, folder, pattern or Hub id.")],
    out: Annotated[Path, typer.Argument(help="File to write; its suffix says how (.jsonl, .csv, .parquet, .gz ...).")],
    to: Annotated[str, typer.Option("--to", help="Shape of the rows, for example trl-preference.")] = "trl-preference",
) -> None:
    """Convert data from any readable shape to another."""
    from goodheart.data.formats import convert

    typer.echo(convert([source], out, to=to))


@data_app.command("show")
def data_show(
    source: Annotated[str, typer.Argument(help="Demonstrations or pairs.")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer and chat template to use.")],
    rows: Annotated[int, typer.Option("--rows", help="How many to show.")] = 3,
) -> None:
    """Show rows as the tokens a model is trained on, with the trained ones marked."""
    from rich.console import Console

    from goodheart.data.formats import read_records
    from goodheart.data.template import Template, load_tokenizer
    from goodheart.models.load import resolve

    template = Template(load_tokenizer(resolve(model)))
    for record in read_records(source, "demonstration", limit=rows).records:
        said = record.answer.turns() if record.prompt.is_chat else record.answer.text
        for example in template.example(record.prompt, said):
            Console().print(template.colour(example))


def _train(name: str, config: Path | None, sets: list[str] | None, **options: Any) -> None:
    """Runs a training stage and prints where the result lies and how good it is."""
    from goodheart.loop.view import show_run

    run = _run(name, config, sets, **options)
    if run.main:  # one of several processes speaks
        show_run(run)


def _run(name: str, config: Path | None, sets: list[str] | None, **options: Any) -> Any:
    from goodheart.loop.registry import stage
    from goodheart.train.config import build

    if name in {"sample", "score", "tokenizer"} and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{name} runs in one process: start it without torchrun")
    single = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in options.items()}
    settings, function = stage(name).load()
    return function(build(settings, file=config, sets=sets, overrides=single))


def main() -> None:
    """Entry point: exit status 0 only on success; an error is one message, with its traceback under --debug."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, standalone_mode=False)
    except Exception as error:
        code = _report(error, debug)
    except KeyboardInterrupt:
        typer.secho("stopped", err=True)
        code = 130
    status = code if isinstance(code, int) else 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from goodheart.train.parallel import World

        World.current().leave(status)
    sys.exit(status)


def _report(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        typer.secho("stopped", err=True)
        return 130
    # wrong usage: which class that is depends on the version of typer
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    if isinstance(error, Interrupted):
        typer.secho(str(error), err=True)
        return 130
    if isinstance(error, GoodheartError):
        typer.secho(f"error: {error}", err=True)
        return 1
    if isinstance(error, OSError):
        typer.secho(
            f"error: {error.filename or ''}: {error.strerror or error}".replace("error: : ", "error: "), err=True
        )
        return 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        typer.secho(f"error: out of memory: {error}\nLower max_tokens (or slots while generating).", err=True)
        return 1
    if not debug:
        typer.secho(
            f"internal error: {type(error).__name__}: {error}\n"
            "This should not happen. Run the same command with --debug for the traceback.",
            err=True,
        )
    return 1


if __name__ == "__main__":
    main()
