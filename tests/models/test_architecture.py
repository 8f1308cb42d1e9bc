"""Reading config.json: families, both spellings, and the refusal of everything unknown."""

from __future__ import annotations

from typing import Any

import pytest

from goodheart.models.architecture import NotNative, TransformerConfig
from goodheart.models.rotary import Rope

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def read(**changes: Any) -> TransformerConfig:
    return TransformerConfig.from_hf({**LLAMA, **changes})


def test_defaults_of_llama() -> None:
    c = read()
    assert (c.kv_heads, c.head_dim, c.norm_eps, c.max_length) == (4, 4, 1e-6, 2048)
    assert c.attention_scale == 0.5  # 1 / sqrt(4)
    assert c.windows == (None,) * 4
    assert c.ropes == (Rope("default", 10_000.0),) * 4


def test_old_and_new_spelling_of_rotary_settings() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = read(rope_theta=500_000.0, rope_scaling=scaling)
    new = read(rope_parameters={"rope_theta": 500_000.0, **scaling})
    assert old.ropes == new.ropes
    assert old.ropes[0] is not None
    assert old.ropes[0].kind == "llama3"
    oldest = read(rope_scaling={"type": "linear", "factor": 2.0})
    assert oldest.ropes[0] == Rope("linear", 10_000.0, (("factor", 2.0),))


def test_windows_of_each_family() -> None:
    assert read(model_type="mistral", sliding_window=7).windows == (7, 7, 7, 7)
    assert read(model_type="mistral", sliding_window=None).windows == (None,) * 4
    assert read(model_type="qwen2", sliding_window=7).windows == (None,) * 4  # use_sliding_window is off
    qwen = read(model_type="qwen2", sliding_window=7, use_sliding_window=True, max_window_layers=3)
    assert qwen.windows == (None, None, None, 7)
    assert read(model_type="gemma2", sliding_window=7).windows == (7, None, 7, None)
    gemma3 = read(model_type="gemma3_text", sliding_window=7, sliding_window_pattern=3)
    assert gemma3.windows == (7, 7, None, 7)
    assert [r.theta for r in gemma3.ropes if r] == [10_000.0, 10_000.0, 1_000_000.0, 10_000.0]
    listed = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert read(model_type="gemma2", sliding_window=7, layer_types=listed).windows == (None, 7, None, None)


def test_smollm3_has_layers_without_positions() -> None:
    c = read(model_type="smollm3")
    assert [r is None for r in c.ropes] == [False, False, False, True]
    listed = read(model_type="smollm3", no_rope_layers=[0, 1, 1, 1])
    assert [r is None for r in listed.ropes] == [True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"model_type": None}, "model_type None"),
        ({"attention_multiplier": 0.5}, "unknown setting attention_multiplier"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"model_type": "gemma", "hidden_act": "silu"}, "activation 'silu'"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "rope setting beta"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "by layer type"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"num_key_value_heads": 3}, "4 query heads over 3"),
        ({"hidden_size": 12}, "of size 3"),
        ({"intermediate_size": [1, 2]}, "intermediate_size"),
    ],
)
def test_unknown_means_not_native(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotNative, match=reason):
        read(**changes)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"])
def test_missing_sizes_are_named(key: str) -> None:
    with pytest.raises(NotNative, match=key):
        TransformerConfig.from_hf({k: v for k, v in LLAMA.items() if k != key})


def test_unknown_settings_that_are_off_are_no_obstacle() -> None:
    assert read(quantization_config=None, some_new_switch=False, something=[]).width == 16


def test_written_config_has_dtype_and_class() -> None:
    written = read(dtype="float32", architectures=["LlamaForSequenceClassification"], id2label={"0": "A"}).to_hf(
        "bfloat16"
    )
    assert written["torch_dtype"] == "bfloat16"
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert "dtype" not in written
    assert "id2label" not in written
    assert written["intermediate_size"] == 40
