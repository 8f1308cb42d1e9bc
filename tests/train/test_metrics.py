"""Reading and drawing metrics.jsonl."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from goodheart.errors import ConfigError, RunError
from goodheart.train.metrics import comparable, plot_run, read_metrics, series, tensorboard_tracker


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    rows = [
        {"step": 1, "loss": 2.0, "time": 5.0, "timing": {"time/step": 0.5}},
        {"step": 2, "loss": None, "non_finite": {"loss": "nan"}, "objective/kl": 1.5, "time": 6.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_series_of_metrics_and_of_the_clock(run_path: Path) -> None:
    steps, values = series(run_path, "loss")
    assert steps == [1, 2]
    assert values[0] == 2.0
    assert math.isnan(values[1])
    assert series(run_path / "metrics.jsonl", "time/step") == ([1], [0.5])
    assert series(run_path, "never") == ([], [])


def test_comparable_leaves_out_the_clock_alone(run_path: Path) -> None:
    assert comparable(read_metrics(run_path)) == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None, "non_finite": {"loss": "nan"}, "objective/kl": 1.5},
    ]


def test_torn_last_line_is_left_out_and_a_damaged_one_is_named(run_path: Path) -> None:
    file = run_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(run_path)] == [1, 2]
    file.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:1: not a line of JSON"):
        read_metrics(run_path)
    with pytest.raises(RunError, match="is this a run folder"):
        read_metrics(run_path / "nowhere")


def test_plot_shows_the_curves_that_were_logged(run_path: Path) -> None:
    svg, png = plot_run(run_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    # matplotlib writes each text as a comment beside its outlines
    assert "<!-- objective/kl -->" in text
    assert "<!-- loss -->" in text
    assert "<!-- accuracy -->" not in text
    (run_path / "metrics.jsonl").write_text("")
    assert plot_run(run_path) == []


def test_tensorboard_gets_each_metric_or_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append((self.folder, 0.0, -1))

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tensorboard_tracker(tmp_path)(3, {"loss": 0.5})
    assert written == [("loss", 0.5, 3), (str(tmp_path), 0.0, -1)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"goodheart\[track\]"):
        tensorboard_tracker(tmp_path)
