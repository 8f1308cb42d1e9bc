"""The studio's benchmark in small: people who label over HTTP, and a server that is killed under them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import studio
from goodheart.feedback.store import open_store
from goodheart.feedback.tables import labels


def test_people_label_over_http_without_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "labels.db")
    seen = studio.load(place, count=200, people=3, pause=0.05, seconds=1.0, words=5)
    assert seen.errors == []
    assert all(seen.seconds.values())  # of each kind some were timed
    store = open_store(place)
    with store.read() as connection:
        kept = {row.id: (row.person_id, row.assignment_id) for row in connection.execute(labels.select())}
    store.close()
    told = {label: (person, task) for label, task, person, _ in seen.acknowledged}
    assert told.items() <= kept.items()
    assert len(told) == len(seen.acknowledged)
    assert "labels a second" in capsys.readouterr().out


def test_nothing_is_lost_or_doubled_when_the_server_is_killed(tmp_path: Path) -> None:
    found = studio.kills(str(tmp_path / "labels.db"), count=300, people=4, times=3)
    assert found["acknowledged"] == found["kept"] > 3 * 2  # everybody got their answer in the end
    assert found["freed"] == found["held"]
