"""The plan of memory before a run beside what the run then took."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers

from goodheart.data.batches import Example
from goodheart.data.records import Prompt
from goodheart.data.template import Template
from goodheart.losses.logprobs import token_logprobs
from goodheart.models.causal import CausalLM, before
from goodheart.models.hf import HFCausal
from goodheart.models.load import load_causal
from goodheart.models.new import new_model
from goodheart.stages.actors import Actors
from goodheart.stages.policy_gradient import most_of
from goodheart.stages.settings.ppo import PPOConfig
from goodheart.stages.sft import SFTConfig
from goodheart.stages.sft import train as sft
from goodheart.train import memory
from goodheart.train.checkpoint import TrainState
from goodheart.train.memory import MemoryPlan, Most, cache_bytes, kept, looked_at
from goodheart.train.parallel import World

MIB = 2**20


def words(folder: Path, rows: int, length: int, *, prompt: int = 0, ragged: bool = False) -> Path:
    """prompt: words before the number that makes each another. ragged: answers have an eighth of the length or all."""
    file = folder / "rows.jsonl"
    text = ""
    for n in range(rows):
        size = length // 8 if ragged and n % 2 else length
        texts = {"completion": " no" * size, "chosen": " a" * size, "rejected": " b" * size}
        text += json.dumps({"prompt": f"{n}" + " so" * prompt, **texts, "label": n % 2 == 0}) + "\n"
    file.write_text(text, encoding="utf-8")
    return file


_RUN = """
import sys
from goodheart.loop.registry import stage
kind, rest = sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])
config, train = stage(kind).load_settings(), stage(kind).load()
from goodheart.train.config import build
train(build(config, sets=[f"{k}={v}" for k, v in rest.items()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "sets", "rows"),
    [
        ("sft", {"batch_size": "192", "max_tokens": "100000"}, {}),
        ("sft", {"batch_size": "256", "held_out": "0", "max_tokens": "100000"}, {"ragged": True}),
        ("reward", {"batch_size": "96", "held_out": "0", "max_tokens": "100000"}, {}),
        ("sft", {"batch_size": "256", "max_tokens": "100000", "activation_checkpointing": "true"}, {}),
        (
            "reward",
            {"batch_size": "128", "held_out": "0", "max_tokens": "100000", "activation_checkpointing": "true"},
            {},
        ),
        ("dpo", {"batch_size": "128", "held_out": "0", "max_tokens": "100000"}, {"prompt": 18}),
        ("kto", {"batch_size": "192", "held_out": "0", "max_tokens": "100000"}, {"ragged": True}),
        (
            "grpo",
            {"batch_size": "256", "steps": "1", "sampling.max_new_tokens": "64", "max_tokens": "100000"},
            {"prompt": 20},
        ),
        ("ppo", {"batch_size": "256", "mini_batches": "1", "steps": "1", "sampling.max_new_tokens": "64"}, {}),
    ],
)
def test_what_is_foretold_is_what_is_taken(
    tiny_model: Path, tmp_path: Path, kind: str, sets: dict[str, str], rows: dict[str, Any]
) -> None:
    data = words(tmp_path, 256, 90, **rows)
    named = {"model": str(tiny_model), "out": str(tmp_path / "run"), "quiet": "true", **sets}
    if kind in ("ppo", "grpo"):
        named |= {"prompts": str(data), "reward": "tests.train.test_memory:by_length"}
    else:
        named |= {"data": str(data), "max_steps": "2"}
    arguments = [f"{name}={value}" for name, value in named.items()]
    subprocess.run([sys.executable, "-c", _RUN, kind, *arguments], check=True, cwd=Path(__file__).parents[2])
    found = json.loads((tmp_path / "run" / "memory.json").read_text(encoding="utf-8"))
    # Something to foretell: more than the libraries alone, which are there before.
    assert found["passes"] > 100 * MIB
    assert found["planned"] == pytest.approx(found["peak"], rel=0.15), found


def by_length(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(len(text) % 5) for text in completions]


def counted(model: CausalLM, tokens: int) -> float:
    """Bytes that a pass over one row of so many tokens keeps, weights left out."""
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    ids_BT, mask_BT = torch.zeros(1, tokens, dtype=torch.long), torch.ones(1, tokens, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pack(model(ids_BT, kept_N=before(mask_BT)))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for where, size in found.items() if where not in weights)


def test_what_a_pass_keeps_is_drawn_out_from_short_rows(tiny_model: Path) -> None:
    model = load_causal(tiny_model)
    found = kept(model)
    assert found.layers == model.hf_config["num_hidden_layers"]
    assert found.of(250) == pytest.approx(counted(model, 250), rel=0.03)


def test_attention_that_keeps_its_weights_grows_with_the_square() -> None:
    spec = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = new_model(spec, 100, seed=0)
    model.config = replace(model.config, attention_softcap=50.0)
    for block in model.model.blocks():
        block.self_attn.c = model.config
    found = kept(model)
    # At 500 tokens the square is most of it: a line through short rows would be far below.
    assert found.square * 500**2 > found.linear * 500
    assert found.of(500) == pytest.approx(counted(model, 500), rel=0.05)


def test_a_model_for_short_rows_is_measured_on_shorter_ones() -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=24, vocab_size=100)
    model = HFCausal(transformers.GPT2LMHeadModel(config), config.to_dict())
    assert kept(model).linear > 0
    # 2 (keys and values) x 10 slots x 24 tokens x 3 layers x 4 heads x 8, float32
    assert cache_bytes(model, 10, 24) == 2 * 10 * 24 * 3 * 4 * 8 * 4


def test_recomputed_layers_stand_whole_for_a_moment(tiny_model: Path) -> None:
    model = load_causal(tiny_model)
    whole = kept(model).of_layer(1000)
    model.checkpoint_activations = True
    state = TrainState(model=model)
    planned = memory.plan(state, torch.device("cpu"), Most(1, 1000), 16384)
    assert planned.passes > kept(model).of(1000) + whole
    assert model.checkpoint_activations  # as it was


def test_the_largest_micro_batch() -> None:
    assert Most(64, 100).at_once(1000) == 10
    assert Most(4, 100).at_once(1000) == 4  # there are no more rows
    assert Most(64, 100).at_once(10) == 1  # a row longer than a pass makes one of its own
    assert Most(64, 100, together=16).at_once(1000) == 16  # answers to a prompt are not parted


def row(*ids: int, asked: int) -> Example:
    return Example(list(ids), [False] * (len(ids) - asked) + [True] * asked)


def test_the_largest_micro_batch_is_counted_without_padding_and_what_rows_share_once() -> None:
    begin = range(10)
    pairs = [row(*begin, 1, 2, 3, asked=3), row(*begin, 4, 4, asked=2)]  # 10 + 3 + 2 tokens
    apart = [row(*range(20, 32), asked=3), row(5, 6, asked=1)]  # 12 + 2: five common ones would not count
    most = Most(4, 13).over([apart, pairs])
    assert (most.tokens, most.states) == (15, 5)
    assert (most.rows, most.longest) == (4, 13)
    assert Most(4, 13).over([]).tokens == 0


def test_few_steps_stand_for_all_and_the_longest_row_is_in_one() -> None:
    order, lengths = [[2 * step, 2 * step + 1] for step in range(1000)], [10] * 2000
    lengths[1205] = 4096  # in step 602, which is not one of those
    assert looked_at(order, 3, lengths) == [[0, 1], [2, 3], [4, 5], [1205, 0]]
    assert looked_at(order, 32, lengths)[:-1] == order[:32]
    many = looked_at(order, 1000, lengths)  # every 31st or 32nd
    assert [step[0] // 2 for step in many[:3]] == [0, 31, 62]
    assert (many[-2], many[-1], len(many)) == ([1936, 1937], [1205, 0], 33)
    assert looked_at(order, 0, lengths) == []


@pytest.mark.parametrize(
    ("group", "together", "tokens"), [(1, False, 8 * 25), (4, False, 2 * (21 + 4 * 4)), (4, True, 21 + 4 * 4)]
)
def test_only_answers_to_one_prompt_share_what_they_begin_with(
    tiny_model: Path, group: int, together: bool, tokens: int
) -> None:
    actors = Actors(load_causal(tiny_model), None, cast(Template, None), torch.float32)
    about = {"model": "m", "reward": "r", "prompts": "p", "out": "o", "batch_size": 8, "mini_batches": 1}
    most_tokens = 100 if together else 999  # in the last case for the answers to one prompt
    config = PPOConfig.model_validate({**about, "max_tokens": most_tokens, "sampling": {"max_new_tokens": 4}})
    asked = [(Prompt(text="?"), [5] * 20 + [6 + i]) for i in range(8)]  # 21 tokens, all but the last alike
    assert most_of(config, actors, asked, World(), group, together=together).tokens == tokens


def test_states_that_nobody_asks_for_cost_less(tiny_model: Path) -> None:
    found = kept(load_causal(tiny_model))
    # A prompt's tokens skip the last layer's MLP: of one layer, which is a share of 1 / layers of it all.
    assert 0 < found.state < found.of(1) / found.layers
    assert found.of(250, 50) == pytest.approx(found.of(250) - 200 * found.state)


def test_the_cache_of_answers_by_hand(tiny_model: Path) -> None:
    model = load_causal(tiny_model)
    c = model.hf_config
    of_head = c["hidden_size"] // c["num_attention_heads"]
    # keys and values, 10 slots of 50 tokens, float32
    assert cache_bytes(model, 10, 50) == 2 * 10 * 50 * c["num_hidden_layers"] * c["num_key_value_heads"] * of_head * 4


def test_halvings_until_it_fits() -> None:
    def plan(available: float, rows: int = 64, together: int = 1) -> MemoryPlan:
        return MemoryPlan(100.0, 10.0, 800.0, 90.0, rows, 64, together, available)

    # 1000 in all; a tenth is left to others. 0.9 * 1200 - 200 = 880: 800 fits.
    assert plan(1200.0).total == 1000.0
    assert plan(1200.0).halvings == 0
    # 0.9 * 800 - 200 = 520: 800 does not fit, 400 does.
    assert plan(800.0).halvings == 1
    # 0.9 * 350 - 200 = 115: 800, 400, 200 do not, 100 does.
    assert plan(350.0).halvings == 3
    # With 8 rows of which 4 belong together it can be halved once, which is not enough: the first step will tell.
    assert plan(350.0, rows=8, together=4).halvings == 0
    # No room at all: smaller passes would not help.
    assert plan(222.3).halvings == 0


def test_a_run_begins_with_what_fits(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": str(tiny_model), "data": str(words(tmp_path, 64, 90)), "batch_size": 64, "max_steps": 1}
    free = sft(SFTConfig(**settings, out=tmp_path / "free", quiet=True))
    # Room for what is there and 20 MiB for the pass, which takes more.
    monkeypatch.setattr(memory, "available", lambda device: (memory.present(device) + 70 * MIB) / 0.9)
    tight = sft(SFTConfig(**settings, out=tmp_path / "tight", quiet=True))
    said = (tight.path / "log.txt").read_text(encoding="utf-8")
    assert "as large, to fit the memory" in said
    rows = [json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0]) for run in (free, tight)]
    assert rows[1]["memory/halvings"] >= 1
    assert "memory/halvings" not in rows[0]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_logits_are_kept_up_to_the_size_that_is_planned_with() -> None:
    # The plan has the most that `token_logprobs` keeps as a number of its own.
    default = token_logprobs.__kwdefaults__["max_elements"]
    assert 4 * default == memory._LOGITS
