"""The progress display: rate, time left, and what a resumed run must not count."""

from __future__ import annotations

import sys
import time

import pytest

from goodheart.train import progress
from goodheart.train.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_plain_lines_come_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, "sft") as bar:
        bar.skip(40)  # done by an earlier process
        for _ in range(6):
            clock.now += 4.0
            bar.advance(1, loss=2.5)
            bar.advance(0, kl=3)
    lines = capsys.readouterr().err.splitlines()
    # 6 steps in 24 s: 4 s each; (1000 - 46) * 4 s = 3816 s = 1:03:36. Lines at 4 s (the first), 16 s and the end.
    assert [line.split("  ")[0] for line in lines] == ["sft 41/1000 steps", "sft 44/1000 steps", "sft 46/1000 steps"]
    assert lines[-1] == "sft 46/1000 steps  4 s/step  1:03:36 left  loss 2.5  kl 3"


def test_silent_bar_still_counts(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "x", shown=False) as bar:
        clock.now += 2.0
        bar.advance(4)
        bar.print("nothing")
    assert bar.done == 4
    assert capsys.readouterr().err == ""


def test_terminal_gets_a_bar_with_metrics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    with Progress(3, "ppo") as bar:
        bar.advance(2, reward=0.25)
        bar.print("[not markup]")
    err = capsys.readouterr().err
    assert "ppo" in err
    assert "2/3" in err
    assert "reward 0.25" in err
    assert "[not markup]" in err


def test_fast_loops_show_units_per_second(clock: Clock) -> None:
    with Progress(100, "sample", unit="prompts", shown=False) as bar:
        clock.now += 2.0
        for _ in range(50):
            bar.advance()
        assert bar.rate == pytest.approx(25.0)
        assert bar.line() == "sample 50/100 prompts  25 prompts/s  0:02 left"
    assert progress.clock(59.6) == "1:00"


def test_unknown_total_shows_no_time_left(clock: Clock) -> None:
    with Progress(None, "score", unit="rows", shown=False) as bar:
        clock.now += 2.0
        bar.advance(256)
        assert bar.line() == "score 256 rows  128 rows/s"


def test_the_last_line_is_not_said_twice(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, "sft") as bar:
        clock.now += 2.0
        bar.advance(1)
    assert capsys.readouterr().err == "sft 1/1 steps  2 s/step  0:00 left\n"


def test_what_is_done_within_seconds_needs_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for seconds in (3.0, 4.0):
        with Progress(3, "tokens", unit="rows", patient=True) as bar:
            for _ in range(3):
                clock.now += seconds
                bar.advance()
    # 9 s: nothing; 12 s: the third row is past the tenth second
    assert capsys.readouterr().err == "tokens 3/3 rows  4 s/row  0:00 left\n"


def test_a_watcher_is_told_instead(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, str, str, str]] = []
    with progress.watched(lambda p: seen.append((p.count, p.pace, p.left, p.metrics))):
        with Progress(10, "sft") as bar:
            clock.now += 4.0
            bar.advance(2, loss=2.5)
        with Progress(10, "hidden", shown=False) as bar:
            bar.advance(1)
    assert seen == [("0/10 steps", "", "", ""), ("2/10 steps", "2 s/step", "0:16 left", "loss 2.5")]
    assert capsys.readouterr().err == ""
    with Progress(1, "after") as bar:
        clock.now += 1.0
        bar.advance()
    assert capsys.readouterr().err.startswith("after 1/1 steps")
