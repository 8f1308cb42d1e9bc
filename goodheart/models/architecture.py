"""What a Hugging Face `config.json` says, as the few numbers our decoder needs, or the reason why it cannot be ours.

`TransformerConfig.from_hf` knows eight families. A setting it has never heard of makes the model not native (it then
runs through `models/hf.py`) instead of running slightly wrong: a new key in a config usually means a new term in a
formula. Both the transformers 4 spelling (`rope_theta`, `rope_scaling`) and the transformers 5 one
(`rope_parameters`) are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from goodheart.models.rotary import OPTIONAL_ROPE_SETTINGS, ROPE_TYPES, Rope

# Keys that do not change the forward pass of a text decoder (dropout is always off here).
_HARMLESS = frozenset(
    """
    _attn_implementation _name_or_path _sliding_window_pattern architectures attention_dropout attn_implementation
    bos_token_id cache_implementation chunk_size_feed_forward decoder_start_token_id dtype eos_token_id
    forced_bos_token_id forced_eos_token_id id2label initializer_range is_llama_config label2id max_length min_length
    model_type num_labels output_attentions output_hidden_states output_router_logits pad_token_id prefix pretraining_tp
    problem_type return_dict rope_interleaved sep_token_id task_specific_params tokenizer_class torch_dtype
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
    """.split()  # noqa: SIM905
)

# Keys that we read below, in any family.
_READ = frozenset(
    """
    attention_bias attn_logit_softcapping final_logit_softcapping head_dim hidden_act hidden_activation hidden_size
    intermediate_size layer_types max_position_embeddings max_window_layers mlp_bias no_rope_layer_interval
    no_rope_layers num_attention_heads num_hidden_layers num_key_value_heads query_pre_attn_scalar rms_norm_eps
    rope_local_base_freq rope_parameters rope_scaling rope_theta sliding_window sliding_window_pattern
    tie_word_embeddings use_sliding_window vocab_size
    """.split()  # noqa: SIM905
)
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


class NotNative(ValueError):
    """The config describes a model that the decoder in `transformer.py` does not compute; the message says why."""


@dataclass(frozen=True)
class Family:
    """What sets a family apart from Llama. Values are what transformers assumes when config.json is silent."""

    norm_offset: bool = False  # RMSNorm multiplies by 1 + weight, and token embeddings by sqrt(width) (Gemma)
    sandwich_norms: bool = False  # a norm after attention and MLP too, before each is added (Gemma 2, 3)
    qk_norm: bool = False  # RMSNorm of each query and key head before rotation (Qwen3, Gemma 3)
    qkv_bias: bool = False  # always a bias on q, k, v and never on the output (Qwen2)
    tie: bool = False
    head_dim: int | None = None  # None: width / heads
    theta: float = 10_000.0
    eps: float = 1e-6
    max_length: int = 32_768
    window_every_layer: bool = False  # `sliding_window` alone turns windows on in all layers (Mistral)
    window_pattern: int = 0  # every n-th layer is global, the others have windows (Gemma 2: 2, Gemma 3: 6), 0 = none
    window: int | None = None
    nope_interval: int = 0  # every n-th layer has no rotary positions (SmolLM3: 4), 0 = none
    query_scalar: int | None = None  # attention scores are divided by its root; None: head_dim
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    local_theta: float | None = None  # rotary base of the layers with windows, None: the same (Gemma 3)


_GEMMA = Family(norm_offset=True, tie=True, head_dim=256, max_length=8192)
_GEMMA2 = replace(_GEMMA, sandwich_norms=True, window=4096, query_scalar=256)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(max_length=2048),
    "mistral": Family(max_length=131_072, window_every_layer=True, window=4096),
    "qwen2": Family(qkv_bias=True, window=4096),
    "qwen3": Family(qk_norm=True, head_dim=128, window=4096),
    "smollm3": Family(tie=True, theta=2_000_000.0, nope_interval=4),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA2, window_pattern=2, attention_softcap=50.0, logit_softcap=30.0),
    "gemma3_text": replace(
        _GEMMA2, max_length=131_072, qk_norm=True, window_pattern=6, theta=1_000_000.0, local_theta=10_000.0
    ),
}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and switches of one dense decoder. Build it with `from_hf`."""

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_length: int  # positions
    norm_eps: float
    activation: str  # "silu" or "gelu_pytorch_tanh"
    tie: bool  # output layer = token embeddings
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sandwich_norms: bool
    norm_offset: bool
    embedding_scale: float | None  # None = off
    attention_scale: float
    attention_softcap: float | None  # None = off
    logit_softcap: float | None  # None = off
    windows: tuple[int | None, ...]  # per layer: tokens a token sees, itself included; None = all
    ropes: tuple[Rope | None, ...]  # per layer; None = no rotary positions
    hf: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> TransformerConfig:
        """Read the dictionary of a `config.json`.

        -> the config. Raises NotNative (with the reason) for an unknown family, setting or combination.
        """
        name = hf.get("model_type")
        family = FAMILIES.get(str(name))
        if family is None:
            raise NotNative(f"model_type {name!r} is not one of {', '.join(FAMILIES)}")
        unknown = [k for k, v in hf.items() if k not in _READ | _HARMLESS and v not in (None, False, [], {})]
        if unknown:
            raise NotNative(f"unknown setting {', '.join(sorted(unknown))} for {name}")
        wrong = [k for k in _SIZES if not isinstance(hf.get(k), int) or hf[k] < 1]
        if wrong:
            raise NotNative(f"config.json gives no whole number for {', '.join(wrong)}")
        width, heads, layers = hf["hidden_size"], hf["num_attention_heads"], hf["num_hidden_layers"]
        kv_heads = hf.get("num_key_value_heads") or heads
        head_dim = hf.get("head_dim") or family.head_dim or width // heads
        if heads % kv_heads or head_dim % 2:
            raise NotNative(f"{heads} query heads over {kv_heads} key heads of size {head_dim}")
        attention_bias = bool(hf.get("attention_bias", False))
        return cls(
            family=str(name),
            vocab_size=hf["vocab_size"],
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            mlp_width=hf["intermediate_size"],
            max_length=hf.get("max_position_embeddings", family.max_length),
            norm_eps=hf.get("rms_norm_eps", family.eps),
            activation=_activation(hf, family),
            tie=bool(hf.get("tie_word_embeddings", family.tie)),
            qkv_bias=family.qkv_bias or attention_bias,
            out_bias=attention_bias and not family.qkv_bias,
            mlp_bias=bool(hf.get("mlp_bias", False)),
            qk_norm=family.qk_norm,
            sandwich_norms=family.sandwich_norms,
            norm_offset=family.norm_offset,
            embedding_scale=width**0.5 if family.norm_offset else None,
            attention_scale=(hf.get("query_pre_attn_scalar", family.query_scalar) or head_dim) ** -0.5,
            attention_softcap=hf.get("attn_logit_softcapping", family.attention_softcap),
            logit_softcap=hf.get("final_logit_softcapping", family.logit_softcap),
            windows=_windows(hf, family, layers),
            ropes=_ropes(hf, family, layers),
            hf=dict(hf),
        )

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The dictionary to write as `config.json`, for weights of `dtype`; loads in transformers 4 and 5."""
        hf = {
            k: v for k, v in self.hf.items() if k not in ("torch_dtype", "dtype", "num_labels", "id2label", "label2id")
        }
        return {
            **hf,
            "architectures": [_CAUSAL_CLASS[self.family]],
            "torch_dtype": dtype,
            "vocab_size": self.vocab_size,
        }


_CAUSAL_CLASS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def _activation(hf: Mapping[str, Any], family: Family) -> str:
    name = (
        hf.get("hidden_activation") or hf.get("hidden_act") or ("gelu_pytorch_tanh" if family.norm_offset else "silu")
    )
    if family.norm_offset and name in ("gelu", "gelu_pytorch_tanh"):
        return "gelu_pytorch_tanh"  # the first Gemma configs say "gelu" and mean the tanh form, as transformers does
    if not family.norm_offset and name == "silu":
        return "silu"
    raise NotNative(f"activation {name!r}")


def _layer_types(hf: Mapping[str, Any], family: Family, layers: int) -> list[str]:
    """ "sliding_attention" or "full_attention" for each layer, by the rule of the family when config.json has no
    list.
    """
    types = hf.get("layer_types")
    if types is not None and not family.window_every_layer:
        if len(types) != layers or set(types) - {"sliding_attention", "full_attention"}:
            raise NotNative(f"layer_types {types} for {layers} layers")
        return list(types)
    if types is not None:
        raise NotNative("layer_types in a family that has none")
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or family.window_pattern
    if family.window_pattern:
        sliding = [bool((i + 1) % pattern) for i in range(layers)]
    elif family.window_every_layer:
        sliding = [True] * layers
    elif family.nope_interval:
        rotary = _uses_rope(hf, family, layers)
        sliding = [bool(hf.get("use_sliding_window")) and not rotary[i] for i in range(layers)]
    else:
        first = hf.get("max_window_layers", 28)
        sliding = [bool(hf.get("use_sliding_window")) and i >= first for i in range(layers)]
    return ["sliding_attention" if s else "full_attention" for s in sliding]


def _windows(hf: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    window = hf.get("sliding_window", family.window)
    switchable = not family.window_pattern and not family.window_every_layer
    if switchable and not hf.get("use_sliding_window", False):
        window = None
    return tuple(window if t == "sliding_attention" else None for t in _layer_types(hf, family, layers))


def _uses_rope(hf: Mapping[str, Any], family: Family, layers: int) -> list[bool]:
    if not family.nope_interval:
        return [True] * layers
    listed = hf.get("no_rope_layers")  # 1 = rotary positions, 0 = none, whatever the name says
    interval = hf.get("no_rope_layer_interval", family.nope_interval)
    return [bool(listed[i]) if listed else (i + 1) % interval != 0 for i in range(layers)]


def _ropes(hf: Mapping[str, Any], family: Family, layers: int) -> tuple[Rope | None, ...]:
    """One rotary embedding per layer. Gemma 3 has two bases: one for layers with windows, one for the global ones."""
    types = _layer_types(hf, family, layers)
    given = hf.get("rope_parameters") or {}
    nested = "full_attention" in given or "sliding_attention" in given
    top = {"rope_theta": hf["rope_theta"]} if "rope_theta" in hf else {}
    scaling = hf.get("rope_scaling") or {}
    full = {**top, **scaling, **(given.get("full_attention") or {} if nested else given)}
    local = full
    if family.local_theta is not None:
        theta = hf.get("rope_local_base_freq", family.local_theta)
        local = {"rope_theta": theta, **((given.get("sliding_attention") or {}) if nested else {})}
    elif nested:
        raise NotNative("rope_parameters by layer type")
    ropes = {"full_attention": _rope(full, hf, family.theta), "sliding_attention": _rope(local, hf, family.theta)}
    used = _uses_rope(hf, family, layers)
    return tuple(ropes[t] if used[i] else None for i, t in enumerate(types))


def _rope(settings: Mapping[str, Any], hf: Mapping[str, Any], theta: float) -> Rope:
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise NotNative(f"rope_type {kind!r} is not one of {', '.join(ROPE_TYPES)}")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"} | set(ROPE_TYPES[kind])
    unknown = [k for k, v in settings.items() if k not in known and v is not None]
    if kind != "default" and unknown:
        raise NotNative(f"rope setting {', '.join(sorted(unknown))} for {kind}")
    if (settings.get("partial_rotary_factor") or 1.0) != 1.0:
        raise NotNative("partial_rotary_factor")
    values = {k: settings[k] for k in ROPE_TYPES[kind] if settings.get(k) is not None}
    if "original_max_position_embeddings" in ROPE_TYPES[kind]:
        values.setdefault("original_max_position_embeddings", hf.get("max_position_embeddings"))
    lacking = [k for k in ROPE_TYPES[kind] if k not in values and k not in OPTIONAL_ROPE_SETTINGS]
    if lacking:
        raise NotNative(f"rope_type {kind} without {', '.join(lacking)}")
    return Rope(kind=kind, theta=float(settings.get("rope_theta") or theta), settings=tuple(sorted(values.items())))
