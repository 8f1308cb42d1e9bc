"""How much room prompts have."""

from __future__ import annotations

from pathlib import Path

import pytest

from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import ConfigError
from goodheart.judges.compare import CompareJudge, first_is_best
from goodheart.judges.load import Judge
from goodheart.judges.reward import RewardJudge
from goodheart.models.heads import reward_from_causal
from goodheart.models.load import load_causal, new_model
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.writer import room_for_prompts
from goodheart.train.config import TrainingSettings


def test_a_prompt_has_what_the_answer_leaves(tiny_model: Path, tmp_path: Path) -> None:
    policy, template = load_causal(tiny_model), Template(load_tokenizer(tiny_model))
    spec = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 100}
    reward = reward_from_causal(new_model(spec, vocab_size=template.vocab_size, seed=7))
    reads_100: Judge = RewardJudge(reward, template)
    reads_all: Judge = CompareJudge(first_is_best, "demonstration")

    def room(judge: Judge, max_new_tokens: int, max_length: int | None = None) -> int:
        config = TrainingSettings(model=str(tiny_model), out=tmp_path, max_length=max_length)
        return room_for_prompts(config, SamplingSettings(max_new_tokens=max_new_tokens), policy, judge)

    assert room(reads_all, 40) == 88  # the policy reads 128
    assert room(reads_100, 40, max_length=100) == 60
    assert room(reads_all, 127) == 1
    with pytest.raises(ConfigError, match=r"max_new_tokens 128 leaves no room for a prompt in 128 tokens"):
        room(reads_all, 128)
    with pytest.raises(
        ConfigError, match=r"may have 128 tokens, but the reward model reads 100: set max_length to 100"
    ):
        room(reads_100, 40)
