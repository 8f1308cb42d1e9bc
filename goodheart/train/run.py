"""The run folder: the only thing that stages share.

config.yaml      settings as resolved: `goodheart <stage> --config config.yaml` repeats the run
lineage.json     parents and data by content, code, packages, machine, seed; every start of the command
metrics.jsonl    one line per logged step
samples.jsonl    what the model said, over time
log.txt          notes, with times
skipped.jsonl    the first rows that were set aside, and why
memory.json      what the run was planned to take in memory, and what it took
profile/         see profile.py
checkpoints/     see checkpoint.py
model/           the result, a Hugging Face folder
results.json     final numbers
DONE             written last; without it the run is unfinished and the same command continues it
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import yaml

from goodheart.errors import RunError
from goodheart.train import lineage
from goodheart.train.checkpoint import Checkpoints
from goodheart.train.files import disk_error, replace_text
from goodheart.train.lock import FolderLock
from goodheart.train.progress import Progress

# A folder that holds nothing but these was made by a command that died before it had a config.yaml.
_FIRST_FILES = {".lock", "lineage.json", ".lineage.json.partial", ".config.yaml.partial"}

Tracker = Callable[[int, Mapping[str, float]], None]


class Run:
    """One run folder, held by this process alone until `close`. Only the main process writes."""

    def __init__(self, path: Path, *, stage: str, quiet: bool, main: bool) -> None:
        """Use `Run.open`, which checks the folder first."""
        self.path, self.stage, self.quiet, self.main = path, stage, quiet, main
        self.checkpoints = Checkpoints(path, note=self.note, before_save=self._sync_logs)
        self.trackers: list[Tracker] = []  # told every logged step, besides metrics.jsonl
        self._lock = FolderLock(path)
        self._logs: dict[str, TextIO] = {}
        self._progress: Progress | None = None

    @classmethod
    def open(
        cls,
        out: Path,
        *,
        stage: str,
        config: dict[str, Any],
        parents: dict[str, str],
        data: list[str],
        seed: int,
        quiet: bool = False,
        main: bool = True,
    ) -> Run:
        """Creates a run folder, or continues an unfinished one that has the same settings and inputs.

        Args:
            out: the folder; `~` is understood.
            stage: name of the stage.
            config: its settings as plain values, resolved.
            parents: role -> run folder or model folder this run builds on.
            data: data files or folders.
            seed: the run's seed.
            quiet: nothing on the console.
            main: False in the other processes of a parallel run, which write nothing.

        Returns:
            The run; `run.finished` is True when the same settings ran to the end before.

        Raises:
            RunError: the folder holds something else, another run, a run of other settings, or is in use.
        """
        run = cls(Path(out).expanduser(), stage=stage, quiet=quiet, main=main)
        if main:
            run._refuse_foreign()
            run._lock.take()
            try:
                run._begin(lineage.plain({"stage": stage, **config}), parents, data, seed)
            except BaseException:
                run.close()
                raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.finished:
            with contextlib.suppress(RunError):  # a full disk must not hide the first error
                self._write_log(f"stopped: {type(error).__name__}: {error}")
        self.close()

    @property
    def finished(self) -> bool:
        """Whether the run went to its end."""
        return (self.path / "DONE").is_file()

    @property
    def model_dir(self) -> Path:
        """Where the resulting model goes."""
        return self.path / "model"

    @property
    def results(self) -> dict[str, Any]:
        """What `finish` was given; empty before."""
        file = self.path / "results.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def log(self, step: int, metrics: Mapping[str, Any], *, timing: Mapping[str, float] | None = None) -> None:
        """Appends one line to metrics.jsonl. Log a step before its checkpoint is saved.

        A value that is not finite is written as null and named under `non_finite`, so that the file stays JSON.

        Args:
            step: steps done, from 1; 0 for what was measured before training.
            metrics: name -> number (also a tensor with one element).
            timing: measurements of the clock, kept apart because they differ between equal runs; metrics named
                `time/...` join them.
        """
        values = {name: float(value) for name, value in metrics.items()}
        clock = {name: value for name, value in values.items() if name.startswith("time/")} | dict(timing or {})
        row: dict[str, Any] = {"step": step} | {
            name: value if math.isfinite(value) else None for name, value in values.items() if name not in clock
        }
        broken = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
        if broken:
            row["non_finite"] = broken
        if clock:
            row["timing"] = {name: float(value) for name, value in clock.items()}
        row["time"] = round(time.time(), 3)
        self._append("metrics.jsonl", row)
        for tracker in self.trackers if self.main else []:
            tracker(step, values)

    def sample(self, step: int, row: Mapping[str, Any]) -> None:
        """Appends one line to samples.jsonl, before the step's checkpoint is saved."""
        self._append("samples.jsonl", {"step": step, **row})

    @contextlib.contextmanager
    def progress(self, total: int, label: str, unit: str = "steps", *, patient: bool = False) -> Iterator[Progress]:
        """A progress display; `.advance(n, **shown_metrics)` on what it yields. patient: see `Progress`."""
        outer = self._progress
        shown = self.main and not self.quiet and outer is None
        with Progress(total, label, unit=unit, shown=shown, patient=patient) as bar:
            self._progress = outer or bar
            try:
                yield bar
            finally:
                self._progress = outer

    def note(self, text: str, *, shown: bool = True) -> None:
        """Writes a line to log.txt and, where it is to be shown, the console."""
        self._write_log(text)
        if not self.main or self.quiet or not shown:
            return
        if self._progress is not None:
            self._progress.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def record(self, name: str, value: str, *, unknown: str | None = None) -> None:
        """Writes into lineage.json what this start works with, where the same work done otherwise is rounded otherwise.

        A run that is continued with something else says so: it no longer equals one that was never stopped to the bit.

        Args:
            unknown: what earlier starts worked with if none of them has a record of it; None = the same.
        """
        if not self.main:
            return
        known = self._read_lineage()
        *earlier, start = known["starts"]
        assumed = unknown if earlier and unknown else value
        was = next((each[name] for each in reversed(earlier) if name in each), assumed)
        if was != value:
            self.note(f"{name}: {value} from here on, {was} before; results are no longer the same to the last bit")
        self._write_lineage(known | {"starts": [*earlier, start | {name: value}]})

    def cut_back(self, step: int) -> None:
        """Drops what was logged after `step` (everything for step 0), so that a continued run's logs have no echo."""
        if not self.main:
            return
        for name in ("metrics.jsonl", "samples.jsonl"):
            self._close_log(name)
            file = self.path / name
            if not file.is_file():
                continue
            lines = file.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if step > 0 and _step_of(line) <= step]
            if len(kept) < len(lines):
                self._replace(name, b"".join(kept).decode())

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes results.json, and DONE after everything else is on disk."""
        if not self.main:
            return
        self._sync_logs()
        self._replace("results.json", _json(lineage.plain(results)))
        self._write_log("done")
        self._replace("DONE", _now() + "\n")

    def close(self) -> None:
        """Releases the folder; safe to call twice."""
        for name in list(self._logs):
            self._close_log(name)
        self._lock.release()

    def _begin(self, config: dict[str, Any], parents: dict[str, str], data: list[str], seed: int) -> None:
        now = lineage.inputs(parents, data)
        start = lineage.environment(seed)
        if not (self.path / "config.yaml").is_file() or self._nothing_done():
            self._write_lineage({"stage": self.stage, **now, "starts": [start]})
            text = yaml.safe_dump(
                {k: v for k, v in config.items() if k != "stage"}, sort_keys=False, allow_unicode=True
            )
            self._replace("config.yaml", f"# goodheart {self.stage}\n{text}")
            return
        before = self._read_lineage()
        self._check_same(config, before, now)
        if self.finished:
            return
        if before["starts"] and before["starts"][-1].get("code_sha256") != start["code_sha256"]:
            self._write_log("the code has changed since this run was started")
        self._write_lineage(before | {"starts": [*before["starts"], start]})

    def _nothing_done(self) -> bool:
        """A start that failed before its first step, on wrong data say, leaves nothing that another could lose."""
        logged = self.path / "metrics.jsonl"
        begun = logged.is_file() and logged.stat().st_size > 0
        return not (begun or self.finished or (self.path / "checkpoints").is_dir() or self.model_dir.is_dir())

    def _refuse_foreign(self) -> None:
        """Raises before anything is written into a folder that is somebody else's."""
        if not self.path.is_dir() or (self.path / "config.yaml").is_file():
            return
        foreign = sorted({p.name for p in self.path.iterdir()} - _FIRST_FILES)
        if foreign:
            listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise RunError(f"{self.path} is not a run folder and not empty ({listed}); choose another --out")

    def _check_same(self, config: dict[str, Any], before: dict[str, Any], now: dict[str, Any]) -> None:
        remedy = f"Choose another --out, or remove {self.path} to start again."
        saved = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8")) or {}
        differing = lineage.differences({"stage": before.get("stage"), **saved}, config)
        if differing:
            raise RunError(f"{self.path} holds a run with other settings: {'; '.join(differing)}. {remedy}")
        changed = lineage.changed(before, now)
        if changed:
            raise RunError(f"{self.path}: changed since this run was started: {', '.join(changed)}. {remedy}")

    def _read_lineage(self) -> dict[str, Any]:
        file = self.path / "lineage.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return found | {"starts": list(found["starts"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{file} cannot be read ({error}), so this run cannot be continued; choose another --out"
            ) from error

    def _write_lineage(self, value: dict[str, Any]) -> None:
        self._replace("lineage.json", _json(value))

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if not self.main:
            return
        self._write_line(name, json.dumps(row, ensure_ascii=False, default=lineage.plain_value))

    def _write_log(self, text: str) -> None:
        if self.main:
            self._write_line("log.txt", f"{_now()} {text}")

    def _write_line(self, name: str, line: str) -> None:
        try:
            if name not in self._logs:
                self._logs[name] = (self.path / name).open("a", encoding="utf-8")
            self._logs[name].write(line + "\n")
            self._logs[name].flush()
        except OSError as error:
            raise disk_error(error, self.path, name, len(line)) from error

    def _replace(self, name: str, text: str) -> None:
        try:
            replace_text(self.path / name, text)
        except OSError as error:
            raise disk_error(error, self.path, name, len(text)) from error

    def _close_log(self, name: str) -> None:
        if name in self._logs:
            # What could not be flushed was reported when it was written.
            with contextlib.suppress(OSError):
                self._logs.pop(name).close()

    def _sync_logs(self) -> None:
        for file in self._logs.values():
            file.flush()
            os.fsync(file.fileno())


def _step_of(line: bytes) -> float:
    """The step of a log line; a line torn by a kill belongs to no step."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
