"""Checkpoints: everything a killed run needs to go on exactly as if it had never been killed.

    checkpoints/step-40/
        tensors.safetensors   trained weights, buffers, optimizer moments, master weights, generator states
        state.json            counters and controllers, random number states of Python and NumPy
        checksums.json        sha256 of the two
        COMPLETE              step and score; written last

A checkpoint is built under another name, flushed to disk and then renamed, so `step-N` is whole or absent.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from goodheart.errors import RunError
from goodheart.train.files import disk_error, sha256_of, sync_folder, write_json
from goodheart.train.optimizer import AdamW
from goodheart.train.parallel import World, copy_full_, full
from goodheart.train.randomness import random_state, restore_random
from goodheart.train.tensors import LazyTensor, write_tensors

_TENSORS, _STATE, _CHECKSUMS, _COMPLETE = "tensors.safetensors", "state.json", "checksums.json", "COMPLETE"


@runtime_checkable
class Stateful(Protocol):
    """Anything small with a state of plain JSON values, such as a KL controller."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


Thing = nn.Module | AdamW | torch.Generator | Stateful


_OTHER_RUN = "It was written by another run or version: choose another --out, or remove the run folder to start again."


class TrainState:
    """The named things that a checkpoint holds.

    Of a module: trained parameters and persistent buffers, so that LoRA costs its adapters only. The global random
    states of torch, Python and NumPy are always included, each process's own.
    """

    def __init__(self, **things: Thing) -> None:
        self._things: dict[str, Thing] = {}
        for name, thing in things.items():
            self.add(name, thing)

    def add(self, name: str, thing: Thing) -> None:
        """Registers a module, an optimizer, a torch.Generator, or an object with a JSON-able state_dict().

        Raises:
            ValueError: the name is taken, or the thing has no state.
        """
        if name in self._things:
            raise ValueError(f"{name!r} is registered already")
        if not isinstance(thing, nn.Module | AdamW | torch.Generator | Stateful):
            raise ValueError(f"{name!r}: {type(thing).__name__} has no state_dict() and load_state_dict()")
        self._things[name] = thing

    def things(self) -> dict[str, Thing]:
        """What is registered, by name."""
        return dict(self._things)

    def save(self, folder: Path) -> dict[str, str]:
        """Writes the state into an existing folder; all processes call it, the main one writes.

        Returns:
            File name -> sha256, on the main process; empty on the others.

        Raises:
            RunError: the disk is full or broken; on every process.
        """
        world = World.current()
        ranks = world.gather_objects(random_state(self._generators()))
        taken: set[str] = set()
        tensors = {name: _gathered(name, tensor, taken) for name, tensor in self._tensors().items()}
        for rank, (own, _) in enumerate(ranks):
            tensors |= {f"random/{rank}/{name}": LazyTensor.of(tensor) for name, tensor in own.items()}
        state = {
            "objects": {name: thing.state_dict() for name, thing in self._objects().items()},
            "random": [plain for _, plain in ranks],
        }
        hashes, problem = {}, None
        if world.is_main:
            try:
                hashes[_TENSORS] = write_tensors(folder / _TENSORS, tensors)
                hashes[_STATE] = write_json(folder / _STATE, state)
            except OSError as error:
                problem = str(
                    disk_error(error, folder.parent, "the checkpoint", sum(t.num_bytes for t in tensors.values()))
                )
        # Whole tensors are gathered by all processes together: also by those that do not write, also after a failure.
        for name in [n for n in tensors if n not in taken] if world.size > 1 else []:
            tensors[name].get()
        problem = world.broadcast_object(problem)
        if problem is not None:
            raise RunError(problem)
        return hashes

    def load(self, folder: Path) -> None:
        """Puts a saved state back, in place.

        Raises:
            RunError: the checkpoint holds other things, or tensors of other shapes, than this run has.
        """
        from safetensors import safe_open

        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        targets, objects = self._tensors(), self._objects()
        with safe_open(folder / _TENSORS, framework="pt") as file:
            saved = set(file.keys())
            self._check(folder, {n for n in saved if not n.startswith("random/")}, set(targets), "tensors")
            self._check(folder, set(state["objects"]), set(objects), "objects")
            for name, target in targets.items():
                whole = file.get_tensor(name)
                if whole.shape != target.shape:
                    shapes = f"{tuple(whole.shape)} there, {tuple(target.shape)} in this run"
                    raise RunError(f"{folder}: {name} has another shape: {shapes}. {_OTHER_RUN}")
                copy_full_(target, whole)
            rank = World.current().rank
            # With more processes than before, the new ones start from the main process's random state.
            rank = rank if rank < len(state["random"]) else 0
            own = {n.split("/", 2)[2]: file.get_tensor(n) for n in saved if n.startswith(f"random/{rank}/")}
        for name, thing in objects.items():
            thing.load_state_dict(state["objects"][name])
        restore_random(self._generators(), own, state["random"][rank])

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor to save by name; one that two modules share is taken once."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, thing in self._things.items():
            own: dict[str, Tensor] = {}
            if isinstance(thing, nn.Module):
                own = _module_tensors(thing)
            elif isinstance(thing, AdamW):
                own = thing.state_tensors()
            for key, tensor in own.items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[f"{name}/{key}"] = tensor
        return found

    def _generators(self) -> dict[str, torch.Generator]:
        return {name: thing for name, thing in self._things.items() if isinstance(thing, torch.Generator)}

    def _objects(self) -> dict[str, Stateful]:
        return {
            name: thing
            for name, thing in self._things.items()
            if not isinstance(thing, nn.Module | AdamW | torch.Generator)
        }

    def _check(self, folder: Path, there: set[str], here: set[str], what: str) -> None:
        if there == here:
            return
        missing, extra = sorted(here - there)[:3], sorted(there - here)[:3]
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(extra)}"] * bool(extra)
        raise RunError(f"{folder}: does not fit this run: it {' and '.join(parts)} ({what}). {_OTHER_RUN}")


class Checkpoints:
    """The checkpoints of one run: saved whole, checked when read, old ones pruned."""

    def __init__(
        self,
        run_path: Path,
        keep: int = 2,
        *,
        note: Callable[[str], None] = print,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            run_path: the run folder.
            keep: newest checkpoints that stay.
            note: told about damaged checkpoints.
            before_save: called first, so that logs are on disk before the checkpoint that counts on them.
        """
        self.folder, self.keep = run_path / "checkpoints", keep
        self._note, self._before_save = note, before_save

    def save(self, step: int, state: TrainState) -> Path:
        """Writes `checkpoints/step-<step>`, then prunes. All processes call it together.

        Args:
            step: steps done.
            state: what to save.

        Raises:
            RunError: the disk is full; the older checkpoints are whole and nothing half-written is left.
        """
        final, temporary = self.folder / f"step-{step}", self.folder / f".partial-step-{step}"
        main = World.current().is_main
        if main:
            self._before_save()
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir(parents=True)
            except OSError as error:
                raise disk_error(error, self.folder.parent, "the checkpoint", 0) from error
        try:
            hashes = state.save(temporary)
            if main:
                self._complete(temporary, final, hashes, {"step": step})
        except BaseException:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final

    def latest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest complete and undamaged checkpoint; damaged ones are noted and skipped."""
        found = None
        if World.current().is_main:
            for step, folder in reversed(self._steps()):
                damage = _damage(folder)
                if damage is None:
                    found = step
                    break
                self._note(f"checkpoint {folder.name} is damaged ({damage}); trying the one before it")
        found = World.current().broadcast_object(found)
        return None if found is None else (found, self.folder / f"step-{found}")

    def _complete(self, temporary: Path, final: Path, hashes: dict[str, str], about: dict[str, Any]) -> None:
        try:
            write_json(temporary / _CHECKSUMS, hashes)
            write_json(temporary / _COMPLETE, about)
            sync_folder(temporary)
            aside = self.folder / f".replaced-{final.name}"
            shutil.rmtree(aside, ignore_errors=True)
            if final.exists():
                final.rename(aside)
            temporary.rename(final)
            sync_folder(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise disk_error(error, self.folder, "the checkpoint", 0) from error
        self._prune(about["step"])

    def _prune(self, newest: int) -> None:
        """Drops what is old, what lies after the step training now stands at, and what a killed process left behind."""
        steps = self._steps()
        kept = {step for step, _ in [s for s in steps if s[0] <= newest][-self.keep :]}
        for step, folder in steps:
            if step not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for leftover in self.folder.glob(".*-step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _steps(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        named = [(re.fullmatch(r"step-(\d+)", p.name), p) for p in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in named if match)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (folder / _COMPLETE).is_file():
        return "its COMPLETE marker is missing"
    try:
        json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))["step"]
        hashes = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        wrong = [name for name in (_TENSORS, _STATE) if sha256_of(folder / name) != hashes[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read: {error}"
    return f"{' and '.join(wrong)} changed since it was written" if wrong else None


def _gathered(name: str, tensor: Tensor, taken: set[str]) -> LazyTensor:
    def get() -> Tensor:
        taken.add(name)
        return full(tensor.detach())

    return LazyTensor(tensor.dtype, tuple(tensor.shape), get)


def _module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and persistent buffers."""
    return {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
    }
