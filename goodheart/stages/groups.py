"""Several answers to each prompt, compared with one another: what grpo learns from.

Groups lie one after the other in the batch: row g * K + k is answer k to prompt g. Rows are spread over the processes
(row r lives on process r % size), so every process is told all scores.

Letters: P prompts (groups), K answers to each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goodheart.judges.load import Judge
from goodheart.losses.baselines import flat
from goodheart.stages.actors import Actors
from goodheart.stages.prompt_stream import PromptStream
from goodheart.stages.rollouts import Asked, Rollouts, Scored, answer, lay_out, terms_of
from goodheart.stages.settings.grpo import GRPOConfig
from goodheart.stages.writer import Writer
from goodheart.train.parallel import World


@dataclass(frozen=True, slots=True)
class Groups:
    """Scores of all answers of a step, the same on every process.

    scores_PK: as they are optimised, float64; 0 where `valid_PK` is False (no opinion). greedy_P: scores of the greedy
    answers, float64, NaN where the judge has no opinion; None where none were asked for.
    flat_P: groups that the judge itself sees no difference in, whatever penalties were taken off.
    asked, flat: groups answered in all rounds, and how many of them had no spread.
    sampled_reward: mean score of everything answered, thrown away or not. terms: what each of several rewards said of
    all that this process answered, thrown away or not.
    """

    scores_PK: Tensor
    valid_PK: Tensor
    flat_P: Tensor
    greedy_P: Tensor | None
    asked: int
    flat: int
    sampled_reward: float
    terms: Mapping[str, Sequence[float | None]]


def collect_groups(
    stream: PromptStream,
    prompts: Sequence[Asked],
    actors: Actors,
    writer: Writer,
    judge: Judge,
    config: GRPOConfig,
    *,
    world: World,
    seed: int,
    step: int,
) -> tuple[Rollouts, Groups, dict[str, float]]:
    """Answers prompts until every group has a spread of scores, or `dynamic_sampling` further rounds are over.

    A group without spread makes place for one of another prompt (DAPO, arXiv:2503.14476 sec. 3.2). What counts is what
    the judge said, before penalties: eq. 11 there asks that some answers are right and some wrong, however long.
    The stream says which of the prompts are asked, and learns what the judge said of every answer.
    -> this process's rows, the scores of all, and the seconds it took.
    """
    size, wanted = config.num_generations, config.batch_size // config.num_generations
    asked: dict[int, Asked] = {}
    found: dict[int, Scored] = {}
    scores_PK, raw_PK = torch.zeros(2, wanted, size, dtype=torch.float64)
    valid_PK = torch.zeros(wanted, size, dtype=torch.bool)
    timing = {"generate": 0.0, "score": 0.0}
    missing = list(range(wanted))
    answered, without_spread = 0, 0
    flat_P = torch.zeros(wanted, dtype=torch.bool)
    scores: list[float] = []
    everything: list[Scored] = []
    for turn in range(1 + config.dynamic_sampling):
        places = dict(zip(missing, stream.draw(len(missing), step), strict=True))
        asked |= {g: prompts[place] for g, place in places.items()}
        rows = {g * size + k: asked[g] for g in missing for k in range(size)}
        new, seconds = answer(
            rows, writer, judge, config, config.sampling, world=world, seed=seed, first_stream=turn * config.batch_size
        )
        found |= new
        everything += new.values()
        timing = {name: timing[name] + seconds[name] for name in timing}
        for row, (raw, score) in _everyones(world, new).items():
            scores_PK.view(-1)[row], raw_PK.view(-1)[row] = score or 0.0, raw or 0.0
            valid_PK.view(-1)[row] = score is not None
            scores += [] if score is None else [score]
        answered += len(missing)
        stream.learn([(places[g], raw_PK[g, valid_PK[g]].tolist()) for g in missing])
        flat_P = flat(raw_PK, valid_PK)
        missing = [g for g in missing if flat_P[g]]
        without_spread += len(missing)
        if not missing:
            break
    greedy_P = None if config.baseline != "greedy" else _greedy(asked, writer, judge, config, world, seed, timing)
    batch = lay_out(found, config.batch_size, actors, config, world=world, timing=timing)
    groups = Groups(
        scores_PK,
        valid_PK,
        flat_P,
        greedy_P,
        asked=answered,
        flat=without_spread,
        sampled_reward=sum(scores) / len(scores),
        terms=terms_of(everything),
    )
    return batch, groups, timing


def _greedy(
    asked: Mapping[int, Asked],
    writer: Writer,
    judge: Judge,
    config: GRPOConfig,
    world: World,
    seed: int,
    timing: dict[str, float],
) -> Tensor:
    """Score of the likeliest answer (token by token) to each prompt. -> greedy_P"""
    likeliest = config.sampling.model_copy(update={"temperature": 0.0})
    found, seconds = answer(asked, writer, judge, config, likeliest, world=world, seed=seed)
    for name, value in seconds.items():
        timing[name] += value
    scores = [score for _, score in _everyones(world, found).values()]
    return torch.tensor([torch.nan if score is None else score for score in scores], dtype=torch.float64)


def _everyones(world: World, found: Mapping[int, Scored]) -> dict[int, tuple[float | None, float | None]]:
    """row -> raw score and score, over all processes, in order of rows."""
    own = {row: (each.raw, each.score) for row, each in found.items()}
    everyones = {row: said for part in world.gather_objects(own) for row, said in part.items()}
    return dict(sorted(everyones.items()))
