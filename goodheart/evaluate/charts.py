"""The plots of a report, each with its title and a sentence on how to read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from goodheart.errors import DataError
from goodheart.evaluate.plot import Interval, Line, Show, interval_plot, legend, line_plot, number, percent
from goodheart.evaluate.runs import RunRecord
from goodheart.evaluate.wording import aspect_name, fixed, known
from goodheart.judges.difficulty import middles
from goodheart.judges.goodhart import RL, fit_law

_TWO_SIDED = 1.96  # standard errors of a 95 % interval

# What is drawn together for a training run: title, unit, metrics.
_CURVES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Loss", "nats per token", ("loss", "eval/loss")),
    ("Reward", "score per answer", ("objective/scores", "objective/rlhf_reward")),
    ("KL from the start", "nats per answer", ("objective/kl",)),
    ("Entropy", "nats per token", ("policy/entropy_avg",)),
    ("Length", "tokens per answer", ("completions/mean_length",)),
    ("Answers that ended", "share", ("completions/ended",)),
    ("Clip fraction", "share of tokens", ("policy/clipfrac_avg",)),
    ("Explained variance", "of the returns", ("critic/vf_explained_var",)),
    ("Open to the curriculum", "share of the prompts", ("curriculum/open", "curriculum/seen")),
    (
        "Reward by difficulty",
        "score per answer",
        ("curriculum/reward_easy", "curriculum/reward_middle", "curriculum/reward_hard"),
    ),
    ("Accuracy", "share of pairs", ("rewards/accuracies", "eval/accuracy")),
    ("Margin", "reward", ("rewards/margins", "eval/margins")),
    ("Gradient norm", "before clipping", ("grad_norm",)),
    ("Sampler and trainer", "nats per token apart", ("sampler/logprob_diff_mean",)),
)
_FEWEST_POINTS = 2  # of a curve that is worth drawing


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its title and how to read it."""

    title: str
    drawing: Markup
    note: str = ""
    legend: str = ""


def training_charts(run: RunRecord) -> list[Chart]:
    """Curves of whatever the run logged."""
    charts = []
    for title, unit, names in _CURVES:
        lines = []
        for name in names:
            rows = [row for row in run.metrics if name in row]
            y = [math.nan if row[name] is None else float(row[name]) for row in rows]
            if len(y) >= _FEWEST_POINTS:
                lines.append(Line(name, [float(row["step"]) for row in rows], y))
        drawing = line_plot(lines, f"{title} of {run.name} by step", y_label=unit) if lines else Markup("")
        if drawing:
            charts.append(Chart(title, drawing, "", legend(lines)))
    return charts


def goodhart_charts(run: RunRecord) -> list[Chart]:
    """Audit and proxy against the distance from the start, with the fitted law, and by step; none without an audit."""
    rows = [row for row in run.audit if all(_is_number(row.get(key)) for key in ("kl", "audit", "proxy"))]
    if len(rows) < _FEWEST_POINTS:
        return []
    d = [math.sqrt(max(float(row["kl"]), 0.0)) for row in rows]
    steps = [float(row["step"]) for row in rows]
    audit, errors = [float(row["audit"]) for row in rows], [float(row.get("audit_error") or 0) for row in rows]
    law = run.results.get("goodhart") or _fit(d, audit, errors)
    kept = [i for i, row in enumerate(rows) if row.get("kept")]
    by_distance, by_step = _looks(d, rows, audit, errors), _looks(steps, rows, audit, errors)
    if _bends(law):
        x = np.linspace(0, max(d), 80)
        y = audit[0] + law["alpha"] * x - law["beta"] * RL.bend(x)
        by_distance.append(Line("fitted law", x.tolist(), y.tolist(), colour=0, dashed=True))
    distance = line_plot(
        by_distance,
        f"audit and proxy score of {run.name} by square root of the KL",
        x_label="√KL from the start (√nats)",
        y_label="audit score",
        marks=[(d[i], "kept") for i in kept],
        shade=_peak_range(law, max(d)),
    )
    time = line_plot(
        by_step,
        f"audit and proxy score of {run.name} by step",
        y_label="audit score",
        marks=[(steps[i], "kept") for i in kept],
    )
    return [
        Chart(f"{run.name}: how far it moved", distance, _law_in_words(law), legend(by_distance)),
        Chart(f"{run.name}: over time", time, "", legend(by_step)),
    ]


def _looks(
    x: Sequence[float], rows: Sequence[Mapping[str, Any]], audit: Sequence[float], errors: Sequence[float]
) -> list[Line]:
    low = [a - _TWO_SIDED * e for a, e in zip(audit, errors, strict=True)]
    high = [a + _TWO_SIDED * e for a, e in zip(audit, errors, strict=True)]
    proxy = _on_the_scale_of(audit, [float(row["proxy"]) for row in rows])
    return [
        Line("audit, 95 % interval", x, audit, low, high, points=True, colour=0),
        Line("proxy, on the audit's scale", x, proxy, points=True, colour=1),
    ]


def _bends(law: Mapping[str, Any]) -> bool:
    """Whether the fit is a curve that turns down somewhere."""
    return law.get("alpha") is not None and law["beta"] > 0


def _fit(d: Sequence[float], audit: Sequence[float], errors: Sequence[float]) -> dict[str, Any]:
    """The law where the run left none, as an unfinished one does not."""
    later = [math.hypot(e, errors[0]) for e in errors[1:]]
    try:
        gains = [a - audit[0] for a in audit[1:]]
        return fit_law(RL, d[1:], gains, later if later and min(later) > 0 else None).as_dict()
    except DataError:
        return {}


def _peak_range(law: Mapping[str, Any], farthest: float) -> tuple[float, float] | None:
    """Where the peak lies, as far as it was seen; None where its interval is open."""
    low, high = law.get("peak_low"), law.get("peak_high")
    if not _bends(law) or law.get("peak") is None or low is None or high is None or low > farthest:
        return None
    return low, min(high, farthest)


def _law_in_words(law: Mapping[str, Any]) -> str:
    if law.get("alpha") is None:
        return "The looks are too few or too alike for a fit: no peak is claimed."
    if not _bends(law):
        return "The fitted law does not turn down (its β is not above 0): no peak is claimed."
    curve = f"R(d) = d ({number(law['alpha'])} − {number(law['beta'])} ln d)"
    if law.get("r2") is not None:
        curve += f", R² {law['r2']:.2f}"
    if law.get("peak") is None or law.get("peak_high") is None:
        return f"Fitted: {curve}. The looks do not show where the audit would peak."
    low, high = number(law["peak_low"]), number(law["peak_high"])
    return f"Fitted: {curve}; peak at d = {number(law['peak'])} (95 % interval {low} to {high}, tinted)."


def _on_the_scale_of(audit: Sequence[float], proxy: Sequence[float]) -> list[float]:
    """The proxy moved and stretched so that it starts where the audit starts and rises as far as the audit spreads."""
    spread = max(proxy) - min(proxy)
    scale = (max(audit) - min(audit)) / spread if spread > 0 else 0.0
    return [audit[0] + (p - proxy[0]) * scale for p in proxy]


def win_chart(found: Mapping[str, Any], which: str, title: str, note: str) -> Chart | None:
    """How often the last model is preferred to each other one; which: `rate` or `length_controlled`."""
    *others, last = list(found["models"])
    records = {other: found["wins"][last][other][which] for other in others}
    rows = [_interval(f"over {other}", m, place) for place, (other, m) in enumerate(records.items()) if known(m)]
    if not rows:
        return None
    return Chart(title, interval_plot(rows, title, show=percent, reference=0.5, limits=(0.0, 1.0)), note)


def board_chart(found: Mapping[str, Any]) -> Chart | None:
    """Ratings of all models."""
    order = {name: place for place, name in enumerate(found["models"])}
    rows = [
        Interval(row["model"], row["rating"], row["low"], row["high"], order.get(row["model"], 0))
        for row in found["leaderboard"]
    ]
    if not rows:
        return None
    note = "Bradley-Terry over all pairs of models; 100 points more are odds of 1.8 to 1. Mean of the models: 1000."
    return Chart("Leaderboard", interval_plot(rows, "ratings of all models", show=lambda x: f"{x:.0f}"), note)


def aspect_charts(found: Mapping[str, Any]) -> list[Chart]:
    """One chart for each aspect, a row for each model."""
    charts = []
    names = list(found["models"])
    aspects = list(dict.fromkeys(aspect for name in names for aspect in found["models"][name]))
    for aspect in aspects:
        measured = {name: found["models"][name].get(aspect) for name in names}
        rows = [_interval(name, m, place) for place, (name, m) in enumerate(measured.items()) if m and known(m)]
        if not rows:
            continue
        prompts = max(m["n"] for m in measured.values() if m)
        wish = "lower is better" if aspect in found.get("lower_is_better", []) else "higher is better"
        title = aspect_name(aspect)
        # one scale for all where it can be, so that a small difference looks small
        limits = (0.0, 1.0) if all(row.low >= 0 and row.high <= 1 for row in rows) else None
        show: Show = percent if aspect in found["yes_no"] else (lambda x: fixed(x, 1.0)) if limits else number
        drawing = interval_plot(rows, title, show=show, limits=limits)
        charts.append(Chart(title[:1].upper() + title[1:], drawing, f"{wish}; {prompts} prompts"))
    return charts


def calibration_chart(name: str, report: Mapping[str, Any]) -> Chart | None:
    """How sure a reward model is of its favourite, and how often that is right."""
    bins = [row for row in report.get("calibration", ()) if row.get("count")]
    if len(bins) < _FEWEST_POINTS:
        return None
    lines = [
        Line("as sure as right", [0.5, 1.0], [0.5, 1.0], dashed=True, colour=5),
        Line(name, [row["predicted"] for row in bins], [row["observed"] for row in bins], points=True, colour=0),
    ]
    drawing = line_plot(
        lines, f"calibration of {name}", x_label="how sure it is", y_label="how often right", y_range=(0.4, 1.02)
    )
    return Chart("Calibration", drawing, "On the dashed line it is as sure as it is right.", legend(lines))


def best_of_n_chart(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart | None:
    """What the judge says of the answer that the reward model likes best among n, for each model."""
    lines = []
    for name, rows in curves.items():
        y, half = [row["truth"] for row in rows], [_TWO_SIDED * row["truth_error"] for row in rows]
        low, high = [a - b for a, b in zip(y, half, strict=True)], [a + b for a, b in zip(y, half, strict=True)]
        lines.append(Line(name, [row["n"] for row in rows], y, low, high))
    drawing = line_plot(lines, "best of n by the reward model", x_label="n answers", y_label="judge's score")
    if not drawing:
        return None
    note = "The judge's score of the answer that the reward model likes best among n; flat: it cannot choose."
    return Chart("Best of n", drawing, note, legend(lines))


def accuracy_chart(title: str, groups: Mapping[str, Mapping[str, float]]) -> Chart | None:
    """Accuracy of a reward model by group."""
    rows = [
        Interval(name, row["accuracy"], row["accuracy_low"], row["accuracy_high"], 0) for name, row in groups.items()
    ]
    if not rows:
        return None
    return Chart(title, interval_plot(rows, title, show=percent, reference=0.5, limits=(0.0, 1.0)))


def difficulty_chart(name: str, report: Mapping[str, Any]) -> Chart:
    """How many prompts the model gets right how often, or how far a judge puts the better answer of a pair ahead."""
    found = report["histogram"]
    line = Line(name, middles(found), [float(count) for count in found["counts"]])
    if "pairs" in report:
        x_label, y_label = "margin", "pairs"
        note = "Left of 0 the judge prefers the other answer: a hard pair, or a wrong label."
    else:
        x_label, y_label = "pass rate", "prompts"
        note = "At both ends all answers are alike, and comparing them teaches nothing."
    drawing = line_plot([line], f"histogram of {name}", x_label=x_label, y_label=y_label)
    return Chart(f"Difficulty: {name}", drawing, note)


def probe_chart(report: Mapping[str, Any]) -> Chart | None:
    """How far each probe moves the score."""
    rows = [
        _interval(row["probe"], row["change"], 1 if row["flagged"] else 0)
        for row in report.get("probes", ())
        if known(row["change"])
    ]
    if not rows:
        return None
    note = (
        "Mean change of the score, in standard deviations, when an answer is changed in a way that makes it no better."
    )
    return Chart("Probes", interval_plot(rows, "probes of the reward model", reference=0.0), note)


def _interval(name: str, measure: Mapping[str, Any], colour: int) -> Interval:
    return Interval(name, measure["value"], measure["low"], measure["high"], colour)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
