"""Everything that is to be known about speed on a GPU, in one run: tests, generation, training steps, memory.

    python -m bench.gpu                                       # goodheart, and transformers' generate
    python -m bench.gpu --wheels .whl --out "$OUT"            # beside TRL too, from wheels in a folder
    python -m bench.gpu --tiny --device cpu                   # the same on small models, to see that it runs

`--wheels` is a folder of wheels, installed without an index into a folder that goes away again: what this machine
lacks (pydantic, datasets ...), and TRL, in one version for its trainers and in 1.12.0 for PPO. Each part runs in a
process of its own with its share of the time that is left; what it has measured when its time is up, or when it fails,
is kept. Writes gpu.md (the table), gpu.json and gpu.log.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# In this order; the number is the share of the time.
PARTS = {
    "peaks": 20,
    "tests": 60,
    "generation": 110,
    "packed": 60,
    "sft": 90,
    "dpo": 70,
    "grpo": 80,
    "ppo": 80,
}
_GRACE = 1.5  # times its share of what is left that a part may take
_TIDY = 5.0  # seconds kept for the end
_PPO = "1.12.0"

Row = dict[str, Any]


def main() -> int:
    """Prints the table; 1 where a part failed or ran out of time."""
    a = _arguments()
    deadline = time.monotonic() + a.seconds
    a.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "tiny": a.tiny,
        "device": a.device,
        "parts": {},
    }
    with tempfile.TemporaryDirectory(prefix="goodheart-gpu-") as scratch, (a.out / "gpu.log").open("w") as log:
        settings = {"tiny": a.tiny, "device": a.device, **_install(a.wheels, Path(scratch))}
        for place, name in enumerate(a.parts):
            left = deadline - time.monotonic() - _TIDY
            share = PARTS[name] / sum(PARTS[other] for other in a.parts[place:])
            part = _run(name, settings, Path(scratch), min(left, _GRACE * share * left), log)
            found["parts"][name] = part
            if name == "peaks":
                settings["peaks"] = part["rows"][-1] if part["rows"] else None
            print(f"{name}: {part['outcome']} after {part['seconds']:.0f} s", file=sys.stderr, flush=True)
            (a.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(table(found))
    (a.out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(part["outcome"] == "done" for part in found["parts"].values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install for this run")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/bench-gpu")))
    return parser.parse_args()


def _install(wheels: Path | None, scratch: Path) -> dict[str, Any]:
    """-> where packages were put: those of everybody, and TRL's for its trainers and for PPO (None without)."""
    if wheels is None:
        return {"packages": [], "trl": None, "trl_ppo": None}
    files = sorted(wheels.glob("*.whl"))
    if not files:
        sys.exit(f"{wheels}: no wheels there; leave --wheels out to run without TRL")
    versions = {file: re.sub(r"^trl-([^-]+)-.*", r"\1", file.name) for file in files if file.name.startswith("trl-")}
    _pip([file for file in files if file not in versions], scratch / "packages")
    for file, version in versions.items():
        _pip([file], scratch / f"trl-{version}")
    folders = {version: str(scratch / f"trl-{version}") for version in versions.values()}
    newest = max((v for v in folders if v != _PPO), key=lambda v: [int(n) for n in re.findall(r"\d+", v)], default=None)
    return {
        "packages": [str(scratch / "packages")],
        "trl": folders.get(newest or ""),
        "trl_ppo": folders.get(_PPO),
        "versions": list(folders),
    }


def _pip(files: Sequence[Path], target: Path) -> None:
    target.mkdir()
    if files:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--target", str(target), *map(str, files)], check=True)


def _run(name: str, settings: dict[str, Any], scratch: Path, seconds: float, log: Any) -> dict[str, Any]:
    """outcome, seconds, and the rows that were measured."""
    told, result = scratch / f"{name}.settings.json", scratch / f"{name}.json"
    told.write_text(json.dumps(settings), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*settings["packages"], str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    log.write(f"\n== {name}, {seconds:.0f} s\n")
    log.flush()
    begun, outcome = time.monotonic(), "no time left"
    if seconds > 0:
        command = [sys.executable, "-m", "bench.gpu.part", name, str(told), str(result)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
            outcome = "done" if status == 0 else f"FAILED (status {status}, see gpu.log)"
        except subprocess.TimeoutExpired:
            outcome = "OUT OF TIME"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the contenders that it has started
                process.wait()
    rows = json.loads(result.read_text(encoding="utf-8")) if result.exists() else []
    return {"outcome": outcome, "seconds": time.monotonic() - begun, "rows": rows}


def table(found: dict[str, Any]) -> Iterator[str]:
    """What was measured, and what was not."""
    peaks = found["parts"].get("peaks", {}).get("rows") or [{}]
    yield f"{peaks[-1].get('machine', 'unknown machine')}, {found['started']}"
    yield f"at its best: {peaks[-1].get('text', 'not measured')}\n"
    yield "| | unit | goodheart | peer | times better | of the roofline | MiB | peer's MiB |"
    yield "|---|---|---|---|---|---|---|---|"
    notes = []
    for name, part in found["parts"].items():
        if part["outcome"] != "done":
            notes.append(f"- {name}: {part['outcome']}")
        for row in part["rows"]:
            if "what" in row:
                yield f"| {' | '.join(_cells(row))} |"
                notes += [f"- {row['what']}: {row['note']}"] if row.get("note") else []
    yield from ["", *notes]


def _cells(row: Row) -> Iterator[str]:
    ours, peer = row.get("goodheart"), row.get("peer")
    yield from (row["what"], row["unit"], _number(ours), f"{_number(peer)} {row.get('peer_name', '')}".strip())
    better = ours and peer and (ours / peer if row["unit"].endswith("/s") else peer / ours)
    yield f"{better:.2f}" if better else ""
    yield f"{row['roofline']:.0%}" if row.get("roofline") else ""
    yield from (_number(row.get("mib")), _number(row.get("peer_mib")))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
