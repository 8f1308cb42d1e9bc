"""What is told of the updates of one step."""

from __future__ import annotations

import pytest

from goodheart.stages.updates import _summary


def of(loss: float, gap: float, **more: float) -> dict[str, float]:
    return {"loss": loss, "sampler/logprob_diff_mean": gap} | {f"memory/{name}": value for name, value in more.items()}


def test_updates_are_averaged_and_the_sampler_is_compared_before_the_first() -> None:
    assert _summary([of(1.0, 0.5), of(4.0, 9.0)], stopped=True) == {
        "loss": 2.5,
        "sampler/logprob_diff_mean": 0.5,
        "policy/updates": 2.0,
        "policy/stopped_early": 1.0,
    }
    assert _summary([], stopped=False) == {"policy/updates": 0.0, "policy/stopped_early": 0.0}


@pytest.mark.parametrize("before", [of(1.0, 0.0), of(1.0, 0.0, halvings=1)])
def test_memory_halved_in_the_midst_of_a_step_is_told_as_it_is_then(before: dict[str, float]) -> None:
    assert _summary([before, of(1.0, 0.0, halvings=2)], stopped=False)["memory/halvings"] == 2
    assert "memory/halvings" not in _summary([of(1.0, 0.0)], stopped=False)
