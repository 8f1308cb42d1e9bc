"""Reward and value models: a trunk with a linear layer on its hidden states.

A reward model reads the whole answer and scores it at the last real token (decoders) or through the classifier of an
encoder. A value head reads the state before each token, so it is shifted by one: values_BT[:, t] comes from the
hidden state at t - 1. Shapes: B batch, T time, D width, N scores per answer (heads, or members of an ensemble).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from goodheart.errors import ModelError
from goodheart.models.causal import CausalLM, at_end, at_tokens, before


class RewardModel(nn.Module):
    """Scores of answers: N numbers from one trunk. Saved and read as ...ForSequenceClassification of transformers.

    backbone: a `CausalLM`, or an `HFEncoder` that brings its own classifier.
    num_heads: N (also `num_scores`). seed: of the head.
    extra: what goodheart.json of its folder says (score mean and std, calibration).
    A decoder's head has no bias, like that of transformers; a constant cancels in every comparison.
    """

    def __init__(self, backbone: nn.Module, num_heads: int = 1, *, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_scores = num_heads
        self.extra: dict[str, Any] = {}
        self.score: nn.Linear | None = None
        if isinstance(backbone, CausalLM):
            self.score = _head(backbone, num_heads, seed)

    @property
    def is_decoder(self) -> bool:
        """False for an encoder, which sees later tokens and so cannot start a value model."""
        return self.score is not None

    @property
    def max_length(self) -> int | None:
        """Longest prompt + answer in tokens; None when nothing limits it."""
        return self.backbone.max_length  # type: ignore[return-value]

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """ids_BT: right-padded prompt + answer. lengths_B: real tokens in each row, at least 1. -> scores_BN,
        float32.
        """
        if self.score is None:
            return self.backbone(ids_BT, lengths_B).float()
        last_BD = self.backbone(ids_BT, lengths_B=lengths_B, kept_N=at_end(lengths_B, ids_BT.shape[1]))
        return last_BD.float() @ self.score.weight.float().t()


class RewardEnsemble(nn.Module):
    """Several reward models side by side; their disagreement is a measure of doubt (Coste et al. 2023,
    arXiv:2310.02743).
    """

    def __init__(self, members: Sequence[RewardModel]) -> None:
        super().__init__()
        if not members:
            raise ModelError("an ensemble needs at least one reward model")
        self.members = nn.ModuleList(members)
        self.num_scores = sum(m.num_scores for m in members)
        self.extra: dict[str, Any] = {}
        self.is_decoder = False  # a value model starts from one member, not from all
        self.max_length = min((m.max_length for m in members if m.max_length is not None), default=None)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """As `RewardModel.forward`. -> scores_BN, the members' scores in order."""
        return torch.cat([member(ids_BT, lengths_B) for member in self.members], dim=-1)


class ValueHead(nn.Module):
    """A value for each token from hidden states that are there already (trunk shared with the policy).

    width: of a hidden state. Starts at zero, so that the first returns are not mixed with noise and need no seed.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden_ND: Tensor, mask_BT: Tensor, kept_N: Tensor | None = None) -> Tensor:
        """hidden_ND: the states before the masked tokens. kept_N: `before(mask_BT)`, where it is known.

        -> values_BT, float32: [b, t] is the value of the state before token t; 0.0 off the mask and in column 0.
        """
        weight, bias = self.value.weight.float(), self.value.bias.float()
        values_N = nn.functional.linear(hidden_ND.float(), weight, bias).squeeze(-1)
        return at_tokens(values_N, before(mask_BT) if kept_N is None else kept_N, mask_BT)


class ValueModel(nn.Module):
    """A critic with a trunk of its own. backbone: a `CausalLM`; it is used, not copied, without its output layer."""

    def __init__(self, backbone: CausalLM) -> None:
        super().__init__()
        if not isinstance(backbone, CausalLM):
            raise ModelError("a value model needs a decoder: an encoder sees the tokens that come later")
        self.backbone = backbone
        drop_output_layer(backbone)
        self.head = ValueHead(backbone.width).to(next(backbone.parameters()))

    @classmethod
    def from_reward(cls, reward: RewardModel, index: int = 0) -> ValueModel:
        """A critic that starts as a copy of a reward model (InstructGPT, arXiv:2203.02155 appendix C.4).

        index: which of the N heads. The reward model stays as it is. Raises ModelError for an encoder.
        """
        if not reward.is_decoder or reward.score is None:
            raise ModelError("this reward model cannot start a value model: it is an encoder, or an ensemble of models")
        value = cls(copy.deepcopy(reward.backbone))  # type: ignore[arg-type]
        with torch.no_grad():
            value.head.value.weight.copy_(reward.score.weight[index : index + 1])
        return value

    @property
    def checkpoint_activations(self) -> bool:
        """Recompute each layer in backward instead of keeping its activations."""
        return self.backbone.checkpoint_activations

    @checkpoint_activations.setter
    def checkpoint_activations(self, on: bool) -> None:
        self.backbone.checkpoint_activations = on

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor, lengths_B: Tensor | None = None, kept_N: Tensor | None = None
    ) -> Tensor:
        """ids_BT: right-padded tokens. mask_BT: True on tokens before which a value is wanted. kept_N: `before` it.

        -> values_BT float32, see `ValueHead`.
        """
        kept_N = before(mask_BT) if kept_N is None else kept_N
        return self.head(self.backbone(ids_BT, kept_N=kept_N, lengths_B=lengths_B), mask_BT, kept_N)


def reward_from_causal(model: CausalLM, num_heads: int = 1, *, seed: int = 0) -> RewardModel:
    """A reward model on the trunk of a language model, with a fresh head. The trunk is used, not copied.

    num_heads: scores per answer. seed: of the head.
    """
    drop_output_layer(model)
    return RewardModel(model, num_heads, seed=seed)


def drop_output_layer(model: CausalLM) -> None:
    """Free the output layer of a trunk (ours), or freeze it (transformers): it would never get a gradient."""
    if model.is_native:
        model.lm_head = None  # type: ignore[assignment]
        return
    hf: Any = model.hf
    head = hf.get_output_embeddings()
    if head is not None and head.weight is not hf.get_input_embeddings().weight:
        head.requires_grad_(False)


def _head(backbone: CausalLM, num_heads: int, seed: int) -> nn.Linear:
    """N(0, 1/(D+1)): scores start with a variance near one on normed states (Stiennon et al. 2020,
    arXiv:2009.01325).
    """
    head = nn.Linear(backbone.width, num_heads, bias=False, device="meta")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(num_heads, backbone.width).normal_(0.0, (backbone.width + 1) ** -0.5, generator=generator)
    like = next(backbone.parameters())
    head.weight = nn.Parameter(weight.to(device=like.device, dtype=like.dtype))
    return head
