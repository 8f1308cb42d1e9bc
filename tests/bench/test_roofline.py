"""The floor under a job's time: operations as a counter of torch sees them, bytes and seconds by hand."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import ppo_job, roofline, trainers_job
from bench.roofline import Peaks, Work
from bench.trainers_work import step_of
from goodheart.models.new import new_model
from goodheart.models.transformer import Transformer

SPEC = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
VOCABULARY = 200


def model(**changes: object) -> Transformer:
    return new_model({**SPEC, **changes}, VOCABULARY, seed=0)


@pytest.mark.parametrize("changes", [{}, {"family": "qwen3", "head_dim": 32, "tie_word_embeddings": False}], ids=str)
def test_operations_are_those_that_torch_counts(changes: dict[str, object]) -> None:
    decoder = model(**changes)
    ids_BT = torch.randint(0, VOCABULARY, (3, 20))
    # the plain form of attention, whose matmuls are seen; it multiplies whole squares, causal or not
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden_BTD = decoder(ids_BT)
        logits = hidden_BTD @ decoder.unembed().weight_VD.T
        before = counter.get_total_flops()
        logits.sum().backward()
    wanted = roofline.forward_flops(decoder.config, tokens=60, pairs=3 * 20 * 20, predicted=60)
    assert before == wanted
    assert counter.get_total_flops() == 3 * wanted


def test_parameters_are_those_of_the_model() -> None:
    for tie in (True, False):
        decoder = model(tie_word_embeddings=tie)
        norms = sum(p.numel() for p in decoder.parameters() if p.dim() == 1)
        assert roofline.parameters(decoder.config) == sum(p.numel() for p in decoder.parameters()) - norms


def test_pairs_by_hand() -> None:
    assert roofline.causal_pairs([1, 3]) == 1 + (1 + 2 + 3)


def test_a_step_of_decoding_is_the_difference_of_two_prompts() -> None:
    config = model().config
    one_more, before = (roofline.forward(config, [length] * 2, 2, torch.float32).flops for length in (11, 10))
    per_row = roofline.decode_step(config, 2, 11, torch.float32).flops
    assert per_row == one_more - before + 2 * config.width * VOCABULARY * 2  # `before` predicted two tokens as well


def test_bytes_by_hand() -> None:
    config = model().config
    # layer: q 64x64, k and v 64x32 each, o 64x64, gate, up and down 64x96 each
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    weights = 3 * layer + 200 * 64
    assert roofline.parameters(config) == weights
    # two rows that attend to 5 tokens each: keys and values of 2 heads of 16 in 3 layers; 2 bytes a number
    assert roofline.decode_step(config, 2, 5, torch.bfloat16).moved == 2 * (weights + 2 * 3 * 2 * 16 * 10)
    # read in forward and twice in backward; gradient written; 4 read and 3 written by AdamW
    assert roofline.training(config, [4], 4, torch.float32).moved == 4 * weights * (3 + 1 + 7)
    # two bytes each time they are read and once when rounded back; the rest in float32
    assert roofline.training(config, [4], 4, torch.bfloat16).moved == weights * (2 * 3 + 4 * (1 + 7) + 2)


def test_rows_that_have_ended_are_not_computed() -> None:
    config, dtype = model().config, torch.float32
    first, second, third = roofline.generation(config, 4, [1, 3, 2], dtype)
    assert first == roofline.forward(config, [4] * 3, 3, dtype)  # its tokens are the first new ones of all three
    assert second == roofline.decode_step(config, 2, 5, dtype)
    assert third == roofline.decode_step(config, 1, 6, dtype)
    assert roofline.generation(config, 4, [1, 1], dtype, prompts=1) == [roofline.forward(config, [4], 2, dtype)]


def test_the_slower_of_the_two_decides() -> None:
    peaks = Peaks({torch.float32: 100.0}, ((10.0, 50.0), (1000.0, 5.0)), 1)
    assert Work(flops=200, moved=40, resident=8).seconds(peaks, torch.float32) == 2  # 200 / 100 over 40 / 50
    assert Work(flops=200, moved=40, resident=11).seconds(peaks, torch.float32) == 8  # 40 / 5: too large for the cache
    assert peaks.bandwidth(10**6) == 5
    line = roofline.reached("we", 20.0, 60, [Work(200, 40, 8), Work(200, 40, 11)], peaks, torch.float32)
    assert line.startswith("- we: 3 tokens/s")
    assert "50%" in line  # 2 + 8 of 20 seconds
    busy = roofline.reached(
        "we",
        20.0,
        60,
        [Work(200, 40, 8)],
        Peaks({torch.float32: 100.0}, ((10.0, 50.0),), 2),
        torch.float32,
        processor=5.0,
    )
    assert busy.endswith("80% of it in processor time")  # 2 seconds of 5 on two threads


def test_the_machine_is_measured() -> None:
    before = torch.get_num_threads()
    peaks = roofline.measure(1, [torch.float32])
    assert torch.get_num_threads() == before
    assert 1e8 < peaks.flops[torch.float32] < 1e14
    assert all(1e7 < speed < 1e13 for _, speed in peaks.copies)


def test_a_reward_step_needs_no_distribution_and_kto_one_pass_more(tmp_path: Path) -> None:
    found = {}
    for task in trainers_job.LEARNS_FROM:
        job = trainers_job.Settings(task, str(tmp_path / task), 1, 2, batch_size=4, num_generations=2, new_tokens=20)
        trainers_job.build(job, "1M")
        found[task] = step_of(job)
    assert found["grpo"].tokens == found["rloo"].tokens == 4 * (32 + 20)
    assert 4 * (32 + 17) <= found["sft"].tokens <= 4 * (32 + 20)
    assert found["dpo"].tokens == found["reward"].tokens > found["sft"].tokens
    assert roofline.flops(found["reward"].job) < roofline.flops(found["dpo"].job)
    forward, learning = found["kto"].job
    assert 3 * forward.flops == learning.flops


def test_ppo_learns_twice_in_every_pass(tmp_path: Path) -> None:
    job = ppo_job.Settings(str(tmp_path), "1M", "float32", 1, 2, batch_size=4, new_tokens=3, mini_batches=2)
    ppo_job.build(tmp_path, "1M", batch_size=4, prompt_tokens=32, new_tokens=3, seed=1)
    work = ppo_job.work(job, torch.float32)
    assert len(work) == 3 + 3 + 2 * 4 * 2  # prompts and two steps; reference, value and reward; 2 models, 4 passes of 2
