"""Rows without padding and with shared beginnings: the layout by hand, values and gradients against padded float64."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from goodheart.data.batches import Batch, Example, pad
from goodheart.models import build, native
from goodheart.models.causal import completion_logprobs
from goodheart.models.heads import RewardModel, reward_from_causal
from goodheart.models.new import new_model
from goodheart.models.packed import Packed
from goodheart.models.transformer import Transformer

compiled = pytest.mark.skipif(build.load(native.CODES[torch.float32]) is None, reason="no C compiler")
SMALL: dict[str, Any] = {
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 52,
    "head_dim": 10,
    "tie_word_embeddings": False,
}


def packed(rows: list[list[int]], keep: list[list[int]]) -> Packed:
    """The layout of padded rows; of each some positions are kept."""
    batch = pad([Example(row, [False] * len(row)) for row in rows], 0)
    width = batch.ids_BT.shape[1]
    kept_N = torch.tensor([b * width + place for b, places in enumerate(keep) for place in sorted(places)])
    found = Packed.of(batch.ids_BT, kept_N, batch.lengths_B)
    assert found is not None
    return found


def test_rows_keep_what_the_row_before_has_not() -> None:
    a, b = list(range(10, 19)), list(range(30, 34))  # 9 and 4 tokens
    found = packed([[*a, 2], b, [*a, 1, 5], b], [[8, 9], [3], [8, 10], [0]])
    # Sorted: (a 1 5), (a 2) which shares a, b, and b again, which shares 4 tokens: too few to be worth it.
    assert found.rows_R3.tolist() == [[0, 0, 11], [11, 9, 1], [12, 0, 4], [16, 0, 4]]
    assert found.families.tolist() == [0, 2, 3, 4]
    assert found.ids_N.tolist() == [*a, 1, 5, 2, *b, *b]
    assert found.longest == 11
    # Row by row as asked for: the end of `a` (token 8) serves both of its rows.
    assert found.kept_K.tolist() == [8, 11, 15, 8, 10, 16]


def test_a_row_that_is_the_beginning_of_another_or_the_same_has_no_tokens_of_its_own() -> None:
    a = list(range(20))
    found = packed([a, a[:12], a], [[19], [11], [19]])
    assert found.rows_R3.tolist() == [[0, 0, 12], [12, 12, 8], [20, 20, 0]]
    assert found.kept_K.tolist() == [19, 11, 19]


def test_a_header_that_is_short_beside_the_rows_does_not_make_them_one_piece_of_work() -> None:
    header = list(range(10))
    # Sorted: 10 + 81 tokens; 10 + 80, of which a header of an eighth is shared; 10 + 81, where it would be less.
    found = packed([[*header, *[first] * own] for first, own in ((11, 81), (12, 80), (13, 81))], [[90], [89], [90]])
    assert found.rows_R3.tolist() == [[0, 0, 91], [91, 10, 80], [171, 0, 91]]
    assert found.families.tolist() == [0, 2, 3]
    assert found.ids_N.tolist()[171:181] == header
    assert found.kept_K.tolist() == [90, 170, 261]


def test_states_of_padding_and_positions_of_other_kinds_are_left_to_the_plain_pass() -> None:
    ids_BT, every_N = torch.arange(12).view(2, 6), torch.arange(12)
    assert Packed.of(ids_BT, every_N) is not None
    assert Packed.of(ids_BT, every_N, torch.tensor([6, 5])) is None
    assert Packed.of(ids_BT, every_N, positions_BT=torch.arange(6).repeat(2, 1)) is not None
    assert Packed.of(ids_BT, every_N, positions_BT=torch.arange(1, 7).repeat(2, 1)) is None
    none, empty = torch.zeros(0, dtype=torch.long), torch.tensor([0, 0])
    assert Packed.of(ids_BT, none, empty) is None
    assert Packed.of(ids_BT, none, empty, positions_BT=torch.arange(6).repeat(2, 1)) is None
    assert Packed.of(ids_BT, none, segments_BT=torch.zeros(2, 6, dtype=torch.long)) is None


def examples(drawn: random.Random) -> list[Example]:
    """Four prompts with three answers each, rows of one and two tokens, one row twice, one the beginning of another."""

    def tokens(number: int) -> list[int]:
        return [drawn.randrange(4, 90) for _ in range(number)]

    def example(prompt: list[int], answer: list[int]) -> Example:
        return Example(prompt + answer, [False] * len(prompt) + [True] * len(answer))

    found = [example(p, tokens(drawn.randint(1, 50))) for p in map(tokens, (30, 9, 4, 70)) for _ in range(3)]
    found += [example(tokens(1), tokens(1)), example([5], []), found[0]]
    found.append(example(found[0].ids[:20], found[0].ids[20:25]))
    drawn.shuffle(found)
    return found


def gradients(model: Transformer, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities and entropies, and the gradients of a sum of them with fixed random weights."""
    told: Any = {"lengths_B": batch.lengths_B, "positions_BT": batch.positions_BT, "segments_BT": batch.segments_BT}
    out = completion_logprobs(model, batch.ids_BT, batch.mask_BT, with_entropy=True, **told)
    with torch.no_grad():
        again = completion_logprobs(model, batch.ids_BT, batch.mask_BT, with_entropy=True, **told)
    assert out.entropy_BT is not None
    assert torch.equal(out.logps_BT, again.logps_BT)  # to the bit: a policy is compared with itself
    weight_BT = torch.randn(batch.ids_BT.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    ((out.logps_BT + 0.5 * out.entropy_BT) * weight_BT).sum().backward()
    grads = [p.grad.double().clone() for p in model.parameters() if p.grad is not None]
    return [out.logps_BT.detach().double(), out.entropy_BT.detach().double()], grads


def heated(spec: dict[str, Any]) -> Transformer:
    """A model whose attention, norms and gates all matter."""
    model = new_model(spec, 97, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.copy_(parameter + 0.3 * noise if parameter.dim() == 1 else 5 * parameter)
    return model


@compiled
@pytest.mark.parametrize(
    "family",
    [
        {},
        {"num_key_value_heads": 2, "head_dim": 32},
        {"family": "qwen3", "num_key_value_heads": 1, "head_dim": 16},
        {"family": "qwen2", "num_key_value_heads": 2},
        {"family": "mistral", "sliding_window": 20},
        {"family": "smollm3", "num_key_value_heads": 2, "no_rope_layer_interval": 2},
        {"family": "gemma3_text", "sliding_window": 20, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    ],
    ids=lambda family: family.get("family", f"llama-{family.get('head_dim', 10)}"),
)
@pytest.mark.parametrize("joined", [False, True], ids=["rows", "packed"])
def test_values_and_gradients_are_those_of_padded_rows_in_float64(family: dict[str, Any], joined: bool) -> None:
    rows = examples(random.Random(3))
    batch = pad([rows[:6], rows[6:9], rows[9:]] if joined else rows, 0)
    model = heated(SMALL | family)
    assert model.packs()
    found = gradients(model, batch)
    model.double()
    assert not model.packs()
    wanted = gradients(model, batch)
    for ours, exact in zip(found[0], wanted[0], strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5)
    for ours, exact in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


@compiled
def test_bfloat16_is_no_farther_from_float64_than_padded_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a norm's few weights one draw says little, so the errors are summed over several.
    ours: list[float] = []
    padded: list[float] = []
    for seed in range(6):
        batch = pad(examples(random.Random(seed)), 0)
        model = new_model(SMALL | {"num_key_value_heads": 2}, 97, seed, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        exact = gradients(copy.deepcopy(model).double(), batch)
        assert model.packs()
        found = gradients(model, batch)
        with monkeypatch.context() as patched:
            patched.setattr(native, "takes", lambda *tensors: False)
            plain = gradients(model, batch)
        true = [*exact[0], *exact[1]]
        for sums, (values, grads) in ((ours, found), (padded, plain)):
            errors = [float((x - t).square().sum()) for x, t in zip((*values, *grads), true, strict=True)]
            sums[:] = [a + b for a, b in zip(sums or [0.0] * len(errors), errors, strict=True)]
    ratios = [(a / b) ** 0.5 for a, b in zip(ours, padded, strict=True)]
    assert max(ratios) <= 1.3
    assert sum(ratios) / len(ratios) <= 1


@compiled
def test_what_is_shared_changes_no_bit_of_a_state() -> None:
    # One row alone, and behind another that begins alike: products of fewer rows may differ in PyTorch, so only the
    # attention is compared, whose numbers depend on nothing beside them.
    generator = torch.Generator().manual_seed(0)
    qkv_NE = torch.randn(60, 3 * 4 * 8, generator=generator)
    rows = torch.tensor([[0, 0, 40], [40, 25, 20]])
    both = native.Attending(rows, torch.tensor([0, 2]), 45, 4, 4, None, 0.3, None).forward(qkv_NE)[0]
    alone = torch.cat([qkv_NE[:25], qkv_NE[40:]])
    one = native.Attending(torch.tensor([[0, 0, 45]]), torch.tensor([0, 1]), 45, 4, 4, None, 0.3, None)
    assert torch.equal(one.forward(alone)[0][25:], both[40:])


@compiled
@pytest.mark.parametrize("size", [8, 10, 64])
def test_what_a_family_leaves_behind_reaches_no_other(size: int) -> None:
    # One thread computes a family after the other in the same memory; here the first fills it with not-a-number.
    generator = torch.Generator().manual_seed(0)
    qkv_NE = torch.randn(60 + 40 + 21 + 3, 3 * 2 * size, generator=generator)
    qkv_NE[:60] = torch.nan
    rows = torch.tensor([[0, 0, 60], [60, 0, 40], [100, 25, 21], [121, 46, 3]])  # odd lengths, ends within vectors
    grad = torch.randn(124, 2 * size, generator=generator)
    found = []
    for first, families in ((0, [0, 1, 4]), (1, [0, 3])):
        how = native.Attending(rows[first:], torch.tensor(families), 60, 2, 2, None, 0.3, None)
        out, log_sum = how.forward(qkv_NE)
        found.append([out[60:], log_sum[60:], how.backward(qkv_NE, out, log_sum, grad)[60:]])
    for behind, alone in zip(*found, strict=True):
        assert behind.isfinite().all()
        assert torch.equal(behind, alone)


@compiled
def test_attention_by_hand_and_by_finite_differences() -> None:
    # Two tokens, one head of size 1: scores of the second are q k = (1 * 0, 1 * ln 3), weights 1/4 and 3/4, so its
    # output is 8 / 4 + 4 * 3 / 4 = 5; the first sees itself alone.
    rows, families = torch.tensor([[0, 0, 2]]), torch.tensor([0, 1])
    how = native.Attending(rows, families, 2, 1, 1, None, 1.0, None)
    out, log_sum = how.forward(torch.tensor([[7.0, 0.0, 8.0], [1.0, 1.0986123, 4.0]]))
    torch.testing.assert_close(out, torch.tensor([[8.0], [5.0]]))
    torch.testing.assert_close(log_sum, torch.tensor([[0.0], [1.3862944]]))

    rows, families = torch.tensor([[0, 0, 5], [5, 3, 4]]), torch.tensor([0, 2])
    angles = torch.arange(7.0)[:, None] / torch.tensor([1.0, 10.0])
    how = native.Attending(rows, families, 7, 2, 1, 4, 0.5, torch.stack((angles.cos(), angles.sin())))
    generator = torch.Generator().manual_seed(0)
    qkv_NE, slope = torch.randn(9, 16, generator=generator), torch.randn(9, 8, generator=generator)
    grad = how.backward(qkv_NE, *how.forward(qkv_NE), slope)
    for n, e in [(0, 0), (0, 9), (0, 13), (2, 10), (4, 8), (6, 2), (8, 15), (8, 7), (5, 11)]:
        ends = []
        for step in (-1e-2, 1e-2):
            moved = qkv_NE.clone()
            moved[n, e] += step
            ends.append(float((how.forward(moved)[0].double() * slope).sum()))
        assert (ends[1] - ends[0]) / 2e-2 == pytest.approx(float(grad[n, e]), abs=2e-3)


@compiled
def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = pad(examples(random.Random(5)), 0), heated(SMALL)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(native, "_GRAIN", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)  # those of the C code only
        found.append(gradients(model, batch))
    for one, three in zip(*(values + grads for values, grads in found), strict=True):
        assert torch.equal(one, three)


@compiled
def test_rewards_of_pairs_are_those_of_the_plain_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pad(examples(random.Random(7)), 0)
    results = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(native, "takes", lambda *tensors, **dtypes: False)
        model: RewardModel = reward_from_causal(heated(SMALL))
        scores_BN = model(batch.ids_BT, batch.lengths_B)
        scores_BN.square().sum().backward()
        results.append([scores_BN.detach(), *(p.grad for p in model.parameters())])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


@compiled
def test_activations_computed_again_give_the_same_gradients() -> None:
    batch, model = pad(examples(random.Random(9)), 0), heated(SMALL)
    kept = gradients(model, batch)[1]
    model.checkpoint_activations = True
    for again, once in zip(gradients(model, batch)[1], kept, strict=True):
        assert torch.equal(again, once)
