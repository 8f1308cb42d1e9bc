"""Whom the policy plays against in online preference learning, and a reference that follows the policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from goodheart.data.template import Template
from goodheart.errors import ConfigError
from goodheart.generate.engine import Generation
from goodheart.generate.mixture import MixtureEngine
from goodheart.models.causal import CausalLM
from goodheart.models.load import load_causal, resolve
from goodheart.stages.actors import Actors, Reference
from goodheart.stages.settings.online import OnlineConfig
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.writer import Writer
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.session import Session

# (prompts as tokens, sampling, seed, streams of random numbers) -> one answer to each.
Player = Callable[[Sequence[list[int]], SamplingSettings, int, Sequence[int]], list[Generation]]


class Snapshot:
    """A copy of the policy that is made anew now and then. Called, it is the reference inside a `with`.

    Its parameters count as trainable, so that checkpoints hold what the policy's hold; nothing ever trains them.
    """

    def __init__(self, policy: CausalLM) -> None:
        self.model = copy.deepcopy(policy)

    @contextmanager
    def __call__(self) -> Iterator[CausalLM]:
        with torch.no_grad():
            yield self.model

    @torch.no_grad()
    def refresh(self, policy: CausalLM) -> None:
        """Becomes the policy as it is now."""
        new = dict(policy.named_parameters())
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(new[name])


def policy_player(writer: Writer) -> Player:
    """The policy, with the weights that are being trained."""
    return lambda prompts, sampling, seed, streams: writer.generate(prompts, sampling, seed=seed, sequence_ids=streams)


def opponent(config: OnlineConfig, actors: Actors, writer: Writer, session: Session) -> Player:
    """Who writes the answers that the policy's are compared with.

    Raises:
        ConfigError: a model that reads other tokens than the policy.
    """
    reference = actors.reference
    assert reference is not None  # every run has one
    if config.opponent == "self":
        return policy_player(writer)
    if config.opponent in ("reference", "previous"):
        return _borrowed(reference, actors.template, config.slots)
    if config.opponent == "mixture":
        mixed = Writer(actors.policy, actors.template, slots=config.slots)
        mixed.engine = MixtureEngine(actors.policy, reference, weight=config.mixture_coef, slots=config.slots)
        return policy_player(mixed)
    return policy_player(_loaded(config, actors, session))


def _borrowed(reference: Reference, template: Template, slots: int) -> Player:
    """The reference: it may be the policy itself with its adapter switched off, so it is asked for at every step."""
    with reference() as model:
        writer = Writer(model, template, slots=slots)

    def play(
        prompts: Sequence[list[int]], sampling: SamplingSettings, seed: int, streams: Sequence[int]
    ) -> list[Generation]:
        with reference():
            return writer.generate(prompts, sampling, seed=seed, sequence_ids=streams)

    return play


def _loaded(config: OnlineConfig, actors: Actors, session: Session) -> Writer:
    folder = resolve(config.opponent)
    if Template.load(folder, plain_prompts=actors.template.plain_prompts).fingerprint != actors.template.fingerprint:
        raise ConfigError(
            f"opponent {config.opponent} has another tokenizer or chat template than {config.model}: the policy learns "
            "from its tokens, so both must read the same ones"
        )
    model = load_causal(folder, dtype=resolve_dtype(config.dtype, session.device), device=session.device)
    model.requires_grad_(False)
    return Writer(model, actors.template, slots=config.slots)
