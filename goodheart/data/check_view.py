"""The check report on a terminal. Text out of files goes through `visible` and rich's `Text`, never through markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from goodheart.data.check_report import CheckReport, SourceReport
from goodheart.data.reading import BadRow
from goodheart.data.streams import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def render(report: CheckReport, console: Console, rows: int) -> None:
    """Print one block for each source, then what the sources share, then problems and warnings."""
    from rich.text import Text

    for part in report.sources:
        _source(part, console, rows)
    apart = [overlap for overlap in report.overlaps if not overlap.conversations]
    for overlap in apart:
        console.print(Text(f"{visible(overlap.first)} and {visible(overlap.second)} share no prompts"))
    for sentence in report.problems():
        console.print(Text(f"problem: {_lines(sentence)}", style="bold red"))
    for sentence in report.warnings():
        console.print(Text(f"warning: {_lines(sentence)}", style="yellow"))
    if report.ok:
        console.print(Text("every row can be used", style="bold green"))


def _lines(sentence: str) -> str:
    return "\n".join(visible(line, 1000) for line in sentence.split("\n"))


def _source(part: SourceReport, console: Console, rows: int) -> None:
    from rich.text import Text

    console.print(Text(visible(part.source, 200), style="bold"))
    console.print(_facts(part))
    if part.lengths:
        console.print(_lengths(part))
    if part.bad:
        console.print(_places(f"bad rows ({part.bad_rows})", part.bad[:rows], part.source))
    if part.damaged:
        console.print(_places(f"encoding damage ({sum(part.encoding.values())})", part.damaged[:rows], part.source))


def _grid(title: str, *headings: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    box = SIMPLE_HEAD if headings else None
    table = Table(title=title or None, title_justify="left", box=box, show_header=bool(headings), pad_edge=False)
    for heading in headings:
        numeric = heading in ("shortest", "median", "p95", "longest", "total")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    return table


def _facts(part: SourceReport) -> Table:
    from rich.text import Text

    table = _grid("")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    facts = {
        "rows": f"{part.rows:,}, usable {part.rows - part.bad_rows:,}, bad {part.bad_rows:,}",
        "bad because": _counts(part.reasons),
        "kinds": _counts(part.kinds),
        "shapes": _counts(part.shapes),
        "columns": _counts(part.columns, part.rows),
        "prompts": f"{part.prompts:,} different in {part.records:,} records",
        "duplicates": f"{part.duplicate_rows:,} rows, {part.identical_pairs:,} identical pairs",
        "empty answers": f"{part.empty_answers:,}",
        "encoding damage": _counts(part.encoding) or "none",
    }
    if part.longest_baseline is not None:
        share = part.longest_baseline
        pairs = f"{part.pairs:,} pairs" + (f", {part.tied_pairs:,} ties" if part.tied_pairs else "")
        facts["always the longest"] = f"right in {share:.1%} of {pairs} ({part.same_length:,} of equal length)"
    for name, value in facts.items():
        if not value:
            continue
        table.add_row(Text(name), Text(visible(value, 600)))
    return table


def _counts(counts: dict[str, int], full: int | None = None) -> str:
    """Names with their counts; a count that is `full` goes without saying."""
    return ", ".join(name if count == full else f"{name} ({count:,})" for name, count in counts.items())


def _lengths(part: SourceReport) -> Table:
    from rich.text import Text

    table = _grid("lengths", "of", "shortest", "median", "p95", "longest", "total")
    for what, spread in part.lengths.items():
        numbers = (spread.shortest, spread.median, spread.p95, spread.longest, spread.total)
        table.add_row(Text(what), *(f"{number:,}" for number in numbers))
    return table


def _places(title: str, found: list[BadRow], source: str) -> Table:
    from rich.text import Text

    table = _grid(title, "where", "why", "what stands there")
    for bad in found:
        inside = bad.source.removeprefix(source).lstrip("/\\")
        where = f"{inside}:{bad.line}" if inside else f"line {bad.line}"
        table.add_row(Text(visible(where, 200)), Text(visible(bad.reason, 200)), Text(visible(bad.excerpt)))
    return table
