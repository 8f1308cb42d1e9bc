"""One decoding step of our own decoder with as few operations as possible: same numbers as `Transformer.forward`.

A small model's step is bound by the number of operations, not by arithmetic, and a forward built for training spends
half of its time in modules, autograd functions and pointer checks. Here all that is done once per call of the engine:
weights are looked up as views (never copied; only norm weights are rescaled), then each layer is about twenty plain
operations. A model with anything special in it (adapters, sharded weights, autocast) takes the general way instead.

Shapes: N running rows, D width, H query heads, G key/value heads, d head size, A = H + 2G, F MLP width,
X = N * G, g = H / G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodheart.generate.cache import KVCache
from goodheart.models.causal import CausalLM
from goodheart.models.rotary import Rope, Rotary
from goodheart.models.transformer import Block, RMSNorm, Transformer

Norm = Callable[[Tensor], Tensor]
Linear = tuple[Tensor, Tensor | None]  # weight (in, out), bias (out)


class _Layer(NamedTuple):
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    before_attention: Norm
    after_attention: Norm | None
    before_mlp: Norm
    after_mlp: Norm | None
    head_norm: Norm | None  # of query and key heads
    rope: Rope | None
    window: int | None


class Decoder:
    """Runs one token per row through a `Transformer` over a `KVCache`. Build with `Decoder.of`."""

    def __init__(self, model: Transformer, cache: KVCache, layers: list[_Layer]) -> None:
        self.cache, self.layers = cache, layers
        self.c = model.config
        self.embedding_VD = model.model.embed_tokens.weight.detach()
        rotaries = model.model._rotaries.items()
        self.turns = {rope: _turns(rotary, cache.max_length, self.embedding_VD) for rope, rotary in rotaries}
        self.final_norm = _norm(model.model.norm, model.config.width)
        scale = self.c.embedding_scale
        self.embedding_scale = None if scale is None else torch.tensor(scale).to(self.embedding_VD.dtype).item()

    @classmethod
    def of(cls, model: CausalLM, cache: KVCache) -> Decoder | None:
        """-> None when the model is not a plain `Transformer` with whole, fused weights in the dtype of the cache."""
        if type(model) is not Transformer or type(model.model.embed_tokens) is not nn.Embedding:
            return None
        weight = model.model.embed_tokens.weight
        if type(weight) is not nn.Parameter or weight.dtype != cache.dtype:
            return None
        layers = [_layer(block) for block in model.model.blocks()]
        return None if None in layers else cls(model, cache, layers)  # type: ignore[arg-type]

    @torch.inference_mode()
    def step(self, tokens_N: Tensor) -> Tensor:
        """The cache must be prepared with `cache.step()`. -> hidden_ND after the final norm."""
        c, cache = self.c, self.cache
        N, H, G, half = len(tokens_N), c.heads, c.kv_heads, c.head_dim // 2
        x_ND = self.embedding_VD.index_select(0, tokens_N)
        if self.embedding_scale is not None:
            x_ND.mul_(self.embedding_scale)
        turns = {rope: table.index_select(0, cache.positions_N).unbind(2) for rope, table in self.turns.items()}
        for index, layer in enumerate(self.layers):
            qkv_NAd = _linear(layer.before_attention(x_ND), layer.qkv).view(N, -1, c.head_dim)
            qk, v_NGd = qkv_NAd.split((H + G, G), 1)
            if layer.head_norm is not None:
                qk = layer.head_norm(qk)
            if layer.rope is not None:
                cos, sin = turns[layer.rope]
                qk = torch.addcmul(qk * cos, qk.roll(half, 2), sin)
            q_NHd, k_NGd = qk.split((H, G), 1)
            cache.write(index, torch.cat((k_NGd, v_NGd), 1).view(-1, c.head_dim))
            out_Xgd = cache.read(
                index,
                q_NHd.reshape(N * G, -1, c.head_dim),
                scale=c.attention_scale,
                window=layer.window,
                softcap=c.attention_softcap,
            )
            x_ND = _add(x_ND, out_Xgd.view(N, -1), layer.out, layer.after_attention)
            gate_NF, up_NF = _linear(layer.before_mlp(x_ND), layer.gate_up).chunk(2, 1)
            act_NF = F.silu(gate_NF) if c.activation == "silu" else F.gelu(gate_NF, approximate="tanh")
            x_ND = _add(x_ND, act_NF.mul_(up_NF), layer.down, layer.after_mlp)
        return self.final_norm(x_ND)


def _turns(rotary: Rotary, length: int, weight: Tensor) -> Tensor:
    """Per position: cos and sign * sin, so that rotating is x cos + swap(x) sin. -> (length, 1, 2, d)"""
    cos, sin = rotary.angles(None, length, weight.device, weight.dtype)[:, 0, :, 0]
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1).unsqueeze(1)


def _layer(block: Block) -> _Layer | None:
    """The plain tensors of a block; None when it holds something else."""
    a, m, c = block.self_attn, block.mlp, block.self_attn.c
    groups = ((a.q_proj, a.k_proj, a.v_proj), (a.o_proj,), (m.gate_proj, m.up_proj), (m.down_proj,))
    qkv, out, gate_up, down = (_one_matmul(group) for group in groups)
    if qkv is None or out is None or gate_up is None or down is None:
        return None
    head_norm = None
    if c.qk_norm:
        weights = torch.cat((a.q_norm.weight.expand(c.heads, -1), a.k_norm.weight.expand(c.kv_heads, -1)))
        head_norm = _norm(a.q_norm, c.head_dim, weights)
    after_attention, before_mlp, after_mlp = None, block.post_attention_layernorm, None
    if block.sandwich:
        after_attention, before_mlp = block.post_attention_layernorm, block.pre_feedforward_layernorm
        after_mlp = block.post_feedforward_layernorm
    return _Layer(
        qkv, out, gate_up, down,
        before_attention=_norm(block.input_layernorm, c.width),
        after_attention=None if after_attention is None else _norm(after_attention, c.width),
        before_mlp=_norm(before_mlp, c.width),
        after_mlp=None if after_mlp is None else _norm(after_mlp, c.width),
        head_norm=head_norm, rope=a.rope, window=a.window,
    )  # fmt: skip


def _one_matmul(layers: Sequence[nn.Module]) -> Linear | None:
    """The weight and bias that serve all layers at once, sharing their memory (see `models/fused.py`).

    -> None when one is not a plain Linear with plain parameters, or when they do not follow each other in memory.
    """
    if not all(type(layer) is nn.Linear for layer in layers):
        return None
    found: list[Tensor | None] = []
    for name in ("weight", "bias"):
        parts = [getattr(layer, name) for layer in layers]
        if all(part is None for part in parts) and name == "bias":
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
    return weight.t(), bias


def _norm(module: RMSNorm, width: int, weight: Tensor | None = None) -> Norm:
    """RMSNorm in four operations: x / sqrt(|x|^2 + width eps) * (sqrt(width) weight). Lower dtypes go the usual way.

    weight: in place of the module's own, broadcast over heads.
    """
    raw = (module.weight if weight is None else weight).detach()
    if raw.dtype != torch.float32:
        return _plain_norm(module, raw)
    scaled = (raw + 1.0 if module.offset else raw) * width**0.5
    floor = torch.tensor([(width * module.eps) ** 0.5], device=raw.device)

    def norm(x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.div(x, size.hypot_(floor)).mul_(scaled)

    return norm


def _plain_norm(module: RMSNorm, raw: Tensor) -> Norm:
    eps, offset, size = module.eps, module.offset, (raw.shape[-1],)

    def norm(x: Tensor) -> Tensor:
        if offset:
            return (F.rms_norm(x.float(), size, None, eps) * (1.0 + raw.float())).to(x.dtype)
        return F.rms_norm(x, size, None, eps) * raw

    return norm


def _linear(x: Tensor, linear: Linear) -> Tensor:
    weight, bias = linear
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _add(x_ND: Tensor, y: Tensor, linear: Linear, norm: Norm | None) -> Tensor:
    """x + norm(linear(y)), in one operation where there is neither norm nor bias."""
    weight, bias = linear
    if norm is None and bias is None:
        return torch.addmm(x_ND, y, weight)
    out_ND = _linear(y, linear)
    return x_ND + (out_ND if norm is None else norm(out_ND))
