"""Which rows are open when: easy ones first, or hard ones, or those in the middle, then more and more of them.

How hard a row is stands in a column, from the data or measured by `goodheart difficulty`. What is open is drawn from in
laps: every open row once in random order, before any comes twice; a row that is opened joins the lap.

Letters: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from goodheart.data.cells import number
from goodheart.data.examples import Compared, Prepared
from goodheart.data.messages import RowError
from goodheart.data.records import Judgement, Prompt
from goodheart.errors import DataError, RunError
from goodheart.judges.difficulty import LARGEST
from goodheart.stages.settings.curriculum import CurriculumSettings
from goodheart.train.config import TrainingSettings
from goodheart.train.language_model import Order

THIRDS = ("easy", "middle", "hard")


class Laps:
    """Places in random order, again and again, less those that are not open yet.

    order: all places in the order in which they are opened.
    """

    def __init__(self, order: Sequence[int], seed: int) -> None:
        self.order, self.seed = list(order), seed
        self.drawn, self.open = 0, 0
        self.left: list[int] = []  # open, and did not come in this lap

    def draw(self, number: int, count: int, here: Sequence[int] = ()) -> list[int]:
        """The next places, each as likely as any other that is open and has not come in this lap; when all have come, a
        new lap begins. Takes time in proportion to `number`, but for what a new lap takes.

        Args:
            count: how many are open, one or more and never fewer than before.
            here: what came in the same step: those of a new lap come after what else is open.
        """
        self.left += self.order[self.open : count]
        self.open = max(self.open, count)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.drawn)
        chances = torch.rand(number, generator=generator, dtype=torch.float64).tolist()
        came = set(here)
        now, later = _parted(self.left, came) if came else (self.left, [])
        chosen: list[int] = []
        while len(chosen) < number:
            if now:
                place = int(chances[len(chosen)] * len(now))
                now[place], now[-1] = now[-1], now[place]
                chosen.append(now.pop())
                came.add(chosen[-1])
            elif later:  # all that is open came in this step
                came.clear()
                now, later = later, now
            else:
                now, later = _parted(self.order[: self.open], came)
        now += later
        self.left = now
        self.drawn += number
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "open": self.open, "left": list(self.left), "count": len(self.order)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        same_count(state["count"], len(self.order))
        self.drawn, self.open, self.left = int(state["drawn"]), int(state["open"]), list(state["left"])


class Window:
    """What is open at each step.

    levels: of the rows, as the column has them. steps: of the run. least: rows that are always open, where there are
    so many: those of one step.
    """

    def __init__(self, levels: Sequence[float], config: CurriculumSettings, *, steps: int, least: int, seed: int):
        self.config, self.steps, self.least = config, steps, min(least, len(levels))
        self.levels_N = torch.tensor(levels, dtype=torch.float64)
        hardness_N = -self.levels_N if config.high_is == "easy" else self.levels_N
        self.hardness_N = _ranks(hardness_N, seed)
        far_N = (self.levels_N - (self.levels_N.median() if config.centre is None else config.centre)).abs()
        first = {"easy": hardness_N, "hard": -hardness_N, "middle": far_N}[config.order]
        self._opens_N = _ranks(first, seed)

    @property
    def order(self) -> list[int]:
        """The rows in the order in which they are opened."""
        return list(torch.argsort(self._opens_N).tolist())

    def count(self, step: int) -> int:
        """How many rows are open at a step (from 0)."""
        share = self.config.open_share(step / self.steps)
        return max(math.ceil(share * len(self.levels_N) - 1e-9), self.least)  # 0.28 * 25 is a little over 7

    def open_N(self, step: int) -> Tensor:
        """Which rows are open at a step, as bools."""
        return self._opens_N < self.count(step)

    def asked(self, step: int, places: Sequence[int]) -> dict[str, float]:
        """Metrics: the share of rows that is open, and the mean of the column over those that were taken."""
        share = self.count(step) / len(self.levels_N)
        return {"curriculum/open": share, "curriculum/level": float(self.levels_N[list(places)].mean())}

    def third(self, place: int) -> str:
        """Whether a row is among the easiest third of all, the hardest, or between; ties are told apart at random."""
        return THIRDS[3 * int(self.hardness_N[place]) // len(self.levels_N)]


class OpeningOrder(Order):
    """Which rows step N trains on, of those that are open then; steps are as long as without a curriculum.

    Where rows are opened faster than they are taken (one epoch, and a `full_at` somewhat below 1), each comes once in
    the first epoch. Rows of like length do not share a step.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, window: Window) -> None:
        super().__init__(lengths, batch_size, seed)
        self.window = window
        laps = Laps(window.order, seed)
        short = len(self.lengths) - (self.per_epoch - 1) * batch_size  # rows of an epoch's last step
        sizes = [short if (s + 1) % self.per_epoch == 0 else batch_size for s in range(window.steps)]
        self._rows = [laps.draw(size, window.count(step)) for step, size in enumerate(sizes)]

    def __getitem__(self, step: int) -> list[int]:
        return self._rows[step]

    def metrics(self, step: int) -> dict[str, float]:
        return super().metrics(step) | self.window.asked(step, self._rows[step])


def row_order(
    prepared: Prepared[Compared], curriculum: CurriculumSettings | None, config: TrainingSettings, *, steps: int
) -> Order:
    """The order in which rows are trained on; without a curriculum, rows of like length together.

    Raises:
        DataError: the curriculum's column is missing somewhere, no number, or the same everywhere.
    """
    lengths, size, seed = [item.tokens for item in prepared.items], config.batch_size, config.seed
    if curriculum is None:
        return Order(lengths, size, seed)
    window = Window(levels(prepared, curriculum), curriculum, steps=steps, least=size, seed=seed)
    return OpeningOrder(lengths, size, seed, window)


def levels(prepared: Prepared[Any], config: CurriculumSettings) -> list[float]:
    """What the column `by` says of each item.

    Raises:
        DataError: it is missing somewhere (names file and line), no number, negative where it is a spread, or the same
            everywhere.
    """
    column = config.by
    assert column is not None
    found = []
    for place, record in enumerate(prepared.records):
        try:
            level = number(_cell(record, column), f"column `{column}`")
        except RowError as error:
            wrong = str(error)
            if _cell(record, column) in (None, ""):  # a null cell is dropped in reading: other rows tell it from none
                anywhere = any(_cell(each, column) is not None for each in prepared.records)
                wrong = f"column `{column}` is empty here" if anywhere else f"there is no column `{column}`"
            raise DataError(
                f"{prepared.where(place)}: curriculum.by: {wrong}; every row needs it: `goodheart difficulty` "
                "measures it and sets aside rows that it cannot measure"
            ) from None
        if abs(level) > LARGEST or (config.order == "adaptive" and level < 0):
            raise DataError(f"{prepared.where(place)}: curriculum.by: column `{column}` cannot be {level:g}")
        found.append(level)
    if len(set(found)) == 1:
        raise DataError(f"curriculum.by: column `{column}` is {found[0]:g} in every row: nothing is easier or harder")
    return found


def shuffled(count: int, seed: int, turn: int) -> Tensor:
    """Places 0 .. count - 1 in an order that seed and turn decide. -> long_N"""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))


def same_count(before: int, now: int) -> None:
    """
    Raises:
        RunError: the run was started with more prompts, or fewer.
    """
    if before != now:
        raise RunError(
            f"the run was started with {before} prompts and there are {now} now: put them back, or start another run"
        )


def _parted(places: Sequence[int], came: Set[int]) -> tuple[list[int], list[int]]:
    """Those that did not come yet, and those that did."""
    return [place for place in places if place not in came], [place for place in places if place in came]


def _ranks(values_N: Tensor, seed: int) -> Tensor:
    """Rank of each value, 0 the lowest; equal ones in random order, lest the order of the file matter. -> long_N"""
    mixed_N = shuffled(len(values_N), seed, 0)
    order_N = mixed_N[torch.argsort(values_N[mixed_N], stable=True)]
    ranks_N = torch.empty_like(order_N)
    ranks_N[order_N] = torch.arange(len(values_N))
    return ranks_N


def _cell(record: Any, column: str) -> Any:
    """What a row says in a column; `margin` is read into the record."""
    if isinstance(record, Judgement) and column == "margin":
        return record.margin
    return (record if isinstance(record, Prompt) else record.prompt).meta.get(column)
