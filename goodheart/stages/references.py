"""Log-probabilities of whole answers: of those being trained, and of all of them under the reference, once.

The reference's are computed before the first step, or taken from an earlier run (reference_cache.py), and kept in the
run folder, so that training holds no second model. The reference is the policy's own start: at that moment it is the
policy itself, whether all its weights are trained, or a fresh adapter (which adds nothing yet), or an adapter that goes
on. Only `reference:` loads another model, and lets it go again. Letters: B rows, T time, N answers.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from goodheart.data.batches import Batch, Example, micro_batches, pad
from goodheart.data.template import Template
from goodheart.errors import ConfigError
from goodheart.models import native
from goodheart.models.architecture import NotNative, TransformerConfig
from goodheart.models.causal import CausalLM, completion_logprobs
from goodheart.models.load import load_causal, resolve
from goodheart.models.lora import read_adapter_base
from goodheart.models.weights import read_config
from goodheart.stages.labels import LabelBatch
from goodheart.stages.reference_cache import Kept, leave, read, recall, write
from goodheart.stages.settings.references import ReferenceSettings
from goodheart.train.lineage import code_hash, content, hardware, packages
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.policy import row_length
from goodheart.train.session import Session


def answer_logps(model: CausalLM, batch: Batch | LabelBatch) -> tuple[Tensor, Tensor]:
    """Log-probability of the marked tokens of each row in nats, and how many they are. -> logps_B, tokens_B"""
    out = completion_logprobs(model, batch.ids_BT, batch.mask_BT, lengths_B=batch.lengths_B, kept_N=batch.kept_N)
    return out.logps_BT.sum(1), batch.mask_BT.sum(1)


@torch.no_grad()
def logps_of(
    session: Session, model: CausalLM, examples: Sequence[Example], pad_id: int, max_tokens: int, label: str
) -> Tensor:
    """Log-probability of each answer, on every process; the work is shared. -> logps_N, float32, on the CPU"""
    mine = session.world.shard(range(len(examples)))
    pieces = micro_batches([len(examples[i]) for i in mine], max_tokens)
    found_N = torch.zeros(len(examples), device=session.device)
    with session.run.progress(len(mine), label, "answers", patient=True) as bar:
        for piece, counts in session.world.same_passes([[mine[i] for i in piece] for piece in pieces]):
            logps_B, _ = answer_logps(model, pad([examples[i] for i in piece], pad_id).to(session.device))
            if counts:
                found_N[torch.tensor(piece, device=session.device)] = logps_B
                bar.advance(len(piece))
    return session.world.sum(found_N).cpu()


def fitting_length(config: ReferenceSettings, policy: CausalLM, template: Template) -> int:
    """Tokens a row may have: what policy and reference can both take, and the setting allows.

    Raises ConfigError for a reference with another tokenizer, chat template or vocabulary, and for `max_length` over a
    context.
    """
    length = row_length(config, policy.max_length)
    if _is_policy(config):
        return length
    folder = resolve(str(config.reference))
    if Template.load(folder, plain_prompts=template.plain_prompts).fingerprint != template.fingerprint:
        raise ConfigError(
            f"reference {config.reference} has another tokenizer or chat template than {config.model}: its "
            "log-probabilities are of the policy's tokens, so both must read the same ones"
        )
    vocab_size, limit = _sizes(folder)
    if vocab_size != policy.vocab_size:
        raise ConfigError(
            f"reference {config.reference} has a vocabulary of {vocab_size}, the policy of {policy.vocab_size}: "
            "both must read the same tokens"
        )
    if limit is None or length <= limit:
        return length
    if config.max_length is None:
        return limit
    raise ConfigError(
        f"max_length {config.max_length} is more than the context of reference {config.reference}: "
        f"set max_length to {limit} or less"
    )


def reference_logps(
    session: Session, policy: CausalLM, examples: Sequence[Example], template: Template, config: ReferenceSettings
) -> Kept:
    """Log-probability of each answer under the reference: from the run folder where an earlier start left it there,
    from the cache where another run did, else computed.

    They are kept only if the model is still the one that the run was started with: one that was written over meanwhile
    would leave numbers of the old weights under the name of the new ones.

    policy: as loaded, before any checkpoint is restored and any step is made.
    """
    dtype = resolve_dtype(config.dtype, session.device)
    weights = _weights(config)
    key = _key(weights, examples, template, dtype)
    file = session.run.path / f"reference-{key[:16]}.safetensors"
    shared_key = hashlib.sha256(f"{key} {_circumstances(config, session)}".encode()).hexdigest()
    known = session.world.broadcast_object(
        _known(file, key, shared_key, len(examples), session.run.note) if session.world.is_main else None
    )
    if known is not None:
        return known
    model = policy
    if not _is_policy(config):
        model = load_causal(resolve(str(config.reference)), dtype=dtype, device=session.device)
    logps_N = logps_of(session, model, examples, template.pad_id, config.max_tokens, "reference")
    kept = Kept(logps_N, shared=False)
    if session.world.is_main and _as_at_the_start(weights, config, session):
        write(file, key, kept)
        leave(shared_key, logps_N, session.run.note)
    session.world.barrier()
    return kept


def _known(file: Path, key: str, shared_key: str, count: int, note: Callable[[str], None]) -> Kept | None:
    """What need not be computed; what comes from the cache is put into the run's file too."""
    own = read(file, key, count, note)
    if own is not None:
        return own
    shared = recall(shared_key, count, note)
    if shared is not None:
        note("reference log-probs: from cache")
        write(file, key, shared)
    return shared


def _is_policy(config: ReferenceSettings) -> bool:
    """Whether the reference is the start of the policy. Folders are compared as they are read: a run folder is its
    `model/`, but a folder inside a model's own may be another model.
    """
    return config.reference is None or resolve(config.reference).resolve() == resolve(config.model).resolve()


def _sizes(folder: Path) -> tuple[int, int | None]:
    """Vocabulary and longest sequence of a model, told without reading its weights; None = any length."""
    *_, base = _folders(folder)
    try:
        config = TransformerConfig.from_hf(read_config(base))
        return config.vocab_size, config.max_length
    except NotNative:
        from transformers import AutoConfig

        hf = AutoConfig.from_pretrained(base).get_text_config()
        return hf.vocab_size, getattr(hf, "max_position_embeddings", None)


def _weights(config: ReferenceSettings) -> list[str | None]:
    """Hash of the reference's folder, and of those that it builds on."""
    return [content(str(folder)) for folder in _folders(resolve(_named(config)))]


def _named(config: ReferenceSettings) -> str:
    return config.reference or config.model


def _as_at_the_start(weights: list[str | None], config: ReferenceSettings, session: Session) -> bool:
    """Whether the reference lies in its folder as it did when the run was started, and when `weights` were hashed."""
    started = json.loads((session.run.path / "lineage.json").read_text(encoding="utf-8"))
    then = started["parents"]["reference" if config.reference else "model"]["sha256"]
    if content(_named(config)) == then and _weights(config) == weights:
        return True
    session.run.note(
        f"{_named(config)} has changed since this run was started: its log-probabilities are not kept, and this "
        "run may mix two models; start it again with another --out"
    )
    return False


def _key(weights: Sequence[str | None], examples: Sequence[Example], template: Template, dtype: torch.dtype) -> str:
    """Hash of what is computed: the weights, the precision, the tokenizer, every token."""
    digest = hashlib.sha256(f"{template.fingerprint} {dtype}\n".encode())
    for each in weights:
        digest.update(f"{each}\n".encode())
    for example in examples:
        digest.update(array("q", [len(example), *example.ids]).tobytes() + bytes(example.mask))
    return digest.hexdigest()


def _circumstances(config: ReferenceSettings, session: Session) -> str:
    """All that decides the last bits: how the rows are batched, by which code, on what machine.

    A run that takes numbers from the cache must be the same to the bit as one that computes them.
    """
    machine = hardware()
    told = {
        "max_tokens": config.max_tokens,
        "parallel": config.parallel,
        "processes": session.world.size,
        "device": session.device.type,
        "own start": _is_policy(config),
        "adapter": config.lora is not None,
        "code": code_hash(),
        "in C": native.way(),
        "torch": torch.__version__,
        "transformers": packages().get("transformers"),  # computes the models that are not our own
        **{name: machine[name] for name in ("machine", "cpu", "cpu_capability", "threads", "gpus")},
    }
    return json.dumps(told, sort_keys=True)


def _folders(folder: Path) -> Iterator[Path]:
    """A model's folder, and those of the models that an adapter builds on."""
    yield folder
    base = read_adapter_base(folder)
    if base is not None:
        yield from _folders(resolve(base))
