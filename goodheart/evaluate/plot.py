"""Small plots as SVG text: lines with bands and points, and rows of intervals. Colours come from the page's style.

Every label is escaped; numbers are written with few digits, so that a page with many plots stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from markupsafe import escape as escape_html

from goodheart.evaluate.safe_text import said

Show = Callable[[float], str]

_MOST_POINTS = 300  # of a line; more are averaged in groups
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 22, 36
_ROW = 24  # height of a row of intervals
_LETTER = 6.6  # width of a letter of a label, about


@dataclass(frozen=True, slots=True)
class Line:
    """A curve or a set of points. `low` and `high` make error bars on points, a band on a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    points: bool = False
    dashed: bool = False
    colour: int | None = None  # place in the page's palette; None = in order


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval in a row of its own."""

    name: str
    value: float
    low: float
    high: float
    colour: int = 0


def number(value: float) -> str:
    """A few digits: 12,345 1,234 123 12.3 1.23 0.123 0.00012."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    text = f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}" if size >= 0.001 else f"{value:.1e}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %" if 0 < abs(value) < 0.0995 else f"{100 * value:.0f} %"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_plot(
    lines: Sequence[Line],
    title: str,
    *,
    x_label: str = "step",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    marks: Iterable[tuple[float, str]] = (),
    shade: tuple[float, float] | None = None,
    width: int = 350,
    height: int = 220,
) -> Markup:
    """Lines over one pair of axes.

    Args:
        lines: values that are not finite break a line.
        title: what the plot shows, for those who hear it read out; it is not drawn.
        y_range: fixed limits; None = from the values.
        marks: x positions with a label, drawn as dashed uprights. shade: an x range to be tinted.

    Returns:
        The drawing, or nothing where there is no finite value.
    """
    drawn = [_thinned(line) for line in lines]
    xs = [x for line in drawn for x, y in zip(line.x, line.y, strict=True) if _finite(x, y)]
    ys = [y for line in drawn for group in (line.y, line.low or (), line.high or ()) for y in group if _finite(y)]
    if not xs:
        return Markup("")
    marked = list(marks)
    x_scale = _Scale(min(xs), max([*xs, *(x for x, _ in marked)]), _LEFT, width - _RIGHT)
    y_low, y_high = y_range or _padded(min(ys), max(ys))
    y_scale = _Scale(y_low, y_high, height - _BOTTOM, _TOP)
    whole = all(float(x).is_integer() for x in xs)
    parts = [_axes(x_scale, y_scale, x_label, y_label, width, height, whole)]
    if shade is not None:
        start, end = (x_scale(min(max(x, x_scale.low), x_scale.high)) for x in shade)
        parts.append(f'<rect class="shade" x="{_n(start)}" y="{_TOP}" width="{_n(max(end - start, 1))}" '
                     f'height="{height - _BOTTOM - _TOP}"/>')  # fmt: skip
    for x, label in marked:
        parts.append(_upright(x_scale(x), label, width, height))
    for place, line in enumerate(drawn):
        colour = place if line.colour is None else line.colour
        parts.append(f'<g class="s{colour % 6}">{_points(line, x_scale, y_scale) if line.points else ""}'
                     f"{'' if line.points else _curve(line, x_scale, y_scale)}</g>")  # fmt: skip
    return _svg(width, height, title, "".join(parts))


def legend(lines: Sequence[Line]) -> Markup:
    """Names of the lines in their colours; nothing for a single one."""
    if len(lines) < 2:
        return Markup("")
    items = []
    for place, line in enumerate(lines):
        shape = "dots" if line.points else "dashes" if line.dashed else "stroke"
        colour = (place if line.colour is None else line.colour) % 6
        items.append(f'<span class="key {shape} s{colour}">{_escaped(line.name)}</span>')
    return Markup(f'<p class="legend">{" ".join(items)}</p>')


def interval_plot(
    rows: Sequence[Interval],
    title: str,
    *,
    show: Show = number,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
    width: int = 340,
) -> Markup:
    """One row for each interval, its value written at the right.

    Args:
        show: how a value is written.
        reference: a value to compare with, drawn as an upright line.
        limits: ends of the axis; None = from the values.
    """
    if not rows:
        return Markup("")
    ends = [x for row in rows for x in (row.low, row.high)] + ([] if reference is None else [reference])
    low, high = limits or _padded(min(ends), max(ends))
    left = min(12 + max(len(row.name) for row in rows) * _LETTER, width * 0.42)
    height = _ROW * len(rows) + 30
    scale = _Scale(low, high, left, width - 62)
    parts = []
    for tick in ticks(low, high, 4):
        x = _n(scale(tick))
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="4" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{height - 8}" text-anchor="middle">{_escaped(show(tick))}</text>')
    if reference is not None:
        x = _n(scale(reference))
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="2" y2="{height - 22}"/>')
    for place, row in enumerate(rows):
        y = 4 + _ROW * (place + 0.5)
        name = _shortened(row.name, int((left - 8) / _LETTER))
        parts.append(
            f'<text class="label" x="0" y="{_n(y + 4)}">{_escaped(name)}</text>'
            f'<g class="s{row.colour % 6}"><line class="bar" x1="{_n(scale.inside(row.low))}" '
            f'x2="{_n(scale.inside(row.high))}" y1="{_n(y)}" y2="{_n(y)}"/>'
            f'<circle class="dot" cx="{_n(scale.inside(row.value))}" cy="{_n(y)}" r="4.5"/></g>'
            f'<text class="value" x="{width}" y="{_n(y + 4)}" text-anchor="end">{_escaped(show(row.value))}</text>'
        )
    return _svg(width, height, title, "".join(parts))


class _Scale:
    """From values to places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if not high > low:
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def inside(self, value: float) -> float:
        return self(min(max(value, self.low), self.high))


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str, width: int, height: int, whole: bool) -> str:
    bottom = height - _BOTTOM
    parts = []
    for tick in ticks(y.low, y.high):
        at = _n(y(tick))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{_n(y(tick) + 4)}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in ticks(x.low, x.high):
        if whole and not float(tick).is_integer():
            continue  # there is no half step
        at = _n(x(tick))
        parts.append(f'<text class="tick" x="{at}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + width - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{_n(middle)}" y="{height - 4}" text-anchor="middle">{_escaped(x_label)}</text>'
    )
    if y_label:
        parts.append(f'<text class="tick" x="0" y="10">{_escaped(y_label)}</text>')
    return "".join(parts)


def _upright(x: float, label: str, width: int, height: int) -> str:
    side, anchor = (x - 4, "end") if x > width * 0.6 else (x + 4, "start")
    return (
        f'<line class="reference" x1="{_n(x)}" x2="{_n(x)}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
        f'<text class="label" x="{_n(side)}" y="{_TOP + 10}" text-anchor="{anchor}">{_escaped(label)}</text>'
    )


def _points(line: Line, x: _Scale, y: _Scale) -> str:
    parts = []
    for i, (a, b) in enumerate(zip(line.x, line.y, strict=True)):
        if not _finite(a, b):
            continue
        if line.low is not None and line.high is not None:
            top, bottom = y.inside(line.high[i]), y.inside(line.low[i])
            parts.append(f'<line class="error" x1="{_n(x(a))}" x2="{_n(x(a))}" y1="{_n(top)}" y2="{_n(bottom)}"/>')
        parts.append(f'<circle class="dot" cx="{_n(x(a))}" cy="{_n(y.inside(b))}" r="3.5"/>')
    return "".join(parts)


def _curve(line: Line, x: _Scale, y: _Scale) -> str:
    band = ""
    if line.low is not None and line.high is not None:
        upper = [(a, b) for a, b in zip(line.x, line.high, strict=True) if _finite(a, b)]
        lower = [(a, b) for a, b in zip(line.x, line.low, strict=True) if _finite(a, b)]
        outline = " ".join(f"{_n(x(a))},{_n(y.inside(b))}" for a, b in [*upper, *reversed(lower)])
        band = f'<polygon class="band" points="{outline}"/>'
    path, pen_down = [], False
    for a, b in zip(line.x, line.y, strict=True):
        if _finite(a, b):
            path.append(f"{'L' if pen_down else 'M'}{_n(x(a))} {_n(y.inside(b))}")
        pen_down = _finite(a, b)
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    return f'{band}<path class="line"{dashes} d="{"".join(path)}"/>'


def _thinned(line: Line) -> Line:
    """Groups of neighbours averaged where there are more points than can be seen; lines without bands only."""
    group = -(-len(line.x) // _MOST_POINTS)
    if group < 2 or line.points or line.low is not None:
        return line
    starts = range(0, len(line.x), group)

    def mean(values: Sequence[float]) -> float:
        known = [v for v in values if _finite(v)]
        return sum(known) / len(known) if known else math.nan

    x = [mean(line.x[i : i + group]) for i in starts]
    y = [mean(line.y[i : i + group]) for i in starts]
    return Line(line.name, x, y, dashed=line.dashed, colour=line.colour)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A little more than the values, and all the way to 0 where that is near."""
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    start = 0.0 if 0 <= low <= 0.35 * high else low - room
    return start, high + room


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


def _svg(width: int, height: int, title: str, inside: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escaped(title)}" preserveAspectRatio="xMidYMid">'
        f"{inside}</svg>"
    )


def _escaped(text: str) -> Markup:
    return escape_html(said(text))


def _finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
