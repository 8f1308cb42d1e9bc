"""What decides the last bits of a reference's log-probabilities: each of it is part of their name in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

from goodheart.models import native
from goodheart.stages import references
from goodheart.stages.dpo import DPOConfig
from goodheart.train import lineage
from tests.stages.test_dpo import other_model  # noqa: F401 (a fixture)

HERE = {"machine": "x86_64", "cpu": "EPYC", "cpu_capability": "AVX2", "threads": 2, "gpus": ["H200"], "cpus": 2}
CIRCUMSTANCES: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 100},
    "parallel": {"parallel": "fsdp"},
    "processes": {"processes": 2},
    "device": {"device": "cuda"},
    "own start": {"reference": "the other"},
    "adapter": {"lora": {"rank": 2}},
    "code": {"code": "of tomorrow"},
    "in C": {"way": "PyTorch, parts in C"},
    "torch": {"torch_version": "9"},
    "transformers": {"transformers": "9"},
    "machine": {"hardware": {"machine": "aarch64"}},
    "cpu": {"hardware": {"cpu": "Xeon"}},
    "cpu_capability": {"hardware": {"cpu_capability": "AVX512"}},
    "threads": {"hardware": {"threads": 1}},
    "gpus": {"hardware": {"gpus": []}},
}


@pytest.fixture
def circumstances(
    tiny_model: Path,
    other_model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    def found(
        processes: int = 1,
        device: str = "cpu",
        code: str = "of today",
        way: str = "PyTorch",
        torch_version: str = "2",
        transformers: str = "5",
        hardware: Mapping[str, Any] = MappingProxyType({}),
        **settings: Any,
    ) -> dict[str, Any]:
        monkeypatch.setattr(references, "code_hash", lambda: code)
        monkeypatch.setattr(native, "way", lambda: way)
        monkeypatch.setattr(references, "packages", lambda: {"transformers": transformers, "peft": "1"})
        monkeypatch.setattr(references, "hardware", lambda: HERE | hardware)
        monkeypatch.setattr(torch, "__version__", torch_version)
        if "reference" in settings:
            settings["reference"] = str(other_model)
        session: Any = SimpleNamespace(world=SimpleNamespace(size=processes), device=torch.device(device))
        config = DPOConfig(model=str(tiny_model), data="d.jsonl", out=Path("r"), **settings)
        return json.loads(references._circumstances(config, session))

    return found


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_each_circumstance_counts(circumstances: Callable[..., dict[str, Any]], name: str) -> None:
    before, after = circumstances(), circumstances(**CIRCUMSTANCES[name])
    assert [each for each in before if before[each] != after[each]] == [name]
    assert before.keys() == after.keys() == CIRCUMSTANCES.keys()


NEOVERSE = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd
CPU implementer\t: 0x41
CPU part\t: 0xd0c
CPU revision\t: 1
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n" * 2, "AMD EPYC"),
        (NEOVERSE * 2, "CPU implementer 0x41, CPU part 0xd0c, CPU revision 1"),
        (  # cores of two kinds
            NEOVERSE + NEOVERSE.replace("0xd0c", "0xd05"),
            "CPU implementer 0x41, CPU part 0xd0c, CPU revision 1, CPU part 0xd05",
        ),
        ("isa\t: rv64imac\n", "elsewhere"),
        (OSError("not Linux"), "Apple M1"),
    ],
)
def test_machines_are_told_apart(monkeypatch: pytest.MonkeyPatch, cpuinfo: str | OSError, name: str) -> None:
    def read_text(file: Path, **_: Any) -> str:
        assert file == Path("/proc/cpuinfo")
        if isinstance(cpuinfo, OSError):
            raise cpuinfo
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(lineage.platform, "processor", lambda: "elsewhere")
    monkeypatch.setattr(lineage.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="Apple M1\n"))
    assert lineage.hardware()["cpu"] == name
