"""The engine on our decoder: against transformers, against the trainer's log-probabilities, and its bookkeeping."""

from __future__ import annotations

import weakref
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from goodheart.errors import ConfigError, HealthError, ModelError
from goodheart.generate import build
from goodheart.generate.compiled import CompiledRunner
from goodheart.generate.engine import Engine, Generation
from goodheart.generate.layers import plain_model
from goodheart.generate.runners import NativeRunner
from goodheart.generate.sampling import SamplingParams
from goodheart.generate.structures import CompiledCache
from goodheart.models.causal import CausalLM, completion_logprobs
from goodheart.models.load import LoraSpec, add_lora, load_causal
from goodheart.models.new import new_model
from goodheart.models.transformer import Transformer
from tests.models.families import VOCAB, saved, some_ids

LENGTHS = [1, 17, 4, 30, 9, 9, 2, 23, 12, 5]
LIMITS = [40, 3, 25, 1, 12, 31, 40, 8, 19, 2]


def small_model(seed: int = 0, vocab: int = VOCAB, max_length: int = 128) -> Transformer:
    """Sharp enough that tokens differ, flat enough that many are possible."""
    spec = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_length,
    }
    model = new_model(spec, vocab, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def some_prompts(lengths: list[int] = LENGTHS) -> list[list[int]]:
    return [some_ids(1, n, seed=i)[0].tolist() for i, n in enumerate(lengths)]


def trainer_logps(model: CausalLM, made: list[Generation], temperature: float) -> list[list[float]]:
    """Log-probabilities of the new tokens as training computes them, in one padded batch."""
    longest = max(len(g.prompt_ids) + len(g.ids) for g in made)
    ids = torch.zeros(len(made), longest, dtype=torch.long)
    mask = torch.zeros(len(made), longest, dtype=torch.bool)
    for i, g in enumerate(made):
        start, end = len(g.prompt_ids), len(g.prompt_ids) + len(g.ids)
        ids[i, :end] = torch.tensor(g.prompt_ids + g.ids)
        mask[i, start:end] = True
    with torch.no_grad():
        logps = completion_logprobs(model, ids, mask, temperature=temperature).logps_BT
    return [logps[i][mask[i]].tolist() for i in range(len(made))]


def largest_difference(model: CausalLM, made: list[Generation], temperature: float) -> float:
    expected = trainer_logps(model, made, temperature)
    return max(abs(a - b) for g, e in zip(made, expected, strict=True) for a, b in zip(g.logps, e, strict=True))


def transformers_greedy(hf: object, prompt: list[int], limit: int, eos_ids: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    out = hf.generate(  # type: ignore[attr-defined]
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, pad_token_id=0,
        eos_token_id=list(eos_ids) or None,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "name", ["llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3"]
)
def test_greedy_equals_transformers(name: str, tmp_path: Path) -> None:
    hf = saved(name, tmp_path)
    engine = Engine(load_causal(tmp_path), slots=4)
    eos_ids = (5, 11, 60)
    prompts, limits = some_prompts(LENGTHS[:7]), [*LIMITS[:6], 30]
    made = engine.generate(prompts, SamplingParams(limits, greedy=True, eos_ids=eos_ids))
    for g, prompt, limit in zip(made, prompts, limits, strict=True):
        assert g.prompt_ids == prompt
        assert g.ids == transformers_greedy(hf, prompt, limit, eos_ids)


def test_a_real_model_greedy_and_every_eos(stories260k: Path) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    model = load_causal(stories260k)
    prompts = [[1], [1, 403, 407, 261, 378], [1, 421, 395, 285, 338, 299, 400], [1, 317]]
    made = Engine(model, slots=3).generate(prompts, SamplingParams(120, greedy=True, eos_ids=(2, 1)))
    for g, prompt in zip(made, prompts, strict=True):
        assert g.ids == transformers_greedy(hf, prompt, 120, (2, 1))
    drawn = Engine(model).generate([[1]] * 24, SamplingParams(400, seed=1, eos_ids=(2, 1)))
    ended = [g for g in drawn if g.finish == "eos"]
    assert len(ended) >= 12  # most of its stories are over within 400 tokens, always by <s>
    assert all(g.ids[-1] == 1 and 1 not in g.ids[:-1] for g in ended)
    assert largest_difference(model, drawn, 1.0) < 1e-4


@pytest.fixture(params=["C", "PyTorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine with its C code and without."""
    if request.param == "PyTorch":
        monkeypatch.setattr(build, "load", lambda dtype: None)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_logps_are_the_trainers_and_slots_change_nothing(temperature: float) -> None:
    model = small_model()
    prompts, limits = some_prompts(LENGTHS * 4), LIMITS * 4
    params = SamplingParams(limits, temperature=temperature, seed=7, eos_ids=(4, 40))
    one, three, many = (Engine(model, slots=n).generate(prompts, params) for n in (1, 3, 64))
    assert [g.ids for g in one] == [g.ids for g in three] == [g.ids for g in many]
    assert [g.finish for g in one] == [g.finish for g in many]
    assert sum(len(g.ids) for g in many) > 400
    assert len({tuple(g.ids) for g in many}) > 30
    for made in (one, three, many):
        assert largest_difference(model, made, temperature) < 1e-4


def test_truncated_logps_are_of_what_could_be_drawn() -> None:
    model = small_model()
    made = Engine(model).generate(some_prompts(), SamplingParams(20, top_k=3, temperature=1.5))
    for g, full in zip(made, trainer_logps(model, made, 1.5), strict=True):
        assert all(mine >= theirs - 1e-5 for mine, theirs in zip(g.logps, full, strict=True))
        assert max(mine - theirs for mine, theirs in zip(g.logps, full, strict=True)) > 0.01
        assert min(g.logps) >= -20.0
    only_one = Engine(model).generate(some_prompts(), SamplingParams(20, top_k=1))
    assert {logp for g in only_one for logp in g.logps} == {0.0}


@pytest.mark.usefixtures("way")
def test_samples_follow_the_models_distribution() -> None:
    # Two tokens from a vocabulary of 5: all 25 outcomes enumerated with the whole forward pass, 8000 draws.
    model, prompt, draws = small_model(vocab=5), [1, 3, 2], 8000
    head = model.unembed().weight_VD
    with torch.no_grad():
        first = (model(torch.tensor([prompt]))[0, -1] @ head.t() / 1.3).double().softmax(0)
        second = (model(torch.tensor([[*prompt, t] for t in range(5)]))[:, -1] @ head.t() / 1.3).double().softmax(1)
    expected = {(a, b): draws * float(first[a] * second[a, b]) for a, b in product(range(5), repeat=2)}
    made = Engine(model, slots=50).generate([prompt] * draws, SamplingParams(2, temperature=1.3, seed=2))
    seen = Counter(tuple(g.ids) for g in made)
    chi2 = sum((seen[pair] - e) ** 2 / e for pair, e in expected.items())
    assert min(expected.values()) > 5
    assert chi2 < 51.2  # 24 degrees of freedom: 0.1 % of seeds are above


def test_weights_are_shared_and_updates_are_seen_at_once() -> None:
    model = small_model()
    engine, prompts, params = Engine(model), some_prompts(), SamplingParams(12, seed=1)
    before = engine.generate(prompts, params)
    assert largest_difference(model, before, 1.0) < 1e-4
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    ids = some_ids(2, 8)
    loss = -completion_logprobs(model.train(), ids, torch.ones_like(ids, dtype=torch.bool)).logps_BT.mean()
    loss.backward()  # works on parameters that were just sampled from
    assert all(p.grad is not None and not p.is_inference() for p in model.parameters())
    optimizer.step()
    after = engine.generate(prompts, params)
    assert model.training  # as it was found
    assert largest_difference(model, before, 1.0) > 1e-2
    assert largest_difference(model, after, 1.0) < 1e-4


def test_finished_rows_leave_the_batch_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []  # rows at the start of each step, or of several in one call
    worked: list[int] = []  # tokens drawn in it
    step, run = NativeRunner.step, CompiledRunner.run

    def counted_step(self: NativeRunner, tokens_N: torch.Tensor) -> torch.Tensor:
        started.append(len(tokens_N))
        worked.append(len(tokens_N))
        return step(self, tokens_N)

    def counted_run(self: CompiledRunner, *given: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        started.append(len(self.slots))
        drawn = run(self, *given)
        worked.append(sum(drawn[2]))
        return drawn

    monkeypatch.setattr(NativeRunner, "step", counted_step)
    monkeypatch.setattr(CompiledRunner, "run", counted_run)
    prompts, limits = some_prompts([6] * 30), [1 + 3 * i for i in range(30)]
    made = Engine(small_model(), slots=8).generate(prompts, SamplingParams(limits))
    assert [len(g.ids) for g in made] == limits
    assert sum(worked) == sum(limits) - 30  # the first token of each comes from its prompt; no step is wasted
    assert max(started) == 8
    alone = -(-max(limits) // (16 if way == "C" else 1))  # at the end there is nothing to fill slots with
    assert started.count(8) > 0.8 * len(started) - alone  # freed slots are filled again


def test_limits_eos_and_stop() -> None:
    model = small_model()
    prompts = some_prompts()
    free = Engine(model).generate(prompts, SamplingParams(LIMITS, seed=3))
    assert [len(g.ids) for g in free] == LIMITS
    assert {g.finish for g in free} == {"length"}
    eos = free[0].ids[4]
    cut = Engine(model, slots=3).generate(prompts, SamplingParams(LIMITS, seed=3, eos_ids=(VOCAB + 7, eos)))
    for a, b in zip(free, cut, strict=True):
        end = a.ids.index(eos) + 1 if eos in a.ids else len(a.ids)
        assert b.ids == a.ids[:end]
        assert b.finish == ("eos" if eos in a.ids else "length")
    pair = free[0].ids[1:3]
    stopped = Engine(model).generate(prompts, SamplingParams(LIMITS, seed=3), stop=lambda ids: ids[-2:] == pair)
    assert stopped[0].ids == free[0].ids[:3]
    assert stopped[0].finish == "stop"
    assert len(stopped[0].logps) == 3


def test_callbacks_and_streams_tell_the_same_story() -> None:
    model = small_model()
    prompts, params = some_prompts(), SamplingParams(LIMITS, seed=3, eos_ids=(4, 40))
    told: list[list[int]] = [[] for _ in prompts]
    finished: list[tuple[int, Generation]] = []
    engine = Engine(model, slots=3)
    made = engine.generate(
        prompts, params, on_token=lambda i, t: told[i].append(t), on_finish=lambda i, g: finished.append((i, g))
    )
    assert told == [g.ids for g in made]
    assert dict(finished) == dict(enumerate(made))
    assert [i for i, _ in finished] != sorted(i for i, _ in finished)  # as they ended
    alone = SamplingParams(LIMITS[0], seed=3, eos_ids=(4, 40))
    assert list(engine.stream(prompts[0], alone)) == made[0].ids
    stream = engine.stream(prompts[0], alone)
    assert next(stream) == made[0].ids[0]
    again = engine.generate(prompts, params)  # in the middle of a stream
    assert [g.ids for g in again] == [g.ids for g in made]
    assert list(stream) == made[0].ids[1:]
    pair = made[0].ids[1:3]
    assert list(engine.stream(prompts[0], alone, lambda ids: ids[-2:] == pair)) == made[0].ids[:3]


def test_sequence_ids_draw_the_same_in_pieces() -> None:
    engine, prompts = Engine(small_model(), slots=4), some_prompts()
    whole = engine.generate(prompts, SamplingParams(10, seed=3))
    part = engine.generate(prompts[6:], SamplingParams(10, seed=3), sequence_ids=[6, 7, 8, 9])
    assert [g.ids for g in part] == [g.ids for g in whole[6:]]
    assert [g.ids for g in engine.generate(prompts, SamplingParams(10, seed=4))] != [g.ids for g in whole]


def test_copies_of_a_prompt_are_computed_once_and_drawn_apart(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = small_model(), some_prompts()[3]
    seen: list[int] = []
    model.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    read = CompiledRunner._read
    monkeypatch.setattr(CompiledRunner, "_read", lambda self, p, s, b: (seen.append(len(p)), read(self, p, s, b))[1])
    made = Engine(model, slots=6).generate([prompt] * 6, SamplingParams(8, seed=1))
    assert seen == [1]
    assert len({tuple(g.ids) for g in made}) == 6
    assert largest_difference(model, made, 1.0) < 1e-4


def kept(engine: Engine) -> torch.Tensor:
    """Where the engine's keys lie between calls."""
    assert engine._cache is not None
    return engine._cache.keys if isinstance(engine._cache, CompiledCache) else engine._cache.store.kv


@pytest.mark.usefixtures("way")
def test_memory_is_flat_in_the_number_of_prompts() -> None:
    engine, sizes = Engine(small_model(), slots=4), []
    for count in (8, 300):
        engine.generate(some_prompts([6] * count), SamplingParams(10))
        sizes.append(kept(engine).numel())
    assert sizes[0] == sizes[1]
    store = kept(engine)
    engine.generate(some_prompts([3] * 2), SamplingParams(5))
    assert kept(engine) is store  # for the next call
    engine.release()
    assert engine._cache is None


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("count", "length"), [(4, 6), (2, 60)])  # more slots, longer rows
def test_a_cache_that_does_not_fit_is_freed_before_its_successor_is_made(
    count: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(small_model(), slots=4)
    engine.generate(some_prompts([6] * 2), SamplingParams(5))
    assert engine._cache is not None
    old, alive = weakref.ref(engine._cache), []
    made = type(engine._cache).__init__
    monkeypatch.setattr(
        type(engine._cache), "__init__", lambda self, *given: (alive.append(old() is not None), made(self, *given))[1]
    )
    engine.generate(some_prompts([length] * count), SamplingParams(5))
    assert alive == [False]


def test_a_model_on_two_devices_is_not_plain() -> None:
    model = small_model()
    assert plain_model(model, 8, torch.float32) is not None
    model.model.norm.to("meta")
    assert plain_model(model, 8, torch.float32) is None
    assert Engine(model).way == "PyTorch"


def test_no_prompts_no_answers() -> None:
    assert Engine(small_model()).generate([], SamplingParams(5)) == []


def test_bad_calls_are_refused() -> None:
    engine = Engine(small_model(max_length=32))
    with pytest.raises(ModelError, match="prompt 1 has 30 tokens, and with 3 new tokens it exceeds the limit of 32"):
        engine.generate([[1], [1] * 30], SamplingParams(3))
    assert len(engine.generate([[1] * 29], SamplingParams(3))[0].ids) == 3
    with pytest.raises(ModelError, match="limit of 16"):
        Engine(engine.model, max_length=16).generate([[1] * 15], SamplingParams(3))
    with pytest.raises(ModelError, match="prompt 0 is empty"):
        engine.stream([], SamplingParams(3))
    with pytest.raises(ConfigError, match="max_new_tokens has 1 entries for 2 prompts"):
        engine.generate([[1], [2]], SamplingParams([3]))
    with pytest.raises(ConfigError, match="sequence_ids has 1 entries"):
        engine.generate([[1], [2]], SamplingParams(3), sequence_ids=[1])
    with pytest.raises(ConfigError, match="slots"):
        Engine(engine.model, slots=0)


@pytest.mark.usefixtures("way")
def test_broken_weights_are_named_and_leave_nothing_behind() -> None:
    model, prompts = small_model(), some_prompts()
    engine = Engine(model)
    good = engine.generate(prompts, SamplingParams(5))
    weight = model.model.layers[0].mlp.down_proj.weight.detach()  # type: ignore[union-attr,operator,index]
    kept = weight.clone()
    weight[0, 0] = float("nan")
    with pytest.raises(HealthError, match="not-a-number at new token 0 of prompt"):
        engine.generate(prompts, SamplingParams(5))
    weight.copy_(kept)
    assert [g.ids for g in engine.generate(prompts, SamplingParams(5))] == [g.ids for g in good]


def test_a_failing_callback_leaves_the_engine_usable() -> None:
    engine, prompts = Engine(small_model(), slots=3), some_prompts()
    good = engine.generate(prompts, SamplingParams(5))

    def fail(index: int, token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, SamplingParams(5), on_token=fail)
    assert [g.ids for g in engine.generate(prompts, SamplingParams(5))] == [g.ids for g in good]


def test_adapters_take_the_general_way() -> None:
    model, prompts = small_model(), some_prompts()
    plain = Engine(model).generate(prompts, SamplingParams(8, seed=1))
    add_lora(model, LoraSpec(rank=4))
    assert [g.ids for g in Engine(model).generate(prompts, SamplingParams(8, seed=1))] == [g.ids for g in plain]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    tuned = Engine(model).generate(prompts, SamplingParams(8, seed=1))
    assert [g.ids for g in tuned] != [g.ids for g in plain]
    assert largest_difference(model, tuned, 1.0) < 1e-4


@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16(way: str) -> None:
    model, prompts = small_model(), some_prompts()
    if way == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        made = Engine(model).generate(prompts, SamplingParams(20, seed=1))
        expected = trainer_logps(model, made, 1.0)
    differences = [abs(a - b) for g, e in zip(made, expected, strict=True) for a, b in zip(g.logps, e, strict=True)]
    assert sum(differences) / len(differences) < 0.02
    assert max(differences) < 0.2


def test_float64() -> None:
    model = small_model().double()
    made = Engine(model).generate(some_prompts(), SamplingParams(10, seed=1))
    assert largest_difference(model, made, 1.0) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda(dtype: torch.dtype) -> None:
    model = small_model().to("cuda", dtype)
    made = Engine(model, slots=4).generate(some_prompts(), SamplingParams(20, seed=1, eos_ids=(4,)))
    again = Engine(model, slots=4).generate(some_prompts(), SamplingParams(20, seed=1, eos_ids=(4,)))
    assert [g.ids for g in made] == [g.ids for g in again]
    assert all(logp < 0 for g in made for logp in g.logps)
