"""Log-probabilities of completions: alignment, masks, temperature. B batch, T time, D width, V vocabulary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from goodheart.models.causal import CausalLM, Unembedding, completion_logprobs
from goodheart.models.load import load_causal
from tests.models.families import saved, some_ids


class Bigram(CausalLM):
    """Hidden state of a token = one-hot of the token; the weight holds the logits of what follows it."""

    def __init__(self) -> None:
        super().__init__()
        # after 0: p = (1/2, 1/4, 1/4); after 1: (1/8, 1/8, 3/4); after 2: uniform
        p = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [1 / 3, 1 / 3, 1 / 3]])
        self.weight_VD = torch.nn.Parameter(p.log().t().contiguous())

    def forward(self, ids_BT: Tensor, kept_N: Tensor | None = None, **_: Any) -> Tensor:
        hidden_BTD = torch.nn.functional.one_hot(ids_BT, 3).float()
        return hidden_BTD if kept_N is None else hidden_BTD.flatten(0, 1)[kept_N]

    def unembed(self) -> Unembedding:
        return Unembedding(self.weight_VD)


def test_token_aligned_by_hand() -> None:
    ids_BT = torch.tensor([[0, 1, 2, 0], [1, 0, 0, 2]])
    mask_BT = torch.tensor([[True, True, True, False], [False, False, True, True]])
    out = completion_logprobs(Bigram(), ids_BT, mask_BT, with_entropy=True)
    # Row 0: token 0 has nothing before it -> 0; p(1|0) = 1/4; p(2|1) = 3/4; the last is masked -> 0.
    # Row 1: p(0|0) = 1/2; p(2|0) = 1/4.
    log = math.log
    expected = torch.tensor([[0.0, log(0.25), log(0.75), 0.0], [0.0, 0.0, log(0.5), log(0.25)]])
    torch.testing.assert_close(out.logps_BT, expected)
    # Entropy after 0: 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2; after 1: 2 * 1/8 ln 8 + 3/4 ln 4/3 = 0.75 ln 2 + 0.75 ln 4/3.
    after_0, after_1 = 1.5 * log(2), 0.75 * log(2) + 0.75 * log(4 / 3)
    torch.testing.assert_close(
        out.entropy_BT, torch.tensor([[0.0, after_0, after_1, 0.0], [0.0, 0.0, after_0, after_0]])
    )
    assert out.hidden_ND.shape == (4, 3)  # the states before the four tokens that have one


def test_temperature_by_hand() -> None:
    # After 0 at temperature 2: weights sqrt(1/2), sqrt(1/4), sqrt(1/4) = .7071, .5, .5; p(1) = .5 / 1.7071 = 0.2928932.
    ids_BT = torch.tensor([[0, 1]])
    out = completion_logprobs(Bigram(), ids_BT, torch.ones(1, 2, dtype=torch.bool), temperature=2.0)
    torch.testing.assert_close(out.logps_BT[0, 1], torch.tensor(0.2928932).log())


def test_equals_log_softmax_of_transformers_with_gradients(tmp_path: Path) -> None:
    theirs = saved("gemma2", tmp_path)  # has a softcap on its logits
    ours, ids_BT = load_causal(tmp_path), some_ids()
    mask_BT = torch.rand(ids_BT.shape) < 0.5
    out = completion_logprobs(ours, ids_BT, mask_BT, temperature=0.7, with_entropy=True)
    full = (theirs(ids_BT).logits / 0.7).log_softmax(-1)
    expected = torch.zeros(ids_BT.shape)
    expected[:, 1:] = full[:, :-1].gather(-1, ids_BT[:, 1:, None])[..., 0]
    expected = expected * mask_BT
    torch.testing.assert_close(out.logps_BT, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(ids_BT.shape)
    (out.logps_BT * weights).sum().backward()
    (expected * weights).sum().backward()
    theirs_grads = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, theirs_grads[name].grad, rtol=1e-3, atol=1e-4)


def test_empty_mask_gives_zeros_and_backward_works(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    model = load_causal(tmp_path)
    out = completion_logprobs(model, some_ids(), torch.zeros(3, 23, dtype=torch.bool))
    assert torch.equal(out.logps_BT, torch.zeros(3, 23))
    out.logps_BT.sum().backward()


@pytest.mark.parametrize("name", ["llama2", "gemma3"])
def test_padding_and_batching_change_nothing(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model, ids_BT = load_causal(tmp_path), some_ids()
    lengths = [23, 11, 2]
    padded_BT, mask_BT = ids_BT.clone(), torch.zeros(3, 23, dtype=torch.bool)
    for b, length in enumerate(lengths):
        padded_BT[b, length:] = 0
        mask_BT[b, 1:length] = True
    together = completion_logprobs(model, padded_BT, mask_BT, lengths_B=torch.tensor(lengths)).logps_BT
    for b, length in enumerate(lengths):
        alone = completion_logprobs(model, ids_BT[b : b + 1, :length], mask_BT[b : b + 1, :length]).logps_BT
        torch.testing.assert_close(together[b, :length], alone[0], rtol=1e-5, atol=1e-5)
        assert (together[b, length:] == 0).all()
