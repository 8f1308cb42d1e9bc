"""Domain pre-training: causal language modelling on plain text, packed.

`model` continues an existing model; `new_model` starts one from scratch on the tokenizer of `model`
(a folder written by `goodheart tokenizer`).
"""

from __future__ import annotations

from goodheart.data.examples import Skipped, documents, require
from goodheart.data.formats import read_records, split_by_prompt
from goodheart.data.template import Template
from goodheart.models.load import new_model
from goodheart.stages.settings.pretrain import PretrainConfig
from goodheart.train.config import listed
from goodheart.train.language_model import Rows, fit
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.policy import load_policy, ready, row_length, save_policy
from goodheart.train.run import Run
from goodheart.train.session import open_session

__all__ = ["PretrainConfig", "train"]


def train(config: PretrainConfig) -> Run:
    """Runs the stage; returns its finished run folder."""
    sources = listed(config.data)
    with open_session("pretrain", config, parents={"model": config.model}, data=sources) as session:
        if session.finished:
            return session.run

        # 1. model and text
        if config.new_model is None:
            model, template = load_policy(config, session)
        else:
            template = Template.load(config.model, plain_prompts=config.plain_prompts)
            fresh = new_model(
                config.new_model, vocab_size=template.vocab_size, seed=config.seed, token_ids=_special_ids(template)
            )
            model = ready(fresh.to(session.device, resolve_dtype(config.dtype, session.device)), config, session)
        max_length = row_length(config, model.max_length)
        loaded = read_records(sources, "text")
        kept, aside = split_by_prompt(loaded.records, config.held_out, config.seed)
        skipped = Skipped.of(loaded)
        prepared = documents(session.watched(kept, "making tokens"), template, max_length, skipped)
        unseen = documents(aside, template, max_length, skipped)
        session.report_skipped(skipped)
        require(prepared.items, skipped, "text", sources)

        # 2. train
        rows = Rows.of(prepared, packed=config.pack, max_length=max_length, pad_id=template.pad_id)
        held_out = Rows.of(unseen, packed=False, max_length=max_length, pad_id=template.pad_id)
        losses = fit(session, model, rows, held_out, config, "pre-training", config.eval_every)

        # 3. save
        with session.model_folder() as folder:
            save_policy(model, template, folder, session)
        results = {
            "documents": len(kept),
            "held_out": len(aside),
            "rows": len(rows.groups),
            "trained_tokens_per_epoch": rows.trained_tokens(range(len(rows.groups))),
            "skipped": skipped.total,
        }
        return session.finish(results | losses)


def _special_ids(template: Template) -> dict[str, int]:
    """For config.json, where other programs look for them."""
    ids = {
        "bos_token_id": template.tokenizer.bos_token_id,
        "eos_token_id": template.eos_id,
        "pad_token_id": template.pad_id,
    }
    return {name: i for name, i in ids.items() if i is not None}
