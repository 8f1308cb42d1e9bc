"""Who sees whom, against a softmax written out. B batch, T time, H heads, d head size."""

from __future__ import annotations

import pytest
import torch

from goodheart.models.attention import Pattern, attend, attend_sparsely, patterns, sparse_blocks

CPU = torch.device("cpu")


def test_window_by_hand() -> None:
    # A window of 2: a token sees itself and the one before it.
    allowed = patterns([2], 4, None, CPU)[2].allowed
    assert allowed is not None
    assert allowed.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_window_as_long_as_the_row_needs_no_mask() -> None:
    assert patterns([4, None], 4, None, CPU) == {4: Pattern(), None: Pattern()}


def test_segments_by_hand() -> None:
    allowed = patterns([None], 4, torch.tensor([[1, 1, 2, 0]]), CPU)[None].allowed
    assert allowed is not None
    assert allowed[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],  # padding sees padding: no empty softmax
    ]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_equals_the_formula(softcap: float | None, window: int | None, packed: bool) -> None:
    q, k, v = torch.randn(2, 4, 7, 6), torch.randn(2, 2, 7, 6), torch.randn(2, 2, 7, 6)
    segments_BT = torch.tensor([[1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 3, 3]]) if packed else None
    pattern = patterns([window], 7, segments_BT, CPU)[window]
    out = attend(q, k, v, pattern, scale=0.7, softcap=softcap)
    for b in range(2):
        for h in range(4):
            for t in range(7):
                seen = [
                    s
                    for s in range(t + 1)
                    if (window is None or t - s < window)
                    and (segments_BT is None or segments_BT[b, s] == segments_BT[b, t])
                ]
                scores = torch.stack([0.7 * q[b, h, t] @ k[b, h // 2, s] for s in seen])  # heads 0, 1 share key head 0
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                expected = scores.softmax(0) @ v[b, h // 2, seen]
                torch.testing.assert_close(out[b, h, t], expected)


def packed(length: int) -> torch.Tensor:
    """Two rows of several sequences each, the first with padding at its end."""
    cut = length // 3
    row = torch.tensor([1] * cut + [2] * (length - cut - 9) + [0] * 9)
    return torch.stack((row, torch.tensor([1] * (length - 2 * cut) + [2] * cut + [3] * cut)))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 40])
def test_sparse_attention_equals_dense(softcap: float | None, window: int | None) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    length = 700
    q, k, v = torch.randn(2, 4, length, 16), torch.randn(2, 2, length, 16), torch.randn(2, 2, length, 16)
    dense = attend(q, k, v, patterns([window], length, packed(length), CPU)[window], scale=0.3, softcap=softcap)
    blocks = sparse_blocks(packed(length), length if window is None else window)
    assert blocks.sparsity() > 40  # per cent of blocks that are skipped
    torch.testing.assert_close(attend_sparsely(flex_attention, q, k, v, blocks, 0.3, softcap), dense)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 100])
def test_packed_rows_on_cuda_equal_dense_attention_with_gradients(softcap: float | None, window: int | None) -> None:
    length, device = 1500, torch.device("cuda")
    results = []
    for where in (CPU, device):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, h, length, 64).to(where).requires_grad_() for h in (4, 2, 2))
        pattern = patterns([window], length, packed(length).to(where), where)[window]
        assert (pattern.blocks is None) == (where == CPU)
        out = attend(q, k, v, pattern, scale=0.125, softcap=softcap)
        (out * torch.linspace(-1, 1, 64).to(where)).sum().backward()
        results.append([x.detach().cpu() for x in (out, q.grad, k.grad, v.grad) if x is not None])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=2e-3, atol=2e-3)  # the kernel may use TF32
