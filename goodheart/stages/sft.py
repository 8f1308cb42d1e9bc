"""Supervised fine-tuning on demonstrations: loss on what the assistant says and on nothing else."""

from __future__ import annotations

from goodheart.data.examples import demonstrations, require
from goodheart.stages.settings.sft import SFTConfig
from goodheart.stages.unseen import read_parts
from goodheart.train.config import listed
from goodheart.train.language_model import Rows, fit
from goodheart.train.policy import load_policy, row_length, save_policy
from goodheart.train.run import Run
from goodheart.train.session import open_session

__all__ = ["SFTConfig", "train"]


def train(config: SFTConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    sources = listed(config.data)
    with open_session("sft", config, parents={"model": config.model}, data=config.files()) as session:
        if session.finished:
            return session.run

        # 1. model and demonstrations
        model, template = load_policy(config, session)
        max_length = row_length(config, model.max_length)
        parts = read_parts(session, config, "demonstration")
        skipped = parts.skipped
        prepared = demonstrations(session.watched(parts.kept, "making tokens"), template, max_length, skipped)
        unseen = demonstrations(parts.aside, template, max_length, skipped)
        session.report_skipped(skipped)
        require(prepared.items, skipped, "demonstration", sources)

        # 2. train
        rows = Rows.of(prepared, packed=config.pack, max_length=max_length, pad_id=template.pad_id)
        held_out = Rows.of(unseen, packed=False, max_length=max_length, pad_id=template.pad_id)
        losses = fit(session, model, rows, held_out, config, "fine-tuning", config.eval_every)

        # 3. save
        with session.model_folder() as folder:
            save_policy(model, template, folder, session)
        results = {
            "demonstrations": len(prepared.items),
            "held_out": len(unseen.items),
            "trained_tokens_per_epoch": rows.trained_tokens(range(len(rows.groups))),
            "truncated": prepared.cut,
            "skipped": skipped.total,
        }
        return session.finish(results | losses)
