"""pipeline.json: what was begun and what is done, so that a pipeline knows what stands when it is started again.

begun    stage -> identity (settings, inputs and code by content) of its last start
done     stage -> identity of the finished output, `output` (its hash), `made` (when, where, how long), and its results
         where it writes a single file
gates    expression -> what it came to when it was last checked
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from goodheart.errors import RunError
from goodheart.loop.gates import Gate, Verdict
from goodheart.loop.step import Identity
from goodheart.train.files import replace_text

NAME = "pipeline.json"


class Record:
    """The record of one pipeline, read anew at each question and written whole or not at all."""

    def __init__(self, out: Path) -> None:
        self.file = out / NAME

    def read(self) -> dict[str, dict[str, Any]]:
        """Everything in it.

        Raises:
            RunError: the file is damaged.
        """
        empty: dict[str, dict[str, Any]] = {"begun": {}, "done": {}, "gates": {}}
        if not self.file.exists():
            return empty
        try:
            return empty | _sound(json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"{self.file} cannot be read ({error}); move {self.file.parent} away to run everything again"
            ) from error

    def begun(self, name: str) -> Identity | None:
        return self.read()["begun"].get(name)

    def done(self, name: str) -> dict[str, Any] | None:
        return self.read()["done"].get(name)

    def known(self) -> list[Identity]:
        """All that was ever begun or done."""
        record = self.read()
        return [*record["begun"].values(), *record["done"].values()]

    def begin(self, name: str, identity: Identity, gates: Sequence[Gate] = ()) -> None:
        """Notes that a stage starts; its older output and what `gates` that name it came to stand no more."""
        record = self.read()
        record["begun"][name] = identity
        record["done"].pop(name, None)
        for gate in gates:
            if name in gate.stages:
                record["gates"].pop(gate.text, None)
        self._write(record)

    def finish(
        self, name: str, identity: Identity, output: str, made: Mapping[str, Any], results: Mapping[str, Any]
    ) -> None:
        """Notes that a stage's output is whole; `output` is the hash of it."""
        record = self.read()
        noted = {**identity, "output": output, "made": dict(made)}
        record["done"][name] = noted | ({"results": dict(results)} if results else {})
        self._write(record)

    def gate(self, gate: Gate, verdict: Verdict) -> None:
        """Notes what a gate came to."""
        record = self.read()
        record["gates"][gate.text] = asdict(verdict)
        self._write(record)

    def keep_gates(self, gates: Sequence[Gate]) -> None:
        """Forgets gates that the pipeline has no more."""
        record = self.read()
        known = {gate.text for gate in gates}
        kept = {text: verdict for text, verdict in record["gates"].items() if text in known}
        if kept != record["gates"]:
            self._write(record | {"gates": kept})

    def _write(self, record: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _sound(record: Any) -> dict[str, dict[str, Any]]:
    """The record, if it has the shape of one.

    Raises:
        ValueError: it has not.
    """
    blocks = record.values() if isinstance(record, dict) else [None]
    if not all(isinstance(block, dict) and all(isinstance(each, dict) for each in block.values()) for block in blocks):
        raise ValueError("it is no record of a pipeline")
    for part in ("begun", "done"):
        for name, noted in record.get(part, {}).items():
            if not all(isinstance(noted.get(key), dict) for key in ("settings", "inputs")):
                raise ValueError(f"`{part}.{name}` is incomplete")
    return record
