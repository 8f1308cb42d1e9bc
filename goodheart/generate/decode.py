"""One decoding step of our own decoder with as few operations as possible: same numbers as `Transformer.forward`.

A small model's step is bound by the number of operations, not by arithmetic, and a forward built for training spends
half of its time in modules, autograd functions and pointer checks. Here each layer is about twenty plain operations on
tensors looked up beforehand. For any device and dtype; `compiled.py` is faster on CPU.

Shapes: N running rows, D width, H query heads, G key/value heads, d head size, A = H + 2G, F MLP width,
X = N * G, g = H / G.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from goodheart.generate.layers import Linear, PlainLayer, PlainModel
from goodheart.generate.steps import Step

Norm = Callable[[Tensor], Tensor]
Keep = Callable[[Tensor], Tensor]


class Decoder:
    """Runs one token per row through a `PlainModel`.

    keep: given every tensor that is computed from the weights here, and returns the one to use, with these numbers:
    whoever records steps wants it at the same place each time (`graphs.py`).
    """

    def __init__(self, model: PlainModel, keep: Keep = lambda tensor: tensor) -> None:
        self.model, self.c = model, model.config
        self.turns = {rope: keep(table) for rope, table in model.turns.items()}
        self.final_norm = _norm(model.final_norm, model, keep)
        self.layers = [_Layer(layer, model, keep) for layer in model.layers]

    @torch.inference_mode()
    def step(self, tokens_N: Tensor, step: Step) -> Tensor:
        """step: prepared for these rows (`KVCache.step`). -> hidden_ND after the final norm."""
        c = self.c
        N, H, G, half = len(tokens_N), c.heads, c.kv_heads, c.head_dim // 2
        x_ND = self.model.embedding_VD.index_select(0, tokens_N)
        if self.model.embedding_scale is not None:
            x_ND.mul_(self.model.embedding_scale)
        turns = {
            rope: table.index_select(0, step.positions_N).unsqueeze(1).unbind(2) for rope, table in self.turns.items()
        }
        for index, layer in enumerate(self.layers):
            qkv_NAd = _linear(layer.before_attention(x_ND), layer.qkv).view(N, -1, c.head_dim)
            qk, v_NGd = qkv_NAd.split((H + G, G), 1)
            if layer.head_norm is not None:
                qk = layer.head_norm(qk)
            if layer.plain.rope is not None:
                cos, sin = turns[layer.plain.rope]
                qk = torch.addcmul(qk * cos, qk.roll(half, 2), sin)
            q_NHd, k_NGd = qk.split((H, G), 1)
            step.write(index, torch.cat((k_NGd, v_NGd), 1).view(-1, c.head_dim))
            out_Xgd = step.read(
                index,
                q_NHd.reshape(N * G, -1, c.head_dim),
                scale=c.attention_scale,
                window=layer.plain.window,
                softcap=c.attention_softcap,
            )
            x_ND = _add(x_ND, out_Xgd.view(N, -1), layer.out, layer.after_attention)
            gate_NF, up_NF = _linear(layer.before_mlp(x_ND), layer.gate_up).chunk(2, 1)
            act_NF = F.silu(gate_NF) if c.activation == "silu" else F.gelu(gate_NF, approximate="tanh")
            x_ND = _add(x_ND, act_NF.mul_(up_NF), layer.down, layer.after_mlp)
        return self.final_norm(x_ND)


class _Layer:
    """A `PlainLayer` with norms to call, and weights transposed for matmuls (views)."""

    def __init__(self, layer: PlainLayer, model: PlainModel, keep: Keep) -> None:
        self.plain, c = layer, model.config
        self.qkv, self.out, self.gate_up, self.down = ((weight.t(), bias) for weight, bias in layer.matmuls)
        self.before_attention = _norm(layer.before_attention, model, keep)
        self.before_mlp = _norm(layer.before_mlp, model, keep)
        after = (layer.after_attention, layer.after_mlp)
        self.after_attention, self.after_mlp = (None if w is None else _norm(w, model, keep) for w in after)
        self.head_norm: Norm | None = None
        if layer.q_norm is not None and layer.k_norm is not None:
            per_head = torch.cat((layer.q_norm.expand(c.heads, -1), layer.k_norm.expand(c.kv_heads, -1)))
            self.head_norm = _norm(per_head, model, keep)


def _norm(weight: Tensor, model: PlainModel, keep: Keep) -> Norm:
    """RMSNorm over the last dimension of the weight; in float32 as x / sqrt(|x|^2 + width eps) * (sqrt(width) weight),
    which is four operations."""
    width, eps = weight.shape[-1], model.config.norm_eps
    if model.embedding_VD.dtype != torch.float32:  # Gemma's weight is float32 and multiplies before rounding
        weight = keep(weight)
        return lambda x: (F.rms_norm(x.to(weight.dtype), (width,), None, eps) * weight).to(x.dtype)
    scaled = keep(weight * width**0.5)
    floor = keep(torch.full((1,), (width * eps) ** 0.5, dtype=weight.dtype, device=weight.device))

    def norm(x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.div(x, size.hypot_(floor)).mul_(scaled)

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
