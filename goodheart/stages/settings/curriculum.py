"""Settings of a curriculum: which rows are open when."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from goodheart.train.config import Settings

_OF_ADAPTIVE = ("floor", "memory")

_OF_SCHEDULES = ("high_is", "centre", "schedule", "start_share", "full_at", "jumps")


class CurriculumSettings(Settings):
    """Settings of a curriculum."""

    # which rows are open first; adaptive: no row is closed, and prompts are drawn in proportion to how far the rewards
    # of their answers lie apart, measured on the way
    order: Literal["easy", "hard", "middle", "adaptive"] = "easy"
    by: str | None = None  # column that says how easy or hard a row is; adaptive: its spread of rewards to begin with
    high_is: Literal["easy", "hard"] = "easy"  # pass rates, rewards and margins are high where it is easy
    centre: float | None = None  # middle: the value that is opened first; None = the median

    schedule: Literal["linear", "sqrt", "steps"] = "linear"  # how the open share grows
    start_share: float = Field(0.25, gt=0, lt=1)  # open at the first step
    full_at: float = Field(0.5, gt=0, le=1)  # share of the run after which all is open
    jumps: int = Field(4, ge=1)  # steps: in how many equal jumps

    floor: float = Field(0.2, gt=0, le=1)  # adaptive: share of the draws that goes to all prompts alike
    memory: float = Field(0.5, ge=0, lt=1)  # adaptive: weight of what was known when a prompt has been asked again

    @model_validator(mode="after")
    def _read(self) -> Self:
        adaptive = self.order == "adaptive"
        for name in _OF_SCHEDULES if adaptive else _OF_ADAPTIVE:
            if self._given(name):
                raise ValueError(f"{name} is not read with order {self.order}: leave it out")
        if not adaptive and self.by is None:
            raise ValueError(
                f"order {self.order} needs `by`, the column that says how hard a row is; `goodheart difficulty` "
                "measures pass_rate, reward_mean and margin_measured"
            )
        if self.order != "middle" and self._given("centre"):
            raise ValueError(f"centre is not read with order {self.order}: it is of order middle")
        if self.order == "middle" and self._given("high_is"):
            raise ValueError("high_is is not read with order middle: both ends come last")
        if self.schedule != "steps" and self._given("jumps"):
            raise ValueError(f"jumps is not read with schedule {self.schedule}: it is of schedule steps")
        return self

    def _given(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def open_share(self, progress: float) -> float:
        """Share of the rows that is open when `progress` of the run is over (0 to 1).

        linear and sqrt are the competence functions of Platanios et al. arXiv:1903.09848; with sqrt the share
        grows fast at first, so that a newly opened row has about the same time to be learnt from at any moment.
        """
        start, way = self.start_share, min(1.0, progress / self.full_at)
        if self.schedule == "sqrt":
            return math.sqrt(start**2 + (1 - start**2) * way)
        if self.schedule == "steps":
            way = math.floor(way * self.jumps) / self.jumps
        return start + (1 - start) * way


class RowCurriculum(CurriculumSettings):
    """A curriculum of rows to train on, where nothing is answered on the way."""

    @model_validator(mode="after")
    def _by_a_column(self) -> Self:
        if self.order == "adaptive":
            raise ValueError("order adaptive goes by answers drawn while training, and this stage draws none")
        return self
