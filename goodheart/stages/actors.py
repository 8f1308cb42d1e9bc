"""The roles of reinforcement learning and who plays them: policy, reference, value model, and (in judges/) the reward.

The reference is the policy's start: a frozen copy, or the policy itself with its adapter switched off.

Letters: B rows (answers), T time (tokens), N masked tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from goodheart.data.template import Template
from goodheart.errors import ConfigError
from goodheart.judges.load import Judge
from goodheart.judges.reward import RewardJudge
from goodheart.judges.settings import judge_names
from goodheart.models.causal import CausalLM, TokenLogps, completion_logprobs
from goodheart.models.heads import RewardModel, ValueHead, ValueModel
from goodheart.models.load import load_causal, load_reward, load_trunk, resolve
from goodheart.models.lora import as_reference
from goodheart.stages.rollouts import Rollouts
from goodheart.stages.settings.policy_gradient import PolicyGradientSettings
from goodheart.stages.settings.ppo import PPOConfig
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.policy import load_policy, ready
from goodheart.train.session import Session

# Gives the reference model inside a `with`.
Reference = Callable[[], AbstractContextManager[CausalLM]]


@dataclass
class Actors:
    """Networks of a run without a value model.

    reference: None where nothing needs it.
    """

    policy: CausalLM
    reference: Reference | None
    template: Template
    dtype: torch.dtype

    def say(self, rows: Rollouts, temperature: float) -> dict[str, Tensor]:
        """What every network says of the masked tokens of some rows: name of a field of `Rollouts` -> tensor_BT."""
        return self._logps(rows, temperature, with_hidden=False)[0]

    def _logps(
        self, rows: Rollouts, temperature: float, *, with_hidden: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Log-probabilities of policy and reference; hidden_ND of the policy where asked.

        In float32 the sampler's log-probabilities are the trainer's within rounding (measured at the first update of
        every step), so the policy is not asked again; in bfloat16 they differ, and the trainer's are the ones that
        count.
        """

        def logps(model: CausalLM) -> TokenLogps:
            return completion_logprobs(
                model,
                rows.ids_BT,
                rows.mask_BT,
                lengths_B=rows.lengths_B,
                kept_N=rows.kept_N,
                temperature=temperature,
            )

        old_BT, hidden_ND = rows.sampler_logps_BT * rows.mask_BT, None
        if with_hidden or self.dtype != torch.float32:
            old_BT, _, hidden_ND = logps(self.policy)
        said = {"old_logps_BT": old_BT}
        if self.reference is not None:
            with self.reference() as reference:
                said["ref_logps_BT"] = logps(reference).logps_BT
        return said, hidden_ND


@dataclass
class ActorCritic(Actors):
    """Networks of a run with a value model.

    values: (rows, hidden_ND of the policy; None unless they share a trunk) -> values_BT of the masked tokens.
    """

    value: nn.Module
    values: Callable[[Rollouts, Tensor | None], Tensor]

    @property
    def separate(self) -> bool:
        """Whether the value model has a trunk of its own."""
        return isinstance(self.value, ValueModel)

    def say(self, rows: Rollouts, temperature: float) -> dict[str, Tensor]:
        said, hidden_ND = self._logps(rows, temperature, with_hidden=not self.separate)
        return said | {"values_BT": self.values(rows, hidden_ND)}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for role, module in (("policy", self.policy), ("value", self.value)):
            for name, parameter in module.named_parameters():
                yield f"{role}.{name}", parameter


def load_actors(config: PolicyGradientSettings, session: Session, *, with_reference: bool) -> Actors:
    """Loads the policy and, where it is needed, its reference."""
    policy, template = load_policy(config, session)
    dtype = resolve_dtype(config.dtype, session.device)
    reference = _reference(config, policy, dtype, session) if with_reference else None
    return Actors(policy, reference, template, dtype)


def load_actor_critic(config: PPOConfig, session: Session, judge: Judge) -> ActorCritic:
    """Loads policy and reference, and makes the value model that `value_model` and `shared_trunk` ask for."""
    base = load_actors(config, session, with_reference=True)
    parts = (base.policy, base.reference, base.template, base.dtype)
    if config.shared_trunk:
        head = ValueHead(base.policy.width).to(session.device)
        return ActorCritic(*parts, head, lambda rows, hidden_ND: head(hidden_ND, rows.mask_BT, rows.kept_N))
    value = _value_model(config, session, judge, base.template, base.dtype)
    return ActorCritic(*parts, value, lambda rows, _: value(rows.ids_BT, rows.mask_BT, rows.lengths_B, rows.kept_N))


def _reference(config: PolicyGradientSettings, policy: CausalLM, dtype: torch.dtype, session: Session) -> Reference:
    if config.reference is None and config.lora is not None:
        return lambda: as_reference(policy)
    if config.reference is None:
        frozen = copy.deepcopy(policy)  # the weights in memory are the reference, whatever folder they came from
    else:
        frozen = load_causal(resolve(config.reference), dtype=dtype, device=session.device)
        if frozen.vocab_size != policy.vocab_size:
            raise ConfigError(
                f"reference {config.reference} has a vocabulary of {frozen.vocab_size}, the policy of "
                f"{policy.vocab_size}: both must read the same tokens"
            )
    frozen.requires_grad_(False)

    @contextmanager
    def reference() -> Iterator[CausalLM]:
        yield frozen

    return reference


def _value_model(
    config: PPOConfig, session: Session, judge: Judge, template: Template, dtype: torch.dtype
) -> ValueModel:
    """Starts from the reward model where that reads the same tokens, else from the policy's start."""
    choice = config.value_model
    fits = isinstance(judge, RewardJudge) and judge.reads_tokens_of(template) and judge.model.is_decoder
    if choice == "reward" and not fits:
        named = ", ".join(judge_names(config.reward).values())
        raise ConfigError(
            f"value_model: reward {named} cannot start the value model: it must be one decoder that reads the "
            "policy's tokens; use value_model: policy"
        )
    if isinstance(judge, RewardJudge) and isinstance(config.reward, str) and fits and choice in {"auto", "reward"}:
        source = load_reward(resolve(config.reward), dtype=dtype, device=session.device)
        assert isinstance(source, RewardModel)  # what `is_decoder` promised
        value = ValueModel.from_reward(source)
        if config.normalize_reward:
            _rescale(value, judge)
    else:
        folder = resolve(config.model if choice in {"auto", "policy"} else choice)
        value = ValueModel(load_trunk(folder, dtype=dtype, device=session.device))
    return ready(value, config, session)


@torch.no_grad()
def _rescale(value: ValueModel, judge: RewardJudge) -> None:
    """Values start on the scale of the normalised scores they are to predict."""
    head = value.head.value
    head.weight.div_(judge.std)
    head.bias.fill_(-judge.mean / judge.std)
