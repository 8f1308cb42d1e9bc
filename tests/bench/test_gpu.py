"""The benchmark of a GPU runs from end to end on small models without one; a part that fails takes no other along."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu.alone import FULL, peaks_of
from bench.gpu.beside import _rows, _same
from bench.race import Contender
from bench.roofline import parameters
from goodheart.models.architecture import TransformerConfig

SETTINGS: dict[str, Any] = {"tiny": True, "device": "cpu", "packages": [], "trl": None, "trl_ppo": None}


@pytest.mark.slow
def test_small_models_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ["peaks", "generation", "packed", "sft", "ppo"]
    told = ["--tiny", "--device", "cpu", "--seconds", "3000", "--out", str(tmp_path), "--parts", *parts]
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *told])
    assert gpu.main() == 0, (tmp_path / "gpu.log").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    for name in parts[1:]:
        for row in found[name]["rows"]:
            assert row["goodheart"] > 0, row
            assert row["roofline"] > 0, row
            assert row["mib"] > 0, row
    assert found["generation"]["rows"][1]["peer"] > 0
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert text.count("\n| generation") == 2


def test_a_part_that_fails_or_takes_too_long_is_told(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        assert gpu._run("nothing", SETTINGS, tmp_path, 60, log)["outcome"].startswith("FAILED")
        assert gpu._run("peaks", SETTINGS, tmp_path, 0.1, log)["outcome"] == "OUT OF TIME"
        assert gpu._run("peaks", SETTINGS, tmp_path, 0.0, log)["outcome"] == "no time left"
        (tmp_path / "peaks.json").write_text('[{"what": "kept"}]', encoding="utf-8")
        assert gpu._run("peaks", SETTINGS, tmp_path, 0.1, log)["rows"] == [{"what": "kept"}]


def test_the_table_by_hand() -> None:
    rows = [
        {"what": "a", "unit": "tokens/s", "goodheart": 1200.0, "peer": 300.0, "peer_name": "them", "roofline": 0.25},
        {"what": "b", "unit": "s", "goodheart": 0.5, "peer": 2.0, "mib": 100.0, "peer_mib": 250.0, "note": "same: x"},
        {"what": "c", "unit": "s", "goodheart": 0.5},
    ]
    found = {
        "started": "now",
        "parts": {"one": {"outcome": "done", "rows": rows}, "two": {"outcome": "OUT OF TIME", "rows": []}},
    }
    lines = list(gpu.table(found))
    assert "| a | tokens/s | 1,200 | 300 them | 4.00 | 25% |  |  |" in lines  # more a second is better
    assert "| b | s | 0.5 | 2 | 4.00 |  | 100 | 250 |" in lines  # fewer seconds are
    assert "| c | s | 0.5 |  |  |  |  |  |" in lines
    assert lines[-2:] == ["- b: same: x", "- two: OUT OF TIME"]


def test_wheels_of_two_versions_of_trl_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put: dict[str, list[str]] = {}
    monkeypatch.setattr(gpu, "_pip", lambda files, target: put.update({target.name: [f.name for f in files]}))
    with pytest.raises(SystemExit, match="no wheels"):
        gpu._install(tmp_path, tmp_path)
    for name in ("trl-1.9.2", "trl-1.16.0", "trl-1.12.0", "pydantic-2.0"):
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    found = gpu._install(tmp_path, tmp_path)
    assert put["packages"] == ["pydantic-2.0-py3-none-any.whl"]
    assert put["trl-1.12.0"] == ["trl-1.12.0-py3-none-any.whl"]
    assert Path(found["trl"]).name == "trl-1.16.0"
    assert Path(found["trl_ppo"]).name == "trl-1.12.0"
    assert gpu._install(None, tmp_path)["trl"] is None


def test_other_work_is_told() -> None:
    assert _same({"losses": [2.0]}, {"losses": [2.01]}).startswith("same")
    assert _same({"losses": [2.0]}, {"losses": [2.1]}).startswith("NOT THE SAME")
    drawn = {"losses": [0.1], "new_tokens": [64]}
    assert _same(drawn, {"losses": [0.5], "new_tokens": [64]}).startswith("same")  # of other answers
    assert _same(drawn, {"losses": [0.1], "new_tokens": [60]}).startswith("NOT THE SAME")


def test_a_contender_that_fails_leaves_the_others(tmp_path: Path) -> None:
    contenders = [Contender(name, "bench.nothing", Path(sys.executable)) for name in ("goodheart", "TRL")]
    rows = list(_rows("x", contenders, {"threads": 1}, tmp_path, [], SETTINGS, torch.float32))
    assert [row["note"] for row in rows] == ["FAILED, see gpu.log"] * 2


def test_the_shape_is_that_of_qwen3() -> None:
    hf = {"model_type": "qwen3", "vocab_size": FULL.vocabulary, "tie_word_embeddings": True, **FULL.shape}
    # Qwen3-0.6B has 596,049,920 parameters, of which two norms of 1024 and two of 128 a layer, and one of 1024
    assert parameters(TransformerConfig.from_hf(hf)) == 596_049_920 - 28 * (2 * 1024 + 2 * 128) - 1024


def test_without_peaks_there_is_no_share() -> None:
    assert peaks_of(SETTINGS) is None
    known = peaks_of(SETTINGS | {"peaks": {"flops": {"bfloat16": 1e12}, "copies": [[8.0, 9.0]]}})
    assert known is not None
    assert known.flops == {torch.bfloat16: 1e12}
    assert known.bandwidth(1) == 9.0
