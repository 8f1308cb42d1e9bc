"""Steps of the stages beside TRL's trainers where its wheel is at hand, and alone where it is not.

The jobs are those of bench/trainers_job.py and bench/ppo_job.py, larger. TRL computes in bfloat16 as its own settings
do it: weights in float32 under autocast, and for `sft`, `dpo` and `grpo` also weights in bfloat16, which is faster but
has no float32 copy to be updated. Ours: weights in bfloat16 with such a copy.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import ppo_job, roofline, trainers_job
from bench.gpu.alone import dtype_of, peaks_of
from bench.race import Contender, Run, race, step_seconds
from bench.trainers_work import step_of

Row = dict[str, Any]

_SIZES = {True: "1M", False: "0.6B"}
# batch_size, prompt_tokens, new_tokens of each job
_LARGE = {"sft": (64, 128, 384), "dpo": (32, 128, 384), "grpo": (64, 128, 256), "ppo": (64, 128, 256)}
_SMALL = {"sft": (4, 8, 12), "dpo": (4, 8, 12), "grpo": (4, 8, 6), "ppo": (4, 8, 6)}
_CLOSE = 0.02  # of the first loss, by which bfloat16 may move it


def _task(task: str, told: dict[str, Any]) -> Iterator[Row]:
    small, device, dtype = told["tiny"], told["device"], dtype_of(told)
    batch, prompt, new = (_SMALL if small else _LARGE)[task]
    name = str(dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="goodheart-gpu-") as folder:
        job = trainers_job.Settings(
            task, folder, 1 if device == "cpu" else 8, 3 if not small else 2, batch, prompt, new, min(17, new // 2),
            num_generations=2 if small else 8, device=device, dtype=name, max_tokens=65_536, precomputed=True,
        )  # fmt: skip
        rows = trainers_job.build(job, _SIZES[small])
        work = step_of(job)
        peers = {"TRL": "float32"}
        if dtype == torch.bfloat16:
            peers = {"TRL, autocast": "float32", "TRL, bfloat16 weights": "bfloat16"}
        contenders = [Contender("goodheart", "bench.trainers_goodheart", Path(sys.executable))]
        contenders += [
            Contender(
                how,
                "bench.trainers_trl",
                Path(sys.executable),
                {"peer_weights": weights},
                [Path(told["trl"])],
            )
            for how, weights in peers.items()
            if told["trl"]
        ]
        told_all = asdict(job) | {"fixed_rows": rows}
        what = f"{task}, {_SIZES[small]}, {batch} rows of {prompt} + {new}"
        yield from _rows(what, contenders, told_all, Path(folder), work.job, told, dtype)


sft, dpo, grpo = (partial(_task, task) for task in ("sft", "dpo", "grpo"))


def ppo(told: dict[str, Any]) -> Iterator[Row]:
    """A PPO step of goodheart, and of TRL 1.12.0."""
    small, device, dtype = told["tiny"], told["device"], dtype_of(told)
    batch, prompt, new = (_SMALL if small else _LARGE)["ppo"]
    name = str(dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="goodheart-gpu-") as folder:
        job = ppo_job.Settings(
            folder, _SIZES[small], name, 1 if device == "cpu" else 8, 2 if small else 3, batch, prompt, new,
            device=device, max_tokens=65_536,
        )  # fmt: skip
        rows = ppo_job.build(
            Path(folder), job.size, batch_size=batch, prompt_tokens=prompt, new_tokens=new, seed=job.seed
        )
        contenders = [Contender("goodheart", "bench.ppo_goodheart", Path(sys.executable))]
        if told["trl_ppo"]:
            contenders.append(
                Contender("TRL 1.12.0", "bench.ppo_trl", Path(sys.executable), {}, [Path(told["trl_ppo"])])
            )
        what = f"ppo, {job.size}, {batch} rows of {prompt} + {new}"
        told_all = asdict(job) | {"fixed_rows": rows}
        yield from _rows(what, contenders, told_all, Path(folder), ppo_job.work(job, dtype), told, dtype)


def _rows(
    what: str, contenders: list[Contender], job: dict[str, Any], folder: Path, work: roofline.Job,
    told: dict[str, Any], dtype: torch.dtype,
) -> Iterator[Row]:  # fmt: skip
    """One row for each peer, one of ours alone without. Who fails is told, and takes nobody with it."""
    known, ours = peaks_of(told), {}
    for contender in contenders:
        try:
            run = race([contender], job, folder, 1)[0][contender.name][0]
        except SystemExit as failure:
            print(failure)
            yield {"what": f"{what}, {contender.name}", "unit": "s", "note": "FAILED, see gpu.log"}
            continue
        if contender.name == "goodheart":
            floor = known and roofline.seconds(work, known, dtype)
            ours = {"goodheart": step_seconds(run), "mib": run["peak_mib"], "run": run}
            ours["roofline"] = floor and floor / ours["goodheart"]
            yield {"what": f"{what}, step", "unit": "s", **_shown(ours)}
        else:
            peer = {"peer": step_seconds(run), "peer_mib": run["peak_mib"], "peer_name": contender.name}
            note = _same(ours["run"], run) if ours else "goodheart failed"
            yield {"what": f"{what}, step beside {contender.name}", "unit": "s", **_shown(ours), **peer, "note": note}


def _shown(ours: Row) -> Row:
    return {name: value for name, value in ours.items() if name != "run"}


def _same(ours: Run, theirs: Run) -> str:
    """Whether both did the same: first losses where the data are given, tokens where they are drawn."""
    pairs = [
        (name, ours[name][0], theirs[name][0])
        for name in ("losses", "new_tokens")
        if ours.get(name) and theirs.get(name)
    ]
    if "new_tokens" in ours:
        pairs = [pair for pair in pairs if pair[0] == "new_tokens"]  # losses of other answers
    fine = all(abs(a - b) <= _CLOSE * max(abs(a), abs(b)) for _, a, b in pairs)
    told = ", ".join(f"first {name} {a:.5g} and {b:.5g}" for name, a, b in pairs)
    return f"{'same' if fine else 'NOT THE SAME'}: {told}"
