"""What is known of the losses of direct.py without computing one: the settings of their papers, and what they take.

Apart from them, so that settings are checked before torch is there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traits:
    """A loss as settings see it."""

    needs_reference: bool = True
    per_token: bool = False
    beta: float = 0.1
    gamma: float = 0.0  # lead that every pair has to reach, in units of reward
    sft_coef: float = 0.0
    smooths: bool = False  # has a form for labels that may be wrong
    ranks: bool = False  # takes a whole ranking, by Plackett-Luce: its link is the logistic


# The papers are named in direct.py.
TRAITS = {
    "sigmoid": Traits(smooths=True, ranks=True),
    "robust": Traits(smooths=True, ranks=True),
    "hinge": Traits(),
    "ipo": Traits(per_token=True),
    "simpo": Traits(needs_reference=False, per_token=True, beta=2.0, gamma=1.0, smooths=True, ranks=True),
    "cpo": Traits(needs_reference=False, sft_coef=1.0, smooths=True, ranks=True),
    "orpo": Traits(needs_reference=False, per_token=True, sft_coef=1.0),  # its beta is the paper's lambda
}
