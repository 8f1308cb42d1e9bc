"""The tensors of a plain `Transformer` for decoding: looked up once per call of the engine, never copied.

Only norm weights (one vector per norm) are rewritten, and the rotary tables laid out per position. A model with
anything special in it (adapters, sharded weights) is not plain: the engine then runs its forward pass as it is.

Shapes: V vocabulary, D width, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from goodheart.models.architecture import TransformerConfig
from goodheart.models.causal import CausalLM
from goodheart.models.rotary import Rope, Rotary
from goodheart.models.transformer import Block, RMSNorm, Transformer

Linear = tuple[Tensor, Tensor | None]  # weight (out, in), bias (out)


@dataclass(frozen=True, slots=True)
class PlainLayer:
    """One block. Norm weights are what the normalised input is multiplied by; None = no norm there."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    before_attention: Tensor
    after_attention: Tensor | None
    before_mlp: Tensor
    after_mlp: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    rope: Rope | None
    window: int | None

    @property
    def matmuls(self) -> tuple[Linear, Linear, Linear, Linear]:
        """In the order in which they are computed."""
        return self.qkv, self.out, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A whole trunk. turns: per kind of rotary, cos and sign * sin of each position, (length, 2, d), so that rotating a
    head is x cos + swap(x) sin, where swap exchanges its halves."""

    config: TransformerConfig
    embedding_VD: Tensor
    embedding_scale: float | None
    layers: list[PlainLayer]
    final_norm: Tensor
    turns: dict[Rope, Tensor]

    def places(self) -> list[object]:
        """What is computed, and where the weights lie that are looked at and not copied: if it is the same of two
        models, what was recorded of the one serves the other."""
        weights = [self.embedding_VD, *(w for layer in self.layers for pair in layer.matmuls for w in pair)]
        kinds = [None if w is None else (w.data_ptr(), w.shape, w.stride(), w.dtype, w.device) for w in weights]
        return [self.config, *kinds]


def plain_model(model: CausalLM, length: int, dtype: torch.dtype) -> PlainModel | None:
    """-> None when the model is not a `Transformer` with whole weights of this dtype on one device, fused as
    `models/fused.py` does.

    length: positions that the rotary tables must cover.
    """
    if type(model) is not Transformer or type(model.model.embed_tokens) is not nn.Embedding:
        return None
    trunk, c = model.model, model.config
    weight = trunk.embed_tokens.weight
    if type(weight) is not nn.Parameter or not weight.is_contiguous():
        return None
    if any(p.dtype != dtype or p.device != weight.device for p in trunk.parameters()):
        return None
    layers = [_layer(block) for block in trunk.blocks()]
    if None in layers:
        return None
    scale = c.embedding_scale
    return PlainModel(
        config=c,
        embedding_VD=weight.detach(),
        embedding_scale=None if scale is None else torch.tensor(scale).to(dtype).item(),
        layers=layers,  # type: ignore[arg-type]
        final_norm=_norm(trunk.norm),
        turns={rope: _turns(rotary, length, weight) for rope, rotary in trunk._rotaries.items()},
    )


def _layer(block: Block) -> PlainLayer | None:
    a, m, c = block.self_attn, block.mlp, block.self_attn.c
    groups = ((a.q_proj, a.k_proj, a.v_proj), (a.o_proj,), (m.gate_proj, m.up_proj), (m.down_proj,))
    qkv, out, gate_up, down = (_one_matmul(group) for group in groups)
    if qkv is None or out is None or gate_up is None or down is None:
        return None
    sandwich = block.sandwich
    return PlainLayer(
        qkv, out, gate_up, down,
        before_attention=_norm(block.input_layernorm),
        after_attention=_norm(block.post_attention_layernorm) if sandwich else None,
        before_mlp=_norm(block.pre_feedforward_layernorm if sandwich else block.post_attention_layernorm),
        after_mlp=_norm(block.post_feedforward_layernorm) if sandwich else None,
        q_norm=_norm(a.q_norm) if c.qk_norm else None,
        k_norm=_norm(a.k_norm) if c.qk_norm else None,
        rope=a.rope,
        window=a.window,
    )  # fmt: skip


def _norm(module: RMSNorm) -> Tensor:
    weight = module.weight.detach()
    return 1.0 + weight.float() if module.offset else weight


def _turns(rotary: Rotary, length: int, weight: Tensor) -> Tensor:
    cos, sin = rotary.angles(None, length, weight.device, weight.dtype)[:, 0, :, 0]
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)


def _one_matmul(layers: Sequence[nn.Module]) -> Linear | None:
    """The weight and bias that serve all layers at once, sharing their memory.

    -> None when one is not a plain Linear with plain parameters, or when they do not follow each other in memory.
    """
    if not all(type(layer) is nn.Linear for layer in layers):
        return None
    found: list[Tensor | None] = []
    for name in ("weight", "bias"):
        parts = [getattr(layer, name) for layer in layers]
        if all(part is None for part in parts):
            found.append(None)
            continue
        if not all(type(part) is nn.Parameter and part.is_contiguous() for part in parts):
            return None
        first, end = parts[0], parts[0].data_ptr()
        for part in parts:
            if part.data_ptr() != end or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
                return None
            end += part.numel() * part.element_size()
        rows = sum(len(part) for part in parts)
        found.append(first.detach().as_strided((rows, *first.shape[1:]), first.stride()))
    weight, bias = found
    assert weight is not None  # a Linear always has one
    return weight, bias
