"""Which prompts are asked next: all in turn, those that a curriculum has opened, or those with most to learn from.

    stream = prompt_stream(...)                 session.state.add("prompts", stream)
    places = stream.draw(32, step)              the prompts to ask
    stream.learn([(places[0], [0.0, 1.0]), ...])  what the judge said of the answers, the same on every process
    metrics |= stream.metrics()                 of this step

Letters: N prompts.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from goodheart.data.examples import Prepared
from goodheart.judges.difficulty import LARGEST
from goodheart.stages.curriculum import THIRDS, Laps, Window, levels, same_count, shuffled
from goodheart.stages.rollouts import Rollouts
from goodheart.stages.settings.curriculum import CurriculumSettings
from goodheart.train.parallel import World

# A prompt's place, and the judge's scores of those of its answers that it has an opinion on.
Answered = Sequence[tuple[int, Sequence[float]]]


class PromptStream(Protocol):
    """Places of prompts without end; a checkpoint knows where it stands."""

    def draw(self, number: int, step: int) -> list[int]:
        """The next prompts; may be called several times in a step (counted from 0)."""

    def learn(self, answered: Answered) -> None:
        """Takes in what the judge said of the answers to what was drawn."""

    def metrics(self) -> dict[str, float]:
        """Of the last step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def prompt_stream(
    prepared: Prepared[Any], config: CurriculumSettings | None, *, steps: int, per_step: int, seed: int
) -> PromptStream:
    """The stream that the settings name.

    Args:
        prepared: the prompts.
        steps: of the whole run.
        per_step: prompts asked in a step.

    Raises:
        DataError: the curriculum's column is missing somewhere, no number, or the same everywhere.
    """
    count = len(prepared.items)
    if config is None:
        return InTurn(count, seed)
    known = None if config.by is None else levels(prepared, config)
    if config.order == "adaptive":
        return BySpread(count, seed, floor=config.floor, memory=config.memory, start=known)
    assert known is not None
    return Opening(Window(known, config, steps=steps, least=per_step, seed=seed), seed)


class InTurn:
    """Prompts in shuffled order, again and again: each comes once before any comes twice.

    Where every step draws once, and as many, the step says where the stream stands, and no checkpoint need know.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.drawn = count, seed, 0

    def draw(self, number: int, step: int) -> list[int]:
        self.drawn = max(self.drawn, step * number)
        chosen: list[int] = []
        while len(chosen) < number:
            lap, place = divmod(self.drawn + len(chosen), self.count)
            chosen += shuffled(self.count, self.seed, lap).tolist()[place : place + number - len(chosen)]
        self.drawn += number
        return chosen

    def learn(self, answered: Answered) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class Opening:
    """Of the prompts that are open at the step, each once before any comes twice."""

    def __init__(self, window: Window, seed: int) -> None:
        self.window, self.laps, self.step = window, Laps(window.order, seed), -1
        self._places: list[int] = []
        self._scores: dict[str, list[float]] = defaultdict(list)

    def draw(self, number: int, step: int) -> list[int]:
        if step != self.step:
            self.step = step
            self._places.clear()
            self._scores.clear()
        places = self.laps.draw(number, self.window.count(step), self._places)
        self._places += places
        return places

    def learn(self, answered: Answered) -> None:
        for place, scores in answered:
            self._scores[self.window.third(place)] += scores

    def metrics(self) -> dict[str, float]:
        """What is open, how hard what was asked is, and the mean score of each third of all prompts by difficulty."""
        scores = {f"curriculum/reward_{t}": statistics.fmean(self._scores[t]) for t in THIRDS if self._scores.get(t)}
        return self.window.asked(self.step, self._places) | scores

    def state_dict(self) -> dict[str, Any]:
        return self.laps.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.laps.load_state_dict(state)


class BySpread:
    """Prompts drawn in proportion to how far the scores of their answers lie apart, as far as that is known.

    Answers that are all equally good teach nothing by comparison, and the signal of a checked reward is largest where
    half of them pass (arXiv:2502.12272, arXiv:2506.09016). A prompt's spread is the standard deviation whose variance
    is, after each time it is asked, `memory` times what it was plus 1 - `memory` times that of its new answers; of a
    single answer the squared distance from the mean of those before. A prompt that was never asked is taken to have
    the mean spread of the others, or `start`. Within a step none comes twice before each has come once.

    What is optimised is the mean reward over prompts as they are drawn: no weights correct for that.
    """

    def __init__(
        self, count: int, seed: int, *, floor: float, memory: float, start: Sequence[float] | None = None
    ) -> None:
        """
        Args:
            floor: share of the draws that goes to all prompts alike, so that none is forgotten.
            memory: weight of what was known before.
            start: spread of each prompt to begin with, on the judge's own scale.
        """
        self.seed, self.floor, self.memory = seed, floor, memory
        self.drawn, self.step = 0, -1
        self.mean_N = torch.full((count,), torch.nan, dtype=torch.float64)  # nan = never asked
        self.variance_N = torch.full((count,), torch.nan, dtype=torch.float64)  # nan = not known
        if start is not None:
            self.variance_N = torch.tensor(start, dtype=torch.float64).square()
        self._taken_N = torch.zeros(count, dtype=torch.bool)  # in this round through all prompts in this step
        self._expected: list[float] = []

    @property
    def spread_N(self) -> Tensor:
        """Standard deviation of the scores of each prompt's answers, as far as it is known."""
        known_N = self.variance_N.sqrt()
        mean = known_N.nanmean()
        return torch.where(known_N.isnan(), torch.ones(()) if mean.isnan() else mean, known_N)

    @property
    def share_N(self) -> Tensor:
        """Share of the draws that each prompt gets; the sum is 1."""
        spread_N = self.spread_N
        even = 1 / len(spread_N)
        total = spread_N.sum()
        by_spread_N = spread_N / total if total > 0 else torch.full_like(spread_N, even)
        return self.floor * even + (1 - self.floor) * by_spread_N

    def draw(self, number: int, step: int) -> list[int]:
        if step != self.step:
            self.step = step
            self._taken_N.fill_(False)
            self._expected.clear()
        chosen: list[int] = []
        spread_N, share_N = self.spread_N, self.share_N
        while len(chosen) < number:
            if self._taken_N.all():
                self._taken_N.fill_(False)
            now = min(number - len(chosen), int((~self._taken_N).sum()))
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.drawn)
            places = torch.multinomial(share_N.masked_fill(self._taken_N, 0), now, generator=generator)
            self._taken_N[places] = True
            self.drawn += now
            chosen += places.tolist()
        self._expected += spread_N[chosen].tolist()
        return chosen

    def learn(self, answered: Answered) -> None:
        scores: dict[int, list[float]] = defaultdict(list)
        for place, own in answered:
            scores[place] += [score for score in own if abs(score) <= LARGEST]  # neither infinite nor NaN
        before_N = self.spread_N.square()
        anything = not bool(self.variance_N.isnan().all())
        for place, own in scores.items():
            if not own:
                continue
            mean = float(self.mean_N[place])
            found = _variance(own, mean)
            if found is not None:
                before = float(before_N[place]) if anything else found
                self.variance_N[place] = self.memory * before + (1 - self.memory) * found
            new = statistics.fmean(own)
            self.mean_N[place] = new if math.isnan(mean) else self.memory * mean + (1 - self.memory) * new

    def metrics(self) -> dict[str, float]:
        """Share of the prompts asked so far; mean spread of all and, before they were asked, of those of this step; how
        many prompts asked alike would be as diverse, as a share of all: 1 / (N sum share^2).
        """
        share_N = self.share_N
        return {
            "curriculum/seen": float((~self.mean_N.isnan()).double().mean()),
            "curriculum/spread": float(self.spread_N.mean()),
            "curriculum/spread_asked": statistics.fmean(self._expected),
            "curriculum/effective_share": float(1 / (len(share_N) * share_N.square().sum())),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "mean": _plain(self.mean_N), "variance": _plain(self.variance_N)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        same_count(len(state["mean"]), len(self.mean_N))
        self.drawn = int(state["drawn"])
        for name, values_N in (("mean", self.mean_N), ("variance", self.variance_N)):
            values_N.copy_(torch.tensor([math.nan if x is None else x for x in state[name]], dtype=torch.float64))


def scores_of_rows(batch: Rollouts, world: World, places: Sequence[int]) -> Answered:
    """What the judge said of a batch of one answer to each prompt, before penalties, on every process.

    places: of the prompt of each row of the batch, over all processes.
    """
    heard_B = batch.mask_BT.any(1).tolist()
    own = [score if heard else None for score, heard in zip(batch.raw_scores_B.tolist(), heard_B, strict=True)]
    parts = world.gather_objects(own)
    scores = [parts[row % world.size][row // world.size] for row in range(len(places))]
    return [(place, [] if score is None else [score]) for place, score in zip(places, scores, strict=True)]


def _variance(scores: Sequence[float], mean: float) -> float | None:
    """Of several scores the sample variance; of one the squared distance from a mean known before (nan = none is)."""
    if len(scores) > 1:
        return statistics.variance(scores)
    return None if math.isnan(mean) else (scores[0] - mean) ** 2


def _plain(values_N: Tensor) -> list[float | None]:
    return [None if math.isnan(x) else x for x in values_N.tolist()]
