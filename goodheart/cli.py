"""The command line: it only dispatches. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goodheart.errors import ConfigError, GoodheartError, Interrupted
from goodheart.loop.commands import JUDGE, MODEL, SET, add_commands

if TYPE_CHECKING:
    from goodheart.data.mapping import ColumnMap

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
add_commands(app)

_STOPPED = 130  # exit status of what was ended by Ctrl-C

_Sets = Annotated[list[str] | None, typer.Option("--set", help=SET.help)]


@app.command()
def run(
    pipeline: Annotated[
        str | None, typer.Argument(help="Pipeline file (YAML); without one, goodheart.yaml here.", show_default=False)
    ] = None,
    stage: Annotated[str | None, typer.Argument(help="Run this stage alone.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and why, then stop.")] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Keep finished outputs although goodheart's code has changed since.")
    ] = False,
    set_: _Sets = None,
) -> None:
    """Run the stages of a pipeline file; what is finished and unchanged is skipped."""
    from goodheart.loop.start import run_pipeline

    run_pipeline(pipeline, stage, plan=plan, trust_code=trust_code, sets=set_)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("goodheart.yaml"),
) -> None:
    """Write a commented pipeline file to start from."""
    from goodheart.loop.start import write_template

    typer.echo(write_template(file))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the world and of everything drawn in it.")] = 0,
) -> None:
    """Watch a small model learn to be kinder, and see where it starts to cheat: minutes, no network, no GPU."""
    from goodheart.loop.demo import demo as play

    play(out, seed)


@app.command()
def label(
    campaign: Annotated[
        str | None,
        typer.Argument(help="Campaign file (YAML), or the name of a campaign in the database.", show_default=False),
    ] = None,
    db: Annotated[
        str | None, typer.Option("--db", help="File or postgresql:// address that keeps the labels; goodheart.db.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8000,
    accounts: Annotated[
        bool, typer.Option("--accounts", help="People log in; always so with a host that others can reach.")
    ] = False,
    proxy: Annotated[
        str | None, typer.Option("--proxy", help="Address of the HTTPS proxy in front, which says who asks.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that answer; more than 1 needs PostgreSQL.")
    ] = 1,
    example: Annotated[bool, typer.Option("--example", help="Make a campaign with example data.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of the example.")] = Path("runs/label-example"),
) -> None:
    """Start the studio, in which people compare answers and managers look after them."""
    from goodheart.loop.label import label as start

    folder = out if example else None
    start(campaign, db=db, host=host, port=port, accounts=accounts, proxy=proxy, workers=workers, example=folder)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder that a pipeline writes into.")],
    out: Annotated[Path | None, typer.Option("--out", help="HTML file to write.")] = None,
) -> None:
    """Write a report: one HTML file that needs no network."""
    from goodheart.evaluate.report import write_report

    typer.echo(f"report written to {write_report(run, out)}")


@app.command()
def lineage(
    model: Annotated[Path, typer.Argument(help="Run folder, model folder, or a file that a stage wrote.")],
) -> None:
    """Show what made a model: parents, data, settings, code; and what has changed since."""
    from goodheart.loop.lineage import show_lineage

    show_lineage(model)


@app.command()
def chat(
    model: Annotated[str | None, typer.Option("--model", help=MODEL.help)] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Sampling setting: temperature=0.7")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue plain text instead of answering a user.")] = False,
    best_of: Annotated[int, typer.Option("--best-of", min=1, help="Draw so many answers and show the best.")] = 1,
    reward: Annotated[str | None, typer.Option("--reward", help=f"What chooses the best: {JUDGE}")] = None,
) -> None:
    """Talk to a model in the terminal."""
    from goodheart.stages.settings.sampling import SamplingSettings
    from goodheart.train.config import build

    if model is None:
        raise ConfigError("--model is missing: give a run folder, a Hugging Face folder or a Hub id")
    sampling = build(SamplingSettings, sets=set_)
    from goodheart.stages.chat import chat as talk  # heavy: what is wrong is told before

    talk(model, sampling, seed=seed, raw=raw, best_of=best_of, reward=reward)


@app.command()
def plot(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Draw the curves of a run into its plots/ folder."""
    from goodheart.train.metrics import plot_run

    for path in plot_run(run):
        typer.echo(path)


_MAP = typer.Option("--map", help="YAML file that says which column is what, or a known data set.")
_LABELS = typer.Option("--labels", help="What several people said becomes: each, majority, soft, trusted or scores.")
_WEIGHTS = typer.Option("--weights", help="File of rater and weight: trust in each.")
_TRUST = typer.Option("--trust", help="Weigh each rater by how reliable their labels show them to be.")


def _mapping(name: str | None) -> ColumnMap | None:
    if name is None:
        return None
    from goodheart.data.mapping import load_mapping  # pydantic and YAML: only where asked for

    return load_mapping(name)


@data_app.command("check")
def data_check(
    files: Annotated[list[str], typer.Argument(help="Files, folders, patterns or Hub ids.")],
    tokenizer: Annotated[str | None, typer.Option("--model", help="Count tokens with this model's tokenizer.")] = None,
    map_: Annotated[str | None, _MAP] = None,
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
    report = check_data(files, count_tokens=count, mapping=_mapping(map_))
    report.render(Console())
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    source: Annotated[str, typer.Argument(help="File, folder, pattern or Hub id.")],
    out: Annotated[Path, typer.Argument(help="File to write; its suffix says how (.jsonl, .csv, .parquet, .gz ...).")],
    to: Annotated[str, typer.Option("--to", help="Shape of the rows, for example trl-preference.")] = "trl-preference",
    map_: Annotated[str | None, _MAP] = None,
    labels: Annotated[str, _LABELS] = "each",
    weights: Annotated[Path | None, _WEIGHTS] = None,
    trust: Annotated[bool, _TRUST] = False,
) -> None:
    """Convert data from any readable shape to another."""
    from goodheart.data.formats import convert, read_weights

    through = None
    if labels != "each" or weights is not None or trust:
        from goodheart.feedback import targets

        through = targets.through(labels, None if weights is None else read_weights(weights), trust=trust)
    typer.echo(convert([source], out, to=to, mapping=_mapping(map_), through=through))


@data_app.command("export")
def data_export(
    campaign: Annotated[str, typer.Argument(help="STORE/CAMPAIGN: goodheart.db/helpful, postgresql://.../helpful.")],
    out: Annotated[Path, typer.Argument(help="File to write; its suffix says how (.jsonl, .csv, .parquet, .gz ...).")],
    to: Annotated[str, typer.Option("--to", help="Shape of the rows, for example trl-preference.")] = "ranked",
    labels: Annotated[str, _LABELS] = "each",
    weights: Annotated[Path | None, _WEIGHTS] = None,
    trust: Annotated[bool, _TRUST] = False,
    phases: Annotated[
        list[str] | None, typer.Option("--phase", help="work (default), gold, training or qualification; repeat.")
    ] = None,
) -> None:
    """Write the labels of a campaign into a file."""
    from goodheart.loop.settings import ExportConfig
    from goodheart.train.config import build

    given = {"campaign": campaign, "out": out, "to": to, "labels": labels, "weights": weights, "trust": trust}
    config = build(ExportConfig, overrides={**given, "phases": phases or None})
    from goodheart.loop.campaign_data import export  # heavy: what is wrong is told before

    typer.echo(export(config).summary())


@data_app.command("import")
def data_import(
    source: Annotated[str, typer.Argument(help="File, folder, pattern or Hub id with comparisons.")],
    campaign: Annotated[str, typer.Argument(help="STORE/CAMPAIGN; a new campaign is made where there is none.")],
    map_: Annotated[str | None, _MAP] = None,
) -> None:
    """Add labels that were made elsewhere to a campaign."""
    from goodheart.loop.campaign_data import import_labels

    typer.echo(import_labels(source, campaign, mapping=_mapping(map_)))


@data_app.command("show")
def data_show(
    source: Annotated[str, typer.Argument(help="Demonstrations or pairs.")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer and chat template to use.")],
    rows: Annotated[int, typer.Option("--rows", help="How many to show.")] = 3,
) -> None:
    """Show rows as the tokens a model is trained on, with the trained ones marked."""
    from rich.console import Console

    from goodheart.data.formats import read_records
    from goodheart.data.template import Template
    from goodheart.models.load import resolve

    template = Template.load(resolve(model))
    for record in read_records(source, "demonstration", limit=rows).records:
        said = record.answer.turns() if record.prompt.is_chat else record.answer.text
        for example in template.example(record.prompt, said):
            Console().print(template.colour(example))


def main() -> None:
    """Entry point: exit status 0 only on success; an error is one message, with its traceback under --debug."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    _wait_briefly()
    try:
        code = app(arguments, standalone_mode=False)
        if code == _STOPPED:  # newer versions of typer take Ctrl-C for an exit
            typer.secho("stopped", err=True)
    except Exception as error:
        code = _report(error, debug)
    except KeyboardInterrupt:
        typer.secho("stopped", err=True)
        code = _STOPPED
    status = code if isinstance(code, int) else 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from goodheart.train.parallel import World

        World.current().leave(status)
    sys.exit(status)


def _wait_briefly() -> None:
    """How long torch's threads (GNU's OpenMP) spin while they wait for each other, before they give the processor away:
    half a millisecond, ten times less than by default, and not at all on a machine where work waits for a processor.
    What spins there keeps others from what it waits for, and training takes several times as long."""
    if os.environ.keys().isdisjoint({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}):
        os.environ["GOMP_SPINCOUNT"] = "0" if _crowded() else "30000"  # read when torch is imported


def _crowded() -> bool:
    """Whether something waited for a processor in a fifth of the last ten seconds; no where the system does not say."""
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="ascii")
        return float(some.split("avg10=")[1].split()[0]) > 20.0
    except (OSError, ValueError, IndexError):
        return False


def _report(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        typer.secho("stopped", err=True)
        return _STOPPED
    # wrong usage: which class that is depends on the version of typer
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    if isinstance(error, Interrupted):
        typer.secho(str(error), err=True)
        return _STOPPED
    if isinstance(error, GoodheartError):
        typer.secho(f"error: {error}", err=True)
        return 1
    if isinstance(error, OSError):
        typer.secho(
            f"error: {error.filename or ''}: {error.strerror or error}".replace("error: : ", "error: "), err=True
        )
        return 1
    if isinstance(error, MemoryError | RuntimeError) and _out_of_memory(error):
        typer.secho(f"error: out of memory: {error}\nLower max_tokens (or slots while generating).", err=True)
        return 1
    if not debug:
        typer.secho(
            f"internal error: {type(error).__name__}: {error}\n"
            "This should not happen. Run the same command with --debug for the traceback.",
            err=True,
        )
    return 1


def _out_of_memory(error: BaseException) -> bool:
    from goodheart.train.fitting import is_out_of_memory

    return is_out_of_memory(error)


if __name__ == "__main__":
    main()
