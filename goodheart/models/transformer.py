"""The dense decoder: Llama 2/3, Mistral, Qwen2, Qwen3, SmolLM, Gemma 1-3, with parameters named as in transformers.

One block is   x += norm?(attention(norm(x)));  x += norm?(mlp(norm(x)))   with the second norm only in Gemma 2 and 3.
Families differ in `TransformerConfig` alone. There is no dropout, also while training.

Shapes: B batch, T time, N kept tokens, D width, H query heads, G key/value heads, d head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from goodheart.errors import ModelError
from goodheart.models import native
from goodheart.models.architecture import TransformerConfig
from goodheart.models.attention import Pattern, attend, patterns
from goodheart.models.causal import CausalLM, Unembedding
from goodheart.models.elementwise import add_and_norm, gelu_gate, joint_silu_gate, rms_norm, silu_gate
from goodheart.models.fused import fuse, fused_linear
from goodheart.models.packed import Packed
from goodheart.models.packed import attend as attend_packed
from goodheart.models.rotary import Rotary, rotate, rotate_and_split


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight), the statistics in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float, offset: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        if self.offset:  # Gemma multiplies in float32, before it rounds
            return rms_norm(x.float(), 1.0 + self.weight.float(), self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)

    def after(self, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """-> x + more, and that normed."""
        if self.offset:
            x = x + more
            return x, self(x)
        return add_and_norm(x, more, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; biases, query/key norms, windows and softcap as configured."""

    def __init__(self, c: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.c, self.layer = c, layer
        self.window, self.rope = c.windows[layer], c.ropes[layer]
        self.q_proj = nn.Linear(c.width, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.width, bias=c.out_bias)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_offset)
            self.k_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_offset)

    def forward(
        self, x_BTD: Tensor, angles: Tensor | None, pattern: Pattern, cache: Any, kept_N: Tensor | None
    ) -> Tensor:
        c = self.c
        if pattern.packed is not None:
            return self.o_proj(_keep(attend_packed(self._packed_qkv(x_BTD), pattern.packed), kept_N))
        B, T, _ = x_BTD.shape
        qkv = fused_linear(x_BTD, (self.q_proj, self.k_proj, self.v_proj)).view(B, T, -1, c.head_dim)
        if c.qk_norm or angles is None:
            q, k, v = qkv.split((c.heads, c.kv_heads, c.kv_heads), dim=2)
            if c.qk_norm:
                q, k = self.q_norm(q), self.k_norm(k)
            if angles is not None:
                q, k = rotate(q, angles), rotate(k, angles)
        else:
            q, k, v = rotate_and_split(qkv, angles, c.heads, c.kv_heads)
        q_BHTd, k_BGTd, v_BGTd = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            out_BHTd = cache.attend(
                self.layer, q_BHTd, k_BGTd, v_BGTd,
                scale=c.attention_scale, window=self.window, softcap=c.attention_softcap,
            )  # fmt: skip
        else:
            out_BHTd = attend(q_BHTd, k_BGTd, v_BGTd, pattern, scale=c.attention_scale, softcap=c.attention_softcap)
        return self.o_proj(_keep(out_BHTd.transpose(1, 2).reshape(B, T, -1), kept_N))

    def _packed_qkv(self, x_ND: Tensor) -> Tensor:
        """Query, key and value heads of tokens, not turned yet, side by side."""
        c = self.c
        qkv_NE = fused_linear(x_ND, (self.q_proj, self.k_proj, self.v_proj))
        if not c.qk_norm:
            return qkv_NE
        q, k, v = qkv_NE.view(len(x_ND), -1, c.head_dim).split((c.heads, c.kv_heads, c.kv_heads), dim=1)
        return torch.cat((self.q_norm(q), self.k_norm(k), v), dim=1).view(qkv_NE.shape)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.width, c.mlp_width, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.width, c.mlp_width, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.mlp_width, c.width, bias=c.mlp_bias)
        self.gate = silu_gate if c.activation == "silu" else gelu_gate

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is silu_gate and native.takes(x_BTD):
            return self.down_proj(joint_silu_gate(fused_linear(x_BTD, (self.gate_proj, self.up_proj))))
        # Two matmuls: the gate is faster on whole tensors than on slices. (The sampler makes them one.)
        return self.down_proj(self.gate(self.gate_proj(x_BTD), self.up_proj(x_BTD)))


class Block(nn.Module):
    """One layer."""

    def __init__(self, c: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.sandwich = c.sandwich_norms
        self.self_attn = Attention(c, layer)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.width, c.norm_eps, c.norm_offset)
        self.post_attention_layernorm = RMSNorm(c.width, c.norm_eps, c.norm_offset)
        if c.sandwich_norms:
            self.pre_feedforward_layernorm = RMSNorm(c.width, c.norm_eps, c.norm_offset)
            self.post_feedforward_layernorm = RMSNorm(c.width, c.norm_eps, c.norm_offset)

    def forward(
        self, x_BTD: Tensor, angles: Tensor | None, pattern: Pattern, cache: Any, kept_N: Tensor | None = None
    ) -> Tensor:
        """kept_N: flat positions whose output is wanted (None = all); every position is still attended to.

        -> x_BTD, or x_ND of the kept ones.
        """
        attended = self.self_attn(self.input_layernorm(x_BTD), angles, pattern, cache, kept_N)
        x = _keep(x_BTD, kept_N)
        if self.sandwich:
            x = x + self.post_attention_layernorm(attended)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        x, normed = self.post_attention_layernorm.after(x, attended)
        return x + self.mlp(normed)


def _keep(x_BTD: Tensor, kept_N: Tensor | None) -> Tensor:
    """The kept positions as rows; index_select, whose backward is faster than that of indexing by a mask."""
    return x_BTD if kept_N is None else x_BTD.reshape(-1, x_BTD.shape[-1]).index_select(0, kept_N)


class Trunk(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.c = c
        # Not initialised here; and drawing normal numbers on the meta device would import the compiler (2 s).
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(c.vocab_size, c.width), freeze=False)
        self.layers = nn.ModuleList(Block(c, i) for i in range(c.layers))
        self.norm = RMSNorm(c.width, c.norm_eps, c.norm_offset)
        self.checkpoint_activations = False
        self._rotaries = {rope: Rotary(rope, c.head_dim, c.max_length) for rope in set(c.ropes) if rope is not None}

    def blocks(self) -> list[Block]:
        """The layers."""
        return list(self.layers)  # type: ignore[arg-type]

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None,
        segments_BT: Tensor | None,
        cache: Any,
        kept_N: Tensor | None = None,
    ) -> Tensor:
        """See `CausalLM.forward`. -> hidden_BTD, or hidden_ND of the places to keep."""
        c, T, device = self.c, ids_BT.shape[1], ids_BT.device
        x_BTD = self.embed(ids_BT)
        angles = {rope: rotary.angles(positions_BT, T, device, x_BTD.dtype) for rope, rotary in self._rotaries.items()}
        who = {} if cache is not None else patterns(set(c.windows), T, segments_BT, device)
        inputs = [
            (None if rope is None else angles[rope], who.get(window, Pattern()))
            for rope, window in zip(c.ropes, c.windows, strict=True)
        ]
        return self._through(x_BTD, inputs, cache, kept_N)

    def packed(self, rows: Packed) -> Tensor:
        """The states that were asked for, of tokens without padding, on the CPU. -> hidden_KD"""
        c = self.c
        inputs = [(None, Pattern(packed=self._attending(rows, layer))) for layer in range(c.layers)]
        return self._through(self.embed(rows.ids_N), inputs, None, rows.kept_K)

    def _attending(self, rows: Packed, layer: int) -> native.Attending:
        c, rope = self.c, self.c.ropes[layer]
        turns = None if rope is None else self._rotaries[rope].turns(rows.longest, rows.ids_N.device)
        size = (c.heads, c.kv_heads, c.windows[layer], c.attention_scale)
        return native.Attending(rows.rows_R3, rows.families, rows.longest, *size, turns)

    def embed(self, ids: Tensor) -> Tensor:
        """Where every pass begins, with all tokens that it computes."""
        x = self.embed_tokens(ids)
        if self.c.embedding_scale is not None:  # rounded to the dtype first, as these models were trained
            x = x * torch.tensor(self.c.embedding_scale).to(x.dtype).item()
        return x

    def _through(
        self, x: Tensor, inputs: Sequence[tuple[Tensor | None, Pattern]], cache: Any, kept_N: Tensor | None
    ) -> Tensor:
        """All layers and the norm. inputs: angles and pattern of each layer."""
        again = self.checkpoint_activations and cache is None and torch.is_grad_enabled()
        for i, (layer, (angles, pattern)) in enumerate(zip(self.layers, inputs, strict=True)):
            # Only in the last layer is nobody left who would attend to the positions not kept.
            told = (x, angles, pattern, cache, kept_N if i == self.c.layers - 1 else None)
            x = checkpoint(layer, *told, use_reentrant=False, preserve_rng_state=False) if again else layer(*told)
        return self.norm(x)


class Transformer(CausalLM):
    """A decoder built from a `TransformerConfig`; weights are not initialised (see `models/new.py` and
    `models/load.py`).

    `lm_head` is None in a trunk that carries a reward or value head instead. Moving it (`.to`), copying it
    (`copy.deepcopy`) and loading into it keep the projections fused and the tie intact.
    """

    is_native = True

    lm_head: nn.Linear | None

    def __init__(self, config: TransformerConfig, *, head: bool = True) -> None:
        super().__init__()
        self.config = config
        self.hf_config = config.to_hf()
        self.generation_config = {}
        self.source = None
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False) if head else None
        self.fuse_()

    @property
    def vocab_size(self) -> int:
        return self.model.embed_tokens.num_embeddings

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def max_length(self) -> int | None:
        return self.config.max_length

    @property
    def checkpoint_activations(self) -> bool:
        """Recompute each layer in backward instead of keeping its activations."""
        return self.model.checkpoint_activations

    @checkpoint_activations.setter
    def checkpoint_activations(self, on: bool) -> None:
        self.model.checkpoint_activations = on

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
        """See `CausalLM.forward`. Pads on the right cannot reach real tokens; lengths_B tells where they are, so that
        nothing is computed for them."""
        if cache is None and kept_N is not None and ids_BT.device.type == "cpu" and self.packs():
            rows = Packed.of(ids_BT, kept_N, lengths_B, positions_BT, segments_BT)
            if rows is not None:
                return self.model.packed(rows)
        return self.model(ids_BT, positions_BT, segments_BT, cache, kept_N)

    def packs(self) -> bool:
        """Whether c/attention.c computes what this model needs; passes that are told of rows have no padding then."""
        return self.config.attention_softcap is None and native.takes(self.model.norm.weight)

    def unembed(self) -> Unembedding:
        """See `CausalLM.unembed`."""
        if self.lm_head is None:
            raise ModelError("this model has no output layer: it is the trunk of a reward or value model")
        return Unembedding(self.lm_head.weight, None, 1.0, self.config.logit_softcap)

    def fuse_(self) -> None:
        """Tie the output layer if configured, and lay q/k/v and gate/up side by side in memory (`models/fused.py`)."""
        if self.config.tie and self.lm_head is not None:
            self.lm_head.weight = self.model.embed_tokens.weight
        for block in self.model.blocks():
            attention, mlp = block.self_attn, block.mlp
            fuse((attention.q_proj, attention.k_proj, attention.v_proj))
            fuse((mlp.gate_proj, mlp.up_proj))

    def allocate_(self, dtype: torch.dtype, device: str | torch.device) -> None:
        """Give a model that was described on the meta device memory, not yet filled.

        torch's own `to_empty` imports its symbolic shapes first, which takes a second of every command.
        """
        self._apply(lambda t: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device=device))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch; a tied output layer may be absent from the state."""
        tied = self.config.tie and self.lm_head is not None
        if tied and "lm_head.weight" not in state_dict and "model.embed_tokens.weight" in state_dict:
            state_dict = {**state_dict, "lm_head.weight": state_dict["model.embed_tokens.weight"]}
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.fuse_()
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Transformer:
        super()._apply(fn, recurse)
        self.fuse_()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:  # copy.deepcopy and pickle end here
        super().__setstate__(state)
        self.fuse_()
