"""Lineage: what of a folder is hashed, and which settings make two runs differ."""

from __future__ import annotations

from pathlib import Path

from goodheart.train.lineage import content, differences


def test_a_folder_of_data_counts_as_a_whole_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/rows.jsonl").write_text("{}\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("a")
    before = content(str(tmp_path))
    rows.write_text("b")
    assert content(str(tmp_path)) != before


def test_of_a_run_its_model_counts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}\n")
    for marker in ("lineage.json", "DONE"):
        (tmp_path / marker).write_text("x")
        before = content(str(tmp_path))
        assert before == content(str(tmp_path / "model"))
        (tmp_path / "log.txt").write_text(marker)
        assert content(str(tmp_path)) == before
        (tmp_path / marker).unlink()


def test_how_loud_a_run_is_does_not_make_it_another() -> None:
    there = {"log_every": 1, "max_tokens": 9, "quiet": True, "out": "a", "learning_rate": 0.1}
    here = {"log_every": 5, "max_tokens": 99, "tensorboard": True, "out": "b", "learning_rate": 0.2}
    assert differences(there, here) == ["learning_rate: 0.1 there, 0.2 now"]


def test_the_order_of_names_makes_another_run() -> None:
    there = {"seed": 1, "answers": {"base": "a", "ppo": "b"}, "inner": {"x": {"a": 1, "b": 2}}}
    here = {"answers": {"ppo": "b", "base": "a"}, "seed": 1, "inner": {"x": {"b": 2, "a": 1}}}
    assert differences(there, here) == ["order of answers", "order of inner.x"]
    assert differences(there, dict(reversed(there.items()))) == []
