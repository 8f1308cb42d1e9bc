"""Who sees whom, against a softmax written out. B batch, T time, H heads, d head size."""

from __future__ import annotations

import pytest
import torch

from goodheart.models.attention import Pattern, attend, patterns

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
