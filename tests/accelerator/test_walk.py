"""Every stage on a device that is not the CPU: it runs, gives the same numbers, and does not wait where it need not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.accelerator.pretend import build
from tests.accelerator.walk import JOBS

ROOT = Path(__file__).resolve().parents[2]
# Numbers of bfloat16 stand a step of it apart, and what is sampled with them need not be the same.
_ROUNDED: dict[str, float | None] = {"sft-bfloat16": 0.05, "ppo-bfloat16": None}
_PROMPTS = ("The cat", "The dog likes", "Who", "Sun and milk", "Bones", "The sun likes the dog", "A", "The")


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Path:
    if shutil.which("g++") is None:
        if os.environ.get("CI"):
            pytest.fail("g++ is not there, which builds the device")
        pytest.skip("needs g++, which builds the device")
    return build(request.config.cache.mkdir("pretend"))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def walked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, library: Path) -> dict[str, Any]:
    """What the jobs said on both devices."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "tiny").symlink_to(tiny_model)
    pairs = [(p, " likes milk." + " yes" * i, " no" + " bones" * (7 - i)) for i, p in enumerate(_PROMPTS)]
    for name, rows in {
        "prompts": [{"prompt": p} for p in _PROMPTS],
        "corpus": [{"text": f"{p}{good}{bad}"} for p, good, bad in pairs],
        "demonstrations": [{"prompt": p, "completion": good} for p, good, _ in pairs],
        "pairs": [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in pairs],
        "thumbs": [{"prompt": p, "completion": x, "label": x is good} for p, good, bad in pairs for x in (good, bad)],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {device: _walk(device, folder, library) for device in ("cpu", "pretend")}


def _walk(device: str, folder: Path, library: Path) -> dict[str, Any]:
    """In a process of its own: the device is there for good."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.accelerator.walk", device, str(folder), str(library), *JOBS],
        cwd=ROOT,
        env=os.environ | {"GOODHEART_NATIVE": "0"},  # in PyTorch on both, as on a GPU
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("job", JOBS)
def test_a_stage_on_an_accelerator_does_what_it_does_on_the_cpu(job: str, walked: dict[str, Any]) -> None:
    there, here = walked["pretend"][job]["rows"], walked["cpu"][job]["rows"]
    assert len(there) == len(here) > 0
    if (apart := _ROUNDED.get(job, 1e-3)) is None:
        return
    for one, other in zip(there, here, strict=True):
        assert one == {key: _about(value, apart) for key, value in other.items()}


def _about(value: Any, apart: float) -> Any:
    numbers = isinstance(value, float) or (isinstance(value, list) and all(isinstance(v, float) for v in value))
    return pytest.approx(value, rel=apart, abs=1e-5) if numbers else value


# Where a training stage may wait: in an optimizer step once for the norm of the gradients and twice for the metrics,
# and before or after all steps.
_IN_A_STEP = {"train/optimizer.py _sum_of_squares": 1, "train/step.py _to_host": 2}
_AROUND = {
    "stages/rollouts.py fetch",  # once for each mask
    "stages/rollouts.py <listcomp> < stages/rollouts.py shown",
    "stages/prompt_stream.py scores_of_rows",
    "stages/online_answers.py scores_of_prompts",
    "stages/ppo_update.py _variance",
    "losses/metrics.py means",
    "stages/updates.py weigh",
    "stages/online_update.py update",
    "generate/engine.py _draw",
    "models/causal.py before < train/memory.py _saved",  # the memory plan
    "train/language_model.py mean_loss",  # on what is held out
    "stages/references.py logps_of",
    "judges/reward.py score_tokens",
    "models/weights.py ",
    "train/checkpoint.py ",
    "train/tensors.py ",
}


@pytest.mark.parametrize("job", [job for job in JOBS if job.split("-")[0] not in {"sample", "score"}])
def test_a_training_step_waits_for_an_accelerator_three_times(job: str, walked: dict[str, Any]) -> None:
    said, may = walked["pretend"][job], dict(_IN_A_STEP)
    if job.startswith("grpo"):
        may["stages/grpo_update.py loss_of"] = 1  # how many tokens there are to learn from
    found: dict[str, int] = {}
    for places, count in said["waits"].items():
        inner = next((place for place in may if places.startswith(place)), None)
        assert inner or any(places.startswith(place) for place in _AROUND), places
        if inner:
            found[inner] = found.get(inner, 0) + count
    steps = sum(row.get("policy/updates", 1) for row in said["rows"])
    if job.endswith("-resumed"):
        steps += 1  # of the first run, which was cut off after its checkpoint
    assert found == {place: count * steps for place, count in may.items()}


def test_a_step_of_sampling_waits_once(walked: dict[str, Any]) -> None:
    waits = walked["pretend"]["sample"]["waits"]
    assert {places.split(" < ")[0] for places in waits} == {"generate/engine.py _draw"}
    assert sum(waits.values()) == 2 + 7  # two groups of prompts of like lengths get a first token, then all seven more


def test_tensors_of_two_devices_are_refused_as_on_a_gpu(library: Path) -> None:
    code = (
        f"import sys, torch\nfrom pathlib import Path\nfrom tests.accelerator.pretend import Waits, begin\n"
        f"begin(Path({str(library)!r}))\n"
        "here, there = torch.ones(2, 3), torch.ones(2, 3, device='pretend')\n"
        "for mixed in (lambda: here + there, lambda: there @ here.T, lambda: torch.cat((here, there)),\n"
        "              lambda: there.gather(1, here.long()), lambda: there.index_select(0, here[0].long())):\n"
        "    try:\n        mixed()\n"
        "    except RuntimeError as error:\n        assert 'same device' in str(error), error\n"
        "    else:\n        sys.exit('not refused')\n"
        "with Waits() as waits:\n    there.sum().item()\n    there @ there.T\n"
        "    with torch.inference_mode():\n        (there + 1).tolist()\n"
        "print(sum(waits.places.values()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "2\n"
