"""Reward and value heads: which hidden state they read, and that padding and batching do not matter.

B batch, T time, D width, N scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from goodheart.errors import ModelError
from goodheart.models.causal import CausalLM, before
from goodheart.models.heads import RewardEnsemble, RewardModel, ValueHead, ValueModel, reward_from_causal
from goodheart.models.load import load_causal
from tests.models.families import saved, some_ids


class Counter(CausalLM):
    """Hidden state of token t = (t + 1, id)."""

    is_native = True

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.lm_head = None

    @property
    def width(self) -> int:
        return 2

    def forward(self, ids_BT: Tensor, kept_N: Tensor | None = None, **_: Any) -> Tensor:
        at = torch.arange(1, ids_BT.shape[1] + 1).expand_as(ids_BT)
        hidden_BTD = torch.stack((at, ids_BT), dim=-1).float()
        return hidden_BTD if kept_N is None else hidden_BTD.flatten(0, 1)[kept_N]


def test_score_reads_the_last_real_token() -> None:
    model = RewardModel(Counter(), 2)
    assert model.score is not None
    model.score.weight.data = torch.tensor([[1.0, 0.0], [10.0, 1.0]])
    # Row 0 ends at its third token (3, id 7): scores 3 and 37. Row 1 at its first (1, id 4): 1 and 14. Pads have id 99.
    scores_BN = model(torch.tensor([[5, 6, 7, 99], [4, 99, 99, 99]]), torch.tensor([3, 1]))
    assert scores_BN.tolist() == [[3.0, 37.0], [1.0, 14.0]]


def test_value_is_of_the_state_before_the_token() -> None:
    head = ValueHead(2)
    assert (head(torch.randn(4, 2), torch.ones(2, 3, dtype=torch.bool)) == 0).all()  # starts at zero
    head.value.weight.data = torch.tensor([[1.0, 100.0]])
    head.value.bias.data = torch.tensor([0.5])
    mask_BT = torch.tensor([[True, True, True], [False, False, True]])
    hidden_ND = Counter()(torch.tensor([[5, 6, 7], [8, 9, 4]]), kept_N=before(mask_BT))
    # Token 1 is judged from the state after token 0: 1 + 100 * 5 + 0.5; token 2 from that after token 1: 2 + 600 + 0.5.
    assert head(hidden_ND, mask_BT).tolist() == [[0.0, 501.5, 602.5], [0.0, 0.0, 902.5]]


def test_value_model_starts_from_a_reward_model() -> None:
    reward = RewardModel(Counter(), 2)
    value = ValueModel.from_reward(reward, index=1)
    assert reward.score is not None
    assert torch.equal(value.head.value.weight, reward.score.weight[1:2])
    assert value.backbone is not reward.backbone
    ids_BT = torch.tensor([[5, 6, 7]])
    # The value before an imagined fourth token is the reward of the three: the same state, the same weights.
    score = reward(ids_BT, torch.tensor([3]))[0, 1]
    longer_BT = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(value(longer_BT, longer_BT > 0)[0, 3], score)


@pytest.mark.parametrize("name", ["llama2", "gemma3", "qwen2-window"])
def test_score_does_not_depend_on_batch_or_padding(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = reward_from_causal(load_causal(tmp_path), 3, seed=1)
    ids_BT, lengths = some_ids(), [23, 9, 1]
    alone = torch.cat([model(ids_BT[b : b + 1, :n], torch.tensor([n])) for b, n in enumerate(lengths)])
    for width, pad in ((23, 0), (30, 0), (30, 2), (30, 50)):
        batch_BT = torch.full((3, width), pad)
        for b, n in enumerate(lengths):
            batch_BT[b, :n] = ids_BT[b, :n]
        torch.testing.assert_close(model(batch_BT, torch.tensor(lengths)), alone, rtol=1e-4, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    shuffled = model(ids_BT[order], torch.tensor(lengths)[order])
    torch.testing.assert_close(shuffled, alone[order], rtol=1e-4, atol=1e-5)


def test_head_is_seeded_and_scaled(tmp_path: Path) -> None:
    saved("llama2", tmp_path, hidden_size=256)
    heads = []
    for seed, noise in ((1, 0), (1, 123), (2, 0)):
        torch.manual_seed(noise)  # the global seed has no say
        model = reward_from_causal(load_causal(tmp_path), 40, seed=seed)
        assert model.score is not None
        heads.append(model.score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx(257**-0.5, rel=0.03)


def test_output_layer_is_dropped(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    causal = load_causal(tmp_path)
    model = reward_from_causal(causal)
    assert not any("lm_head" in name for name, _ in model.named_parameters())
    with pytest.raises(ModelError, match="no output layer"):
        causal.unembed()


def test_ensemble_is_its_members_side_by_side(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    members = [reward_from_causal(load_causal(tmp_path), n, seed=n) for n in (1, 2)]
    ensemble = RewardEnsemble(members)
    lengths_B = torch.tensor([23, 9, 4])
    scores_BN = ensemble(some_ids(), lengths_B)
    assert scores_BN.shape == (3, ensemble.num_scores) == (3, 3)
    assert torch.equal(scores_BN[:, 1:], members[1](some_ids(), lengths_B))
    assert ensemble.max_length == 128
    with pytest.raises(ModelError, match="at least one"):
        RewardEnsemble([])
    with pytest.raises(ModelError, match="ensemble of models"):
        ValueModel.from_reward(ensemble)  # type: ignore[arg-type]


def test_gradients_reach_trunk_and_heads(tmp_path: Path) -> None:
    saved("llama2", tmp_path)
    reward = reward_from_causal(load_causal(tmp_path))
    value = ValueModel(load_causal(tmp_path))
    value.checkpoint_activations = True
    assert value.backbone.checkpoint_activations
    reward(some_ids(), torch.tensor([23, 9, 1])).square().sum().backward()
    (value(some_ids(), some_ids() >= 0) - 1).square().sum().backward()
    assert all(p.grad is not None for p in reward.parameters())
    assert value.head.value.weight.grad is not None
    assert value.head.value.weight.grad.abs().sum() > 0


def test_value_model_needs_a_decoder() -> None:
    with pytest.raises(ModelError, match="needs a decoder"):
        ValueModel(nn.Linear(2, 2))  # type: ignore[arg-type]
