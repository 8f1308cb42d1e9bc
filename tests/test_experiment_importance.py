"""The experiment on importance weights: a sampler made coarse, and its table."""

from pathlib import Path

import pytest
import torch

from experiments.importance import ARMS, RoundedWriter, rounded, table
from goodheart.data.template import Template
from goodheart.models.load import load_causal
from goodheart.stages.settings.sampling import SamplingSettings


@pytest.mark.parametrize(
    ("bits", "expected"),
    # 0.7 = 0.7 * 2^0 and 5 = 0.625 * 2^3 and -0.3 = -0.6 * 2^-1. One bit: 0.7 to 1/2, 0.625 to 1/2, 0.6 to 1/2.
    # Three bits, in eighths: 0.7 to 6/8, 0.625 is 5/8, 0.6 to 5/8.
    [(1, [0.5, 4.0, -0.25, 0.0]), (3, [0.75, 5.0, -0.3125, 0.0])],
)
def test_significant_bits_by_hand(bits: int, expected: list[float]) -> None:
    assert rounded(torch.tensor([0.7, 5.0, -0.3, 0.0]), bits).tolist() == expected


def test_a_coarse_sampler_follows_the_model_and_leaves_it_alone(tiny_model: Path) -> None:
    model = load_causal(tiny_model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    writer = RoundedWriter(model, Template.load(tiny_model))
    (made,) = writer.generate([[1, 40, 41]], SamplingSettings(max_new_tokens=3), seed=0)
    assert len(made.logps) == len(made.ids) > 0
    for own, (name, tensor) in zip(writer.engine.model.state_dict().values(), before.items(), strict=True):
        assert torch.equal(model.state_dict()[name], tensor)
        assert torch.equal(own, rounded(tensor, RoundedWriter.bits) if tensor.dim() > 1 else tensor)


def test_the_table_by_hand() -> None:
    values = {"score": 1.0, "truth": 0.5, "kl": 2.0, "sampler/logprob_diff_mean": 0.01}
    rows = [{"seed": s, "bits": b, "cap": c, **values, "score": 1.0 + s} for s in (0, 1) for b, c in ARMS]
    rows[2] |= {"sampler/importance_capped": 0.5}  # 1 bit, weighed, seed 0
    lines = list(table(rows))[1:]
    assert lines[0].startswith("| the policy | none | 0.0100 | 0.00% | 1.000 / 2.000: 1.500 | 0.500 / 0.500: 0.500 |")
    assert lines[2].startswith("| 1 bits | 2.0 | 0.0100 | 25.00% |")
    assert len(lines) == len(ARMS)
