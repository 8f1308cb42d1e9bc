"""Any other architecture of transformers behind our interface: decoders (`HFCausal`) and encoders (`HFEncoder`).

Slower than `transformer.py` and with the import of transformers, but the same numbers. Dropout and routing noise are
set to zero when the model is built, so training computes the function that was sampled from. Code from a model folder
is never run. Shapes: B batch, T time, D width, N scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from goodheart.errors import ModelError
from goodheart.models.attention import patterns
from goodheart.models.causal import CausalLM, Unembedding

_PROBE_TOLERANCE = 1e-3  # of the largest logit, for float32; scaled up with the rounding of lower dtypes


class HFCausal(CausalLM):
    """A transformers decoder. hf: the model with its head, as `AutoModelForCausalLM` (or
    ...ForSequenceClassification, whose head is then used by a `RewardModel`). hf_config: its config.json."""

    is_native = False

    def __init__(self, hf: Any, hf_config: Mapping[str, Any], *, source: str | None = None) -> None:
        super().__init__()
        self.hf = hf
        self.hf_config = dict(hf_config)
        self.generation_config = {}
        self.source = source
        self._checkpoints = False
        self._packs: bool | None = None  # unknown until packed rows come

    @property
    def vocab_size(self) -> int:
        return self.unembed().weight_VD.shape[0] if self._head is not None else self.hf.config.vocab_size

    @property
    def width(self) -> int:
        return self._head.weight.shape[1] if self._head is not None else self.hf.config.hidden_size

    @property
    def max_length(self) -> int | None:
        return getattr(self.hf.config, "max_position_embeddings", None)

    @property
    def checkpoint_activations(self) -> bool:
        return self._checkpoints

    @checkpoint_activations.setter
    def checkpoint_activations(self, on: bool) -> None:
        _set_checkpointing(self.hf, on)
        self._checkpoints = on

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
        """See `CausalLM.forward`. Position ids are always passed, so that learned positions never depend on padding.

        With a cache: `cache.past` is a transformers cache, `cache.mask(ids_BT)` the attention mask over it and the new
        tokens. Raises ModelError for packed rows that the architecture cannot keep apart.
        """
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(len(ids_BT), -1)
        if cache is not None:
            hidden_BTD = self._run(ids_BT, positions_BT, cache.mask(ids_BT), cache.past)
        elif segments_BT is None:
            hidden_BTD = self._run(ids_BT, positions_BT, None)  # right padding is invisible to a causal model
        else:
            hidden_BTD = self._run(ids_BT, positions_BT, self._packed_mask(segments_BT))
        return hidden_BTD if kept_N is None else hidden_BTD.flatten(0, 1)[kept_N]

    def unembed(self) -> Unembedding:
        """See `CausalLM.unembed`."""
        if self._head is None:
            raise ModelError("this model has no output layer: it is the trunk of a reward or value model")
        config = self.hf.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return Unembedding(
            self._head.weight,
            getattr(self._head, "bias", None),
            scale,
            getattr(config, "final_logit_softcapping", None),
        )

    def probe(self) -> None:
        """Check on a few tokens that unembed(hidden) gives the model's own logits.

        Raises ModelError for an architecture that computes its logits in another way.
        """
        ids_BT = torch.arange(6, device=self._head.weight.device).remainder(self.vocab_size)[None]
        with torch.no_grad():
            head = self.unembed()
            logits = head.scale * nn.functional.linear(self(ids_BT), head.weight_VD, head.bias_V)
            if head.softcap is not None:
                logits = head.softcap * torch.tanh(logits / head.softcap)
            expected = self.hf(ids_BT, use_cache=False).logits
        error = (logits.float() - expected.float()).abs().max().item()
        allowed = _PROBE_TOLERANCE * torch.finfo(logits.dtype).eps / 1.2e-7 * max(1.0, expected.abs().max().item())
        if not error <= allowed:
            raise ModelError(
                f"{self.hf_config.get('model_type')}: its logits are not its output layer applied to its hidden states "
                f"(they differ by {error:.2g}), so log-probabilities would be wrong; this architecture is not supported"
            )

    @property
    def _head(self) -> Any:
        return self.hf.get_output_embeddings()

    def _run(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor | None, past: Any = None) -> Tensor:
        trunk = self.hf.base_model
        out = trunk(
            input_ids=ids_BT,
            position_ids=positions_BT,
            attention_mask=mask,
            past_key_values=past,
            use_cache=past is not None,
        )
        return out.last_hidden_state

    def _packed_mask(self, segments_BT: Tensor) -> Tensor:
        if self._packs is None:
            self._packs = self._probe_packing()
        if not self._packs:
            raise ModelError(
                f"{self.hf_config.get('model_type')} cannot keep packed sequences apart; switch packing off"
            )
        return self._segment_mask(segments_BT)

    def _segment_mask(self, segments_BT: Tensor) -> Tensor:
        allowed = patterns([None], segments_BT.shape[1], segments_BT, segments_BT.device)[None].allowed
        assert allowed is not None  # there are segments
        dtype = next(self.hf.parameters()).dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )

    @torch.no_grad()
    def _probe_packing(self) -> bool:
        """Two sequences in one row against the second one alone."""
        device = next(self.hf.parameters()).device
        ids = torch.arange(1, 13, device=device).remainder(self.hf.config.vocab_size)[None]
        positions = torch.tensor([[*range(5), *range(7)]], device=device)
        segments = torch.tensor([[1] * 5 + [2] * 7], device=device)
        try:
            packed = self._run(ids, positions, self._segment_mask(segments))[:, 5:]
        except (ValueError, RuntimeError, IndexError):  # the architecture wants another shape of mask
            return False
        alone = self._run(ids[:, 5:], positions[:, 5:], None)
        window = getattr(self.hf.config, "sliding_window", None)
        return window is None and torch.allclose(packed, alone, rtol=1e-3, atol=1e-3)


class HFEncoder(nn.Module):
    """A BERT-like encoder with its classifier on the pooled first token, as a reward model's backbone: ids ->
    scores.
    """

    def __init__(self, hf: Any, hf_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.hf = hf
        self.hf_config = dict(hf_config)
        self._checkpoints = False
        # RoBERTa counts positions from its padding id + 1, and finds padding by that id; we say both ourselves.
        embeddings: Any = getattr(hf.base_model, "embeddings", None)
        self._offset = embeddings.padding_idx + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else None

    @property
    def max_length(self) -> int | None:
        """Longest input in tokens."""
        longest = getattr(self.hf.config, "max_position_embeddings", None)
        return longest if longest is None or self._offset is None else longest - self._offset

    @property
    def checkpoint_activations(self) -> bool:
        """Recompute each layer in backward instead of keeping its activations."""
        return self._checkpoints

    @checkpoint_activations.setter
    def checkpoint_activations(self, on: bool) -> None:
        _set_checkpointing(self.hf, on)
        self._checkpoints = on

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """ids_BT: right-padded prompt + answer. lengths_B: real tokens in each row. -> scores_BN"""
        at = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        inputs: dict[str, Tensor] = {"attention_mask": (at < lengths_B[:, None]).long()}
        if self._offset is not None:
            inputs["position_ids"] = (at + self._offset).expand(len(ids_BT), -1)
        return self.hf(input_ids=ids_BT, **inputs).logits


def _set_checkpointing(hf: Any, on: bool) -> None:
    if on:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        hf.train()  # transformers recomputes in training mode only; nothing here is random in it
    else:
        hf.gradient_checkpointing_disable()
