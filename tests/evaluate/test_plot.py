"""Plots as text: places worked out by hand, hostile labels, values that are not finite."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from goodheart.evaluate.plot import Interval, Line, interval_plot, legend, line_plot, number, percent, ticks


def places(svg: str, tag: str, *names: str) -> list[tuple[float, ...]]:
    root = ET.fromstring(svg)
    return [tuple(float(one.attrib[n]) for n in names) for one in root.iter(tag)]


def test_ticks_by_hand() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(37, 61, 5) == [40, 45, 50, 55, 60]
    assert ticks(3, 3) == [3]


def test_numbers_are_short() -> None:
    shown = [number(x) for x in (0, 12345.6, 99.94, 1.5, 0.25, 0.0001, -2.0, math.nan)]
    assert shown == ["0", "12,346", "99.9", "1.5", "0.25", "1.0e-04", "-2", "–"]
    assert [percent(x) for x in (0, 0.012, 0.5, 1)] == ["0 %", "1.2 %", "50 %", "100 %"]


def test_points_lie_where_they_belong() -> None:
    # axes from x = 46 to 350 - 12 = 338 and from y = 220 - 36 = 184 up to 22; y limits given as 0 and 1
    svg = line_plot([Line("a", [0, 1, 2], [0.0, 0.5, 1.0], points=True)], "a plot", y_range=(0, 1))
    assert places(svg, "circle", "cx", "cy") == [(46, 184), (192, 103), (338, 22)]


def test_there_are_no_half_steps() -> None:
    texts = [
        text.text for text in ET.fromstring(line_plot([Line("a", [1, 2], [0, 1])], "a", y_range=(0, 1))).iter("text")
    ]
    assert {"1", "2"} <= set(texts)
    assert "1.2" not in texts
    halves = ET.fromstring(line_plot([Line("a", [1, 2.5], [0, 1])], "a", y_range=(0, 1))).iter("text")
    assert "1.5" in [text.text for text in halves]


def test_a_gap_breaks_the_line() -> None:
    svg = line_plot([Line("a", [0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0])], "a")
    (path,) = re.findall(r' d="([^"]*)"', svg)
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert "nan" not in svg


def test_nothing_to_draw() -> None:
    assert line_plot([Line("a", [0.0], [math.nan])], "a") == ""
    assert interval_plot([], "a") == ""
    assert legend([Line("alone", [0], [0])]) == ""


def test_long_runs_are_thinned() -> None:
    svg = line_plot([Line("a", list(range(10_000)), [1.0] * 10_000)], "a")
    assert len(svg) < 10_000
    (path,) = re.findall(r' d="([^"]*)"', svg)
    assert path.count("L") <= 300


def test_intervals_lie_where_they_belong() -> None:
    # one letter: the axis starts at 12 + 6.6 = 18.6 and ends at 340 - 62 = 278; 0.5 lies in the middle, 148.3
    svg = interval_plot([Interval("a", 0.5, 0.25, 2.0)], "a", limits=(0, 1))
    assert places(svg, "circle", "cx") == [(148.3,)]
    bar = next(line for line in ET.fromstring(svg).iter("line") if line.attrib["class"] == "bar")
    # 0.25: 18.6 + 0.25 * 259.4 = 83.45; what is over the limit ends at it
    assert (float(bar.attrib["x1"]), bar.attrib["x2"]) == (pytest.approx(83.45, abs=0.06), "278")


def test_marks_bands_and_shade_are_drawn() -> None:
    svg = line_plot(
        [Line("a", [0, 1], [0.0, 1.0], [-1.0, 0.5], [0.5, 1.5])], "a", marks=[(0.9, "kept")], shade=(0.2, 5.0)
    )
    root = ET.fromstring(svg)
    assert len(list(root.iter("polygon"))) == 1
    assert "kept" in [text.text for text in root.iter("text")]
    (shade,) = places(svg, "rect", "x", "width")
    assert shade[0] + shade[1] == pytest.approx(338)  # cut off at the end of the axis


def test_hostile_labels_stay_text() -> None:
    evil = '\u202e</text><script>alert("x")</script>'
    drawn = [
        interval_plot([Interval(evil, 0.5, 0.4, 0.6)], evil),
        line_plot([Line("a", [0, 1], [0, 1])], evil, x_label=evil, y_label=evil, marks=[(0.5, evil)]),
        legend([Line(evil, [0], [0]), Line("b", [0], [0])]),
    ]
    for svg in drawn:
        assert "<script" not in svg
        assert "\u202e" not in svg
        assert "script" in svg
        ET.fromstring(svg)  # well-formed
