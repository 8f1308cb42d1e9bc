"""The report page: one HTML file that says what was made, whether it is better, and what to beware of.

It loads nothing from anywhere and runs no script. Every text from data or models is escaped by the template, and
control characters (which can turn text around) are shown as escapes.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from goodheart import __version__
from goodheart.errors import RunError
from goodheart.evaluate import charts
from goodheart.evaluate.cost import Cost, cost_of
from goodheart.evaluate.plot import number, percent
from goodheart.evaluate.runs import RunRecord, Story, read_story
from goodheart.evaluate.safe_text import said
from goodheart.evaluate.summary import summarise
from goodheart.evaluate.wording import aspect_name, duration, fixed, known, mark, parts
from goodheart.train.files import replace_text

T = TypeVar("T")
_TEMPLATES = Path(__file__).with_name("templates")
_UNIT = re.compile(r"(?<=\d) (?=[%W])")  # where a line of ours must not break
# Accuracy of a reward model in groups, as its run reports it.
_BY = {"by_length": "Accuracy by length (characters)", "by_score_difference": "Accuracy by difference of scores"}


def write_report(target: Path, out: Path | None = None) -> Path:
    """Writes the report of a run folder, or of all stages of a pipeline.

    Args:
        target: a run folder, or the `out` folder of a pipeline.
        out: the file to write; None = `report.html` in `target`.

    Returns:
        The file.

    Raises:
        RunError: `target` holds no run, or a file in it is damaged.
    """
    with _readable(Path(target), "its files"):
        story = read_story(Path(target))
        text = page(story)
    file = Path(out) if out is not None else story.path / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, text)
    return file


@contextlib.contextmanager
def _readable(place: Path, what: str) -> Iterator[None]:
    """Turns what Python says of a file that is not as it should be into words on which one that is."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
        said_of_it = f"{type(error).__name__}: {error}"
        raise RunError(
            f"{place}: {what} cannot be shown ({said_of_it}); they are damaged or of another version of goodheart: "
            "run the stage again"
        ) from error


def _of(run: RunRecord, show: Callable[[RunRecord], T]) -> T:
    """What is shown of one stage."""
    with _readable(run.path, f"the logs or results of the stage {run.name}"):
        return show(run)


def page(story: Story) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "said": said,
        "ours": lambda text: _UNIT.sub("\u00a0", said(text)),
        "number": number,
        "percent": lambda share: _UNIT.sub("\u00a0", percent(share)),
        "interval_parts": parts,
        "aspect": aspect_name,
        "duration": duration,
        "plain": lambda value: said(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        ),
    }
    environment.tests["known"] = known
    return environment.get_template("report.html").render(**_content(story))


def _content(story: Story) -> dict[str, Any]:
    found = story.evaluation
    evaluated = story.evaluated
    with _readable(evaluated.path if evaluated else story.path, "the results of the evaluation"):
        drawn_of_it = _evaluation_charts(found) if found else {}
        examined = _examined(found.get("reward_model", {})) if found else None
    with _readable(story.path, "the results of its stages"):
        summary = summarise(story)
    costs = [_of(run, cost_of) for run in story.runs]
    return {
        "name": story.name,
        "version": __version__,
        "now": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "summary": summary,
        "found": found,
        "answered": _answered(story),
        "models": list(found["models"]) if found else [],
        "charts": drawn_of_it,
        "goodhart": [chart for run in story.runs for chart in _of(run, charts.goodhart_charts)],
        "kept": [run.name for run in story.runs if run.done and (run.settings.get("audit") or {}).get("keep")],
        "labels": [run for run in story.runs if run.stage == "simulate" and run.results],
        "measured": [
            (run, _of(run, lambda each: charts.difficulty_chart(each.name, each.results)))
            for run in story.runs
            if run.stage == "difficulty" and run.results
        ],
        "rewards": [_of(run, _reward_section) for run in story.runs if run.stage == "reward" and run.results],
        "examined": examined,
        "training": [(run, drawn) for run in story.runs if (drawn := _of(run, charts.training_charts))],
        "runs": story.runs,
        "starts": {run.name: _start(run) for run in story.runs},
        "gates": story.gates,
        "costs": costs,
        "total": _total(costs),
        "example_marks": _marks,
    }


def _answered(story: Story) -> dict[str, str]:
    """name -> the model behind it and how it was drawn from, of all whose answers a stage of this story wrote."""
    files = story.evaluated.settings.get("answers", {}) if story.evaluated else {}
    drawn = {run.path.name: run.settings for run in story.runs if run.stage == "sample" and run.settings.get("model")}
    known_of = {name: drawn[Path(str(file)).name] for name, file in files.items() if Path(str(file)).name in drawn}
    return {
        name: f"{_listed(settings['model'])} at temperature {settings.get('sampling', {}).get('temperature', 1):g}"
        + (f", best of {settings['best_of']}" if settings.get("best_of", 1) > 1 else "")
        for name, settings in known_of.items()
    }


def _listed(names: str | list[str]) -> str:
    return names if isinstance(names, str) else " and ".join(names)


def _evaluation_charts(found: Mapping[str, Any]) -> dict[str, Any]:
    last = list(found["models"])[-1]
    several = len(found["models"]) > 1
    equal_note = "What the rate would be if both answers were equally long (docs/evaluate.md)."
    wins = [
        charts.win_chart(
            found, "rate", f"How often {last} is preferred", "Ties count half. Right of the line: preferred."
        ),
        charts.win_chart(found, "length_controlled", f"How often {last} is preferred at equal length", equal_note),
        charts.board_chart(found),
    ]
    return {"wins": [chart for chart in wins if chart] if several else [], "aspects": charts.aspect_charts(found)}


def _reward_section(run: RunRecord) -> dict[str, Any]:
    drawn = [charts.calibration_chart(run.name, run.results)]
    for key, title in _BY.items():
        drawn.append(charts.accuracy_chart(title, _ranges(run.results.get(key) or [])))
    return {"run": run, "charts": [chart for chart in drawn if chart]}


def _ranges(rows: list[Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Groups by the range that they cover."""
    most = max((row["to"] for row in rows), default=0.0)
    return {f"{fixed(row['from'], most)}–{fixed(row['to'], most)}": row for row in rows if "accuracy_low" in row}


def _examined(report: Mapping[str, Any]) -> dict[str, Any] | None:
    if not report:
        return None
    agreement = report["against_judge"]
    drawn = [
        charts.accuracy_chart("Agreement with the judge by kind", agreement.get("by_kind", {})),
        charts.accuracy_chart("Agreement by whose answers they are", agreement.get("by_model", {})),
        charts.accuracy_chart("Agreement by difference of the judge's scores", _ranges(agreement.get("by_margin", []))),
        charts.calibration_chart("reward model", agreement),
        charts.probe_chart(report),
        charts.best_of_n_chart(agreement.get("best_of_n", {})),
    ]
    return {"report": report, "charts": [chart for chart in drawn if chart]}


def _start(run: RunRecord) -> dict[str, Any]:
    return (run.lineage.get("starts") or [{}])[-1]


def _total(costs: list[Cost]) -> dict[str, float]:
    return {
        "seconds": sum(cost.seconds or 0 for cost in costs),
        "trained_tokens": sum(cost.trained_tokens or 0 for cost in costs),
        "sampled_tokens": sum(cost.sampled_tokens or 0 for cost in costs),
        "watt_hours": sum(cost.watt_hours or 0 for cost in costs),
    }


def _marks(aspects: Mapping[str, float | None], found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(words, tone) of one answer's aspects that apply; tone: good, bad, plain (between, or no known scale), score."""
    marks = []
    for aspect, value in aspects.items():
        if value is None:
            continue
        tone = "plain"
        if aspect in found["unit_interval"]:
            worth = 1 - value if aspect in found["lower_is_better"] else value
            tone = "good" if worth >= 0.75 else "bad" if worth <= 0.35 else "plain"
        sign = {"good": "✓ ", "bad": "✗ "}.get(tone, "")
        words = mark(aspect, value, aspect in found["yes_no"])
        if words:
            marks.append((words, "score") if aspect == "score" else (sign + words, tone))
    return marks
