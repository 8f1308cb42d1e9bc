"""The engine on decoders of transformers: with their cache where it is plain keys and values, without it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from goodheart.generate.engine import Engine
from goodheart.generate.hf_cache import HFCache, caches_plainly
from goodheart.generate.runners import HFRunner, RecomputingRunner
from goodheart.generate.sampling import SamplingParams
from goodheart.models.hf import HFCausal
from goodheart.models.load import load_causal
from tests.generate.test_engine import (
    LENGTHS,
    LIMITS,
    largest_difference,
    some_prompts,
    transformers_greedy,
)
from tests.models.families import OTHERS, build, saved

transformers = pytest.importorskip("transformers")

WINDOW = {"sliding_window": 6, "rope_parameters": None}


def loaded(name: str, folder: Path, **changes: Any) -> tuple[Any, HFCausal]:
    hf = saved(name, folder, **changes)
    model = load_causal(folder)
    assert isinstance(model, HFCausal)
    return hf, model


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_equals_transformers_and_logps_the_trainer(name: str, tmp_path: Path) -> None:
    hf, model = loaded(name, tmp_path)
    prompts = some_prompts(LENGTHS[:6])
    engine = Engine(model, slots=3)
    made = engine.generate(prompts, SamplingParams(LIMITS[:6], greedy=True, eos_ids=(5, 11)))
    assert [g.ids for g in made] == [
        transformers_greedy(hf, prompt, limit, (5, 11)) for prompt, limit in zip(prompts, LIMITS, strict=False)
    ]
    # Learned positions show whether padding shifted them (GPT-2, OPT).
    params = SamplingParams(LIMITS[:6], temperature=0.8, seed=2, eos_ids=(5, 11))
    one, three, many = (Engine(model, slots=n).generate(prompts, params) for n in (1, 3, 64))
    assert [g.ids for g in one] == [g.ids for g in three] == [g.ids for g in many]
    assert max(largest_difference(model, made, 0.8) for made in (one, three, many)) < 1e-4
    assert engine._hf_runner is (RecomputingRunner if name == "phi3-longrope" else HFRunner)


def test_a_windowed_model_runs_without_its_cache(tmp_path: Path) -> None:
    hf, model = loaded("phi3-longrope", tmp_path, **WINDOW)
    assert not caches_plainly(hf)
    engine, prompts = Engine(model, slots=3), some_prompts(LENGTHS[:4])
    made = engine.generate(prompts, SamplingParams(12, greedy=True))
    assert engine._hf_runner is RecomputingRunner
    assert [g.ids for g in made] == [transformers_greedy(hf, prompt, 12, ()) for prompt in prompts]


def test_a_recurrent_model_runs_without_its_cache() -> None:
    config = transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)
    torch.manual_seed(0)
    hf = transformers.MambaForCausalLM(config).eval()
    engine, prompts = Engine(HFCausal(hf, config.to_dict())), some_prompts(LENGTHS[:3])
    made = engine.generate(prompts, SamplingParams(6, greedy=True))
    assert engine._hf_runner is RecomputingRunner
    assert [g.ids for g in made] == [transformers_greedy(hf, prompt, 6, ()) for prompt in prompts]


def test_a_cache_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the architecture ignored the mask over left padding.
    monkeypatch.setattr(HFCache, "mask", lambda self, ids_BT: None)
    hf = build("gpt2")
    engine, prompts = Engine(HFCausal(hf, hf.config.to_dict())), some_prompts(LENGTHS[:3])
    made = engine.generate(prompts, SamplingParams(6, greedy=True))
    assert engine._hf_runner is RecomputingRunner
    assert [g.ids for g in made] == [transformers_greedy(hf, prompt, 6, ()) for prompt in prompts]


def test_columns_that_no_row_uses_are_dropped() -> None:
    hf = build("gpt2")
    runner = HFRunner(HFCausal(hf, hf.config.to_dict()), torch.device("cpu"))
    runner.admit([[3] * 20, [4] * 5])
    runner.step(torch.tensor([5, 6]))
    assert runner.cache.past.get_seq_length() == 21
    runner.keep([1])
    assert runner.cache.past.get_seq_length() == 6
    assert runner.cache.past.layers[0].keys.shape[0] == 1
    runner.admit([[7] * 9])
    assert runner.cache.past.get_seq_length() == 9
    runner.keep([])
    assert runner.cache.past.get_seq_length() == 0
