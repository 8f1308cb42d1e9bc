"""What every causal language model offers to training and sampling, and the log-probabilities of completions.

Everything is token-aligned: entry [b, t] of a result is about token t given tokens 0 .. t-1; column 0 has none (0.0).
Batches are padded on the right. Shapes: B batch, T time, D width, V vocabulary, N selected tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from goodheart.losses.logprobs import token_logprobs
from goodheart.models import native


class Unembedding(NamedTuple):
    """logits = softcap(scale * (hidden @ weight^T + bias)), softcap(x) = cap * tanh(x / cap)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0  # 1.0 = off
    softcap: float | None = None  # None = off


class TokenLogps(NamedTuple):
    """Log-probabilities in nats, float32; 0.0 outside the mask. hidden_ND: the states before the masked tokens, for a
    value head."""

    logps_BT: Tensor
    entropy_BT: Tensor | None
    hidden_ND: Tensor


class CausalLM(nn.Module):
    """A decoder behind one interface: `Transformer` (ours) or `HFCausal` (any other of transformers).

    hf_config: what its config.json says. generation_config: what its generation_config.json says, {} without one.
    source: path or Hub id that it was loaded from, None for a fresh one.
    checkpoint_activations: recompute each layer in backward instead of keeping its activations.
    """

    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    source: str | None
    is_native: bool
    checkpoint_activations: bool

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer."""
        raise NotImplementedError

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter is in the model (see `models/lora.py`)."""
        return hasattr(getattr(self, "hf", self), "peft_config")

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        raise NotImplementedError

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens; None when nothing limits it."""
        raise NotImplementedError

    def forward(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
        cache: Any = None,
        kept_N: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        ids_BT: token ids, right-padded. positions_BT: 0 .. T-1 when absent. segments_BT: packed rows, 1.. = number of
        the sequence within its row, 0 = padding; sequences do not see each other. lengths_B: real tokens per row
        (only models that need an attention mask look at it). cache: keys and values of earlier tokens, with
        `attend(layer, q_BHTd, k_BGTd, v_BGTd, *, scale, window, softcap) -> out_BHTd`. kept_N: places
        (row * T + t) whose states are wanted, see `before` and `at_end`; what only others would need is not computed.
        -> hidden_BTD, or with kept_N hidden_ND.
        """
        raise NotImplementedError

    def unembed(self) -> Unembedding:
        """The output layer, as parameters, so that log-probabilities never need all logits at once."""
        raise NotImplementedError


def completion_logprobs(
    model: CausalLM,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
    segments_BT: Tensor | None = None,
    kept_N: Tensor | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> TokenLogps:
    """Log-probabilities of the masked tokens; prompts and padding never reach the output layer.

    ids_BT: right-padded tokens. mask_BT: True on tokens to score; column 0 is ignored (nothing precedes it).
    kept_N: `before(mask_BT)`, where it is known; to find it on a GPU is to wait for it.
    temperature: divides the logits; the same value as in sampling.
    -> logps_BT float32 with 0.0 off the mask, entropy_BT likewise (None unless asked), hidden_ND of the states before
    the masked tokens.
    """
    kept_N = before(mask_BT) if kept_N is None else kept_N
    inputs = {"positions_BT": positions_BT, "segments_BT": segments_BT, "lengths_B": lengths_B}
    hidden_ND = model(ids_BT, kept_N=kept_N, **inputs)
    head = model.unembed()
    logps_N, entropy_N = token_logprobs(
        hidden_ND,
        head.weight_VD,
        ids_BT.flatten()[kept_N + 1],
        bias_V=head.bias_V,
        scale=head.scale,
        softcap=head.softcap,
        temperature=temperature,
        with_entropy=with_entropy,
        softmax=native if native.takes(hidden_ND, head.weight_VD) else None,
    )
    entropy_BT = None if entropy_N is None else at_tokens(entropy_N, kept_N, mask_BT)
    return TokenLogps(at_tokens(logps_N, kept_N, mask_BT), entropy_BT, hidden_ND)


def before(mask_BT: Tensor) -> Tensor:
    """Where the states are that the masked tokens are predicted from, one place before each; column 0 is ignored.

    -> kept_N, for `CausalLM.forward`. On a GPU this waits for it, as nobody knows how many they are.
    """
    return nn.functional.pad(mask_BT[:, 1:], (0, 1)).flatten().nonzero().squeeze(1)


def at_end(lengths_B: Tensor, width: int) -> Tensor:
    """Where the last real token of each row is, and the first place of an empty one. -> kept_B"""
    return torch.arange(len(lengths_B), device=lengths_B.device) * width + (lengths_B - 1).clamp(min=0)


def at_tokens(values_N: Tensor, kept_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Put values of the masked tokens, whose kept_N is `before` them, in their place; zeros elsewhere. Differentiable.

    By numbers: a mask would have a GPU waited for, here or in backward. -> values_BT
    """
    return values_N.new_zeros(mask_BT.numel()).index_put((kept_N + 1,), values_N).view(mask_BT.shape)
