"""What stages that learn from answers already there (reward, dpo, kto) do alike: how they begin, and how they end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from goodheart.data.examples import Compared, Prepared, Skipped, comparisons
from goodheart.data.formats import Kind
from goodheart.data.template import Template
from goodheart.models.causal import CausalLM
from goodheart.stages import labels
from goodheart.stages.references import fitting_length
from goodheart.stages.settings.references import ReferenceSettings
from goodheart.stages.unseen import read_parts
from goodheart.train.config import TrainingSettings
from goodheart.train.memory import Most
from goodheart.train.optimizer import AdamW, optimizer_for
from goodheart.train.policy import load_policy, save_policy
from goodheart.train.run import Run
from goodheart.train.session import Session


@dataclass(frozen=True)
class Work:
    """The policy, and the answers that it learns from and is measured on."""

    session: Session
    model: CausalLM
    template: Template
    optimizer: AdamW
    max_length: int  # tokens a row may have
    prepared: Prepared[Compared]  # to train on
    measured: Prepared[Compared]  # to measure on
    skipped: Skipped

    def finish(self, results: Mapping[str, Any]) -> Run:
        """Writes the model and the results, with how many rows there were before them."""
        with self.session.model_folder() as folder:
            save_policy(self.model, self.template, folder, self.session)
        counts = {
            "trained_on": len(self.prepared.items),
            "held_out": len(self.measured.items),
            "truncated": self.prepared.cut,
            "skipped": self.skipped.total,
        }
        return self.session.finish({**counts, **results})


def begin(session: Session, config: ReferenceSettings, kind: Kind) -> Work:
    """Loads the policy and its optimizer, and makes tokens of all records, each as `kind`."""
    model, template = load_policy(config, session)
    # Before any pass: after one, fsdp's outer weights are whole.
    optimizer = optimizer_for(model.named_parameters(), config)
    session.state.add("model", model)
    session.state.add("optimizer", optimizer)
    max_length = fitting_length(config, model, template)
    parts = read_parts(session, config, kind)
    prepared = comparisons(session.watched(parts.kept, "making tokens"), template, max_length, parts.skipped)
    measured = comparisons(parts.aside, template, max_length, parts.skipped)
    return Work(session, model, template, optimizer, max_length, prepared, measured, parts.skipped)


def most_of(
    session: Session, items: Sequence[Compared], steps: Sequence[Sequence[int]], config: TrainingSettings
) -> Most:
    """What a step asks of this process at most. steps: the items of some steps, which stand for all."""
    shares = [session.world.shard(step) for step in steps]
    cut = [
        [share[i] for i in piece]
        for share in shares
        for piece in labels.pieces([items[i] for i in share], config.max_tokens)
    ]
    rows = math.ceil(config.batch_size / session.world.size)
    return labels.most_of(items, rows).over([a for i in piece for a in items[i].answers] for piece in cut)
