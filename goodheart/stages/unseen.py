"""Records to train on, and others, never trained on, to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from goodheart.data.examples import Skipped, shared_prompts
from goodheart.data.formats import Kind, Loaded, read_records, split_by_prompt
from goodheart.stages.settings.measured import MeasuredSettings
from goodheart.train.config import listed
from goodheart.train.session import Session


@dataclass(frozen=True)
class Parts:
    """Records of a run."""

    kept: list[Any]  # to train on
    aside: list[Any]  # to measure on; no conversation is in both, unless `eval_data` has it so
    skipped: Skipped


def read_parts(session: Session, config: MeasuredSettings, kind: Kind, loaded: Loaded | None = None) -> Parts:
    """Reads `data` and sets `eval_data`, or the share `held_out` of the conversations, aside.

    Says where `eval_data` holds prompts that are trained on. loaded: `data`, where it has been read already.
    """
    loaded = read_records(listed(config.data), kind) if loaded is None else loaded
    if not config.eval_data:
        kept, aside = split_by_prompt(loaded.records, config.held_out, config.seed)
        return Parts(kept, aside, Skipped.of(loaded))
    unseen = read_records(listed(config.eval_data), kind)
    session.warn_shared(shared_prompts(loaded.records, unseen.records))
    return Parts(loaded.records, unseen.records, Skipped.of(loaded, unseen))
