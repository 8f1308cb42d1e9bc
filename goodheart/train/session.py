"""One training run from the first line of its log to DONE: what every stage's loop stands on.

with open_session("sft", config, parents={"model": config.model}, data=[config.data]) as session:
    if session.finished:
        return session.run
    ... build the model, the batches, the optimiser; session.state.add(...) what must survive a crash ...
    for step in session.steps(total):
        session.log(step, train_step(...))
    with session.model_folder() as folder:
        save_causal(model, folder)
    session.finish({"loss": ...})
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from goodheart.data.examples import Skipped
from goodheart.errors import Interrupted
from goodheart.models import native
from goodheart.train import held, memory
from goodheart.train.checkpoint import TrainState
from goodheart.train.config import TrainingSettings
from goodheart.train.files import replace_text
from goodheart.train.fitting import is_out_of_memory
from goodheart.train.interrupt import Stop, stop_signal
from goodheart.train.metrics import read_metrics, tensorboard_tracker
from goodheart.train.parallel import World
from goodheart.train.profile import StepProfiler
from goodheart.train.run import Run

# Slow steps are saved more often than every so many: this much work may be lost at most, and at the end of the loop,
# where the results are still to be measured and written, a fifth of it.
_SECONDS_BETWEEN_SAVES = 300.0

T = TypeVar("T")


class Position:
    """Where the loop stands; kept in every checkpoint."""

    def __init__(self) -> None:
        self.step = 0  # steps done
        self.ended: str | None = None  # why the loop stopped before its last step
        self.halvings = 0  # of the micro-batches, for want of memory

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "ended": self.ended, "halvings": self.halvings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.ended, self.halvings = int(state["step"]), state["ended"], int(state.get("halvings", 0))


class Session:
    """A run folder, the processes working on it, and the state that a checkpoint holds."""

    def __init__(self, run: Run, world: World, config: TrainingSettings, stop: Stop) -> None:
        self.run, self.world, self.config, self.stop = run, world, config, stop
        self.state = TrainState()
        self.position = Position()
        self.state.add("position", self.position)
        self.started = self._saved = time.monotonic()
        self.profiler: StepProfiler | None = None
        self._halvings = 0
        self._planned: memory.MemoryPlan | None = None
        if config.activation_checkpointing and self.device.type == "cpu":
            held.map_large()  # who takes more time to save memory wants all of it
        held.begin_peak(self.device)

    def report_skipped(self, skipped: Skipped) -> None:
        """Says how many rows were set aside and why; the first of each reason go to skipped.jsonl."""
        if not skipped.total or not self.world.is_main:
            return
        self.run.note(f"set aside {skipped.total} rows: {skipped.summary()} (listed in skipped.jsonl)")
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in skipped.shown)
        replace_text(self.run.path / "skipped.jsonl", rows)

    def watched(self, records: Sequence[T], label: str) -> Iterator[T]:
        """The records one by one; where that takes long, it is shown how far it is."""
        with self.run.progress(len(records), label, "rows", patient=True) as bar:
            for record in records:
                yield record
                bar.advance()

    def warn_shared(self, prompts: int) -> None:
        """Says that some of the data to measure on are trained on."""
        if prompts:
            self.run.note(f"{prompts} prompts of eval_data are in the training data too: what is measured flatters")

    @property
    def finished(self) -> bool:
        return self.run.finished

    @property
    def device(self) -> torch.device:
        return self.world.device

    def steps(self, total: int, label: str, *, checkpoint_every: int, most: memory.Most | None = None) -> Iterator[int]:
        """Yields the steps that are left, counted from 0, and saves a checkpoint at intervals.

        The first call restores the newest complete checkpoint. Ctrl-C ends the current step, saves, and raises.

        Args:
            total: steps of the whole run.
            label: shown beside the progress bar.
            checkpoint_every: steps between checkpoints.
            most: what a step asks of this process at most; None = no plan of memory is made.

        Raises:
            Interrupted: the user asked to stop; everything done so far is saved.
        """
        self._restore()
        if most is not None and not self.world.sharded:  # whose processes would have to measure together
            self._plan_memory(most)
        with self.run.progress(total, label) as self.bar:
            self.bar.skip(self.position.step)
            while self.position.step < total and self.position.ended is None:
                if self.profiler is not None:
                    self.profiler.before(total - self.position.step)
                yield self.position.step
                self.position.step += 1
                self.bar.advance(1)
                if self.profiler is not None:
                    self.profiler.after(0 if self.position.ended else total - self.position.step)
                asked = self.world.max(float(self.stop.requested)) > 0
                overdue = self.world.max(time.monotonic() - self._saved) > _SECONDS_BETWEEN_SAVES
                if asked or overdue or self.position.step % checkpoint_every == 0:
                    self.save()
                if asked:
                    raise Interrupted(
                        f"stopped after step {self.position.step} of {total}; the same command continues from there"
                    )
        if self.profiler is not None and self.profiler.report is not None:
            self.run.note(f"profile of {self.run.path} (trace.json.gz beside it):\n{self.profiler.report}")
        self._save_the_end()

    def _plan_memory(self, most: memory.Most) -> None:
        """Says what the steps will take, and begins with smaller micro-batches where that is too much.

        A continued run begins with those it had: what happens to be free now must not change its numbers.
        """
        try:
            self._planned = memory.plan(self.state, self.device, most, self.config.max_tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise  # otherwise the first step will find what fits
        if self._planned is not None:
            self.run.note(str(self._planned), shown=self._planned.total > self._planned.available / 2)
        if self.position.step == 0:  # asked of all processes, also of one that could not plan
            halvings = 0 if self._planned is None else self._planned.halvings
            self.world.halvings = int(self.world.max(float(halvings)))
        if self.world.halvings:
            self.run.note(f"micro-batches are 1/{2**self.world.halvings} as large, to fit the memory")
        self._halvings = self.world.halvings

    def _save_the_end(self) -> None:
        if self.world.max(time.monotonic() - self._saved) > _SECONDS_BETWEEN_SAVES / 5:
            self.save()

    def end(self, reason: str) -> None:
        """Makes `steps` stop after the current one."""
        self.position.ended = reason
        self.run.note(f"ended after step {self.position.step + 1}: {reason}")

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        shown: tuple[str, ...] = (),
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """Writes the metrics of a step (counted from 0 here, from 1 in the log) and shows some beside the bar."""
        self.run.log(step + 1, metrics, timing=timing)
        if self.world.halvings > self._halvings:
            self._halvings = self.world.halvings
            text = f"step {step + 1}: out of memory; micro-batches are 1/{2**self._halvings} as large from here on"
            if self._planned is not None:
                text += f" (max_tokens: {max(1, self._planned.tokens >> self._halvings)} would begin so)"
            self.run.note(text)
        if self.profiler is not None and timing is not None:
            self.profiler.timed(timing)
        self.bar.advance(0, **{name.rsplit("/", 1)[-1]: metrics[name] for name in shown if name in metrics})

    def last_metrics(self, prefix: str) -> dict[str, float]:
        """The newest logged values of the metrics whose names start with `prefix`."""
        rows = read_metrics(self.run.path) if self.world.is_main else []
        return {name: value for name, value in rows[-1].items() if name.startswith(prefix)} if rows else {}

    def save(self) -> None:
        self.position.halvings = self.world.halvings
        self.run.checkpoints.save(self.position.step, self.state)
        self._saved = time.monotonic()

    @contextmanager
    def model_folder(self, name: str = "model") -> Iterator[Path]:
        """A folder to write a model into; becomes the run's `model/`, the result, whole or not at all.

        name: another folder of the run, for models kept on the way.
        """
        target = self.run.path / name
        temporary = target.with_name(f"{target.name}.partial")
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.world.barrier()
        yield temporary
        self.world.barrier()
        if self.world.is_main:
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)

    def finish(self, results: Mapping[str, Any]) -> Run:
        """Writes the results and marks the run as done."""
        ended = {"ended_early": self.position.ended} if self.position.ended else {}
        if self._planned is not None and self.world.is_main:
            memory.write(self.run.path, self._planned, self.device)
        seconds = round(time.monotonic() - self.started, 2)
        self.run.finish({**results, **ended, "steps": self.position.step, "seconds": seconds})
        self.world.barrier()
        return self.run

    def _restore(self) -> None:
        newest = self.run.checkpoints.latest()
        step = 0
        if newest is not None:
            step, folder = newest
            self.state.load(folder)
            self.world.halvings = self._halvings = self.position.halvings
            self.run.note(f"continuing from checkpoint step {step}")
        self.run.cut_back(step)


@contextmanager
def open_session(
    stage: str, config: TrainingSettings, *, parents: Mapping[str, str], data: list[str]
) -> Iterator[Session]:
    """Opens or continues the run folder `config.out`, joins the other processes, and listens for Ctrl-C.

    Args:
        stage: name of the stage.
        config: its resolved settings.
        parents: role -> run folder or model folder this run builds on.
        data: data files.
    """
    world = World.start(config.device)
    torch.manual_seed(config.seed)
    run = Run.open(
        config.out,
        stage=stage,
        config=config.model_dump(mode="json"),
        parents=dict(parents),
        data=data,
        seed=config.seed,
        quiet=config.quiet,
        main=world.is_main,
    )
    run.checkpoints.keep = config.keep_checkpoints
    if config.tensorboard and world.is_main:
        run.trackers.append(tensorboard_tracker(run.path / "tensorboard"))
    with run, stop_signal() as stop:
        session = Session(run, world, config, stop)
        if world.device.type == "cpu" and not run.finished:
            run.record("training", native.way(), unknown="PyTorch")  # before there were parts in C
        if config.profile and world.is_main:
            session.profiler = StepProfiler(run.path / "profile", session.state, world.device)
        try:
            yield session
        finally:
            if session.profiler is not None:
                session.profiler.close()
