"""A judge by name: a run folder, a Hugging Face folder, or `package.module:function`."""

from __future__ import annotations

import torch

from goodheart.judges.function import FunctionJudge, import_function
from goodheart.judges.reward import RewardJudge
from goodheart.train.lineage import is_function

Judge = FunctionJudge | RewardJudge


def load_judge(
    spec: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_tokens: int = 16384,
) -> Judge:
    """The judge that `spec` names.

    Raises:
        ConfigError: no such module or function.
        ModelError: not a reward-model folder.
    """
    if is_function(spec):
        return FunctionJudge(import_function(spec), name=spec)
    return RewardJudge.load(spec, dtype=dtype, device=torch.device(device), max_tokens=max_tokens)
