"""Several answers to each prompt by the policy and its opponent, and what the judge says of them.

Prompt p lives with all its answers on process p % size; its answer k is row (p // size) * K + k there. With an opponent
the first half of the answers is the policy's, else all are (but for a demonstration, which is answer 0).

Letters: B rows (answers), P this process's prompts, K answers to each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goodheart.data.examples import Prepared, Skipped, answer_example, require
from goodheart.data.formats import read_records
from goodheart.data.records import Answer, Demonstration, Prompt
from goodheart.data.template import Template
from goodheart.errors import ConfigError, TemplateError
from goodheart.generate.engine import Finish, Generation
from goodheart.judges.combined import Judged
from goodheart.judges.compare import CompareJudge, first_is_best
from goodheart.judges.function import import_method
from goodheart.judges.load import Judge
from goodheart.losses.metrics import MetricSums
from goodheart.losses.online import hard, ranks_of, win_rates
from goodheart.stages import policy_gradient
from goodheart.stages.actors import Actors
from goodheart.stages.online_opponents import Player
from goodheart.stages.prompt_stream import Answered
from goodheart.stages.rollouts import Rollouts, Scored, judge_scores, lay_out
from goodheart.stages.settings.online import DEMONSTRATION, OnlineConfig
from goodheart.stages.writer import Writer, room_for_prompts
from goodheart.train.lineage import is_function
from goodheart.train.parallel import World
from goodheart.train.session import Session

_NOT_ONE_TURN = "the demonstration is more than one answer to its prompt"


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, its tokens, and the demonstrated answer where those are what is learnt from."""

    prompt: Prompt
    ids: list[int]
    said: Answer | None = None
    shown: Generation | None = None  # `said` as tokens; its log-probabilities are not known


@dataclass(frozen=True)
class Contest:
    """This process's answers of a step and who is better.

    batch: rows as above. prompts: over all processes. On the CPU: scores_PK float64, 0 where `valid_PK` is False (no
    opinion). own_PK: by the policy as it is now. theirs_PK: by an opponent that is somebody else, with an opinion on
    them. same_PKK: answers i < j with the same words.
    """

    batch: Rollouts
    prompts: int
    scores_PK: Tensor
    valid_PK: Tensor
    own_PK: Tensor
    theirs_PK: Tensor
    same_PKK: Tensor

    def rows(self, which_PK: Tensor) -> list[int]:
        """Numbers of the marked rows."""
        return torch.nonzero(which_PK.flatten()).flatten().tolist()

    def own(self) -> Rollouts:
        """The policy's own answers."""
        rows, batch = self.rows(self.own_PK), self.batch
        return replace(
            batch.select(rows),
            prompts=[batch.prompts[i] for i in rows],
            answers=[batch.answers[i] for i in rows],
            terms={name: [values[i] for i in rows] for name, values in batch.terms.items()},
        )


def load_opinion(config: OnlineConfig, session: Session) -> Judge:
    """The judge: one that scores, one that compares, or demonstrations.

    Raises:
        ConfigError: it cannot be loaded, a process would have no prompt, or penalties without scores to take them off.
    """
    if config.prompts_per_step < session.world.size:
        raise ConfigError(
            f"batch_size {config.batch_size} with num_generations {config.num_generations} makes "
            f"{config.prompts_per_step} prompts a step, less than the {session.world.size} processes"
        )
    if config.from_demonstrations:
        return CompareJudge(first_is_best, DEMONSTRATION)
    named = config.reward
    compare = import_method(named, "compare") if isinstance(named, str) and is_function(named) else None
    if compare is None:
        return policy_gradient.reward_judge(config, session)
    if config.penalised:
        raise ConfigError(f"reward {named} only compares: missing_eos_penalty and overlong_zone have no score to lower")
    assert isinstance(named, str)
    return CompareJudge(compare, named)


def tasks(config: OnlineConfig, judge: Judge, actors: Actors) -> Prepared[Task]:
    """The prompts that leave room for an answer, with their demonstrations where those are learnt from."""
    if not config.from_demonstrations:
        prepared = policy_gradient.usable_prompts(config, config.prompts, judge, actors)
        items = [Task(prompt, ids) for _, prompt, ids in prepared.items]
        return Prepared(items, prepared.skipped, prepared.records, prepared.cuts)
    room = room_for_prompts(config, config.sampling, actors.policy, judge)
    sources = [config.prompts] if isinstance(config.prompts, str) else config.prompts
    loaded = read_records(sources, DEMONSTRATION)
    found: Prepared[Task] = Prepared([], Skipped.of(loaded))
    for record in loaded.records:
        try:
            found.items.append(_shown(record, actors.template, room, config.sampling.max_new_tokens))
            found.records.append(record)
            found.cuts.append(False)
        except TemplateError as error:
            found.skipped.add_record(str(error), record)
    require(found.items, found.skipped, DEMONSTRATION, sources)
    return found


def answer_and_judge(
    asked: Sequence[Task],
    players: tuple[Player, Player],
    actors: Actors,
    writer: Writer,
    judge: Judge,
    config: OnlineConfig,
    session: Session,
    *,
    seed: int,
) -> tuple[Contest, dict[str, float]]:
    """Answers by policy and opponent, judged. -> this process's part, and the seconds it took.

    asked: the prompts of the step, over all processes. players: the policy and its opponent.
    """
    world, size = session.world, config.num_generations
    numbers = range(world.rank, len(asked), world.size)
    begun = time.perf_counter()
    made = _generate([asked[p] for p in numbers], numbers, players, config, seed)
    generated = time.perf_counter()
    own = [asked[p] for p in numbers for _ in range(size)]
    prompts = [task.prompt for task in own]
    answers = [
        task.said
        if task.shown is each and task.said is not None
        else writer.answer(task.prompt, each, config.sampling.stop)
        for task, each in zip(own, made, strict=True)
    ]
    said = opinions(judge, prompts, answers, made, writer.template, config)
    found, same_PKK = _scored(prompts, made, answers, said, size)
    timing = {"generate": generated - begun, "score": time.perf_counter() - generated}
    rows = {p * size + k: found[i * size + k] for i, p in enumerate(numbers) for k in range(size)}
    batch = lay_out(rows, len(asked) * size, actors, config, world=world, timing=timing)
    scores = [[each.score for each in found[i * size : (i + 1) * size]] for i in range(len(numbers))]
    valid_PK = torch.tensor([[score is not None for score in row] for row in scores])
    scores_PK = torch.tensor([[score or 0.0 for score in row] for row in scores], dtype=torch.float64)
    own_K, theirs_K = _sides(config)
    sides = own_K.expand_as(valid_PK), theirs_K & valid_PK
    return Contest(batch, len(asked), scores_PK, valid_PK, *sides, same_PKK), timing


def opinions(
    judge: Judge,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    made: Sequence[Generation],
    template: Template,
    config: OnlineConfig,
) -> Judged:
    """Scores of K answers in a row to each prompt; of a judge that compares the share of the others that each beats."""
    if not isinstance(judge, CompareJudge):
        return judge_scores(prompts, answers, made, judge, template, config)
    size = config.num_generations
    scores = [
        score
        for start in range(0, len(answers), size)
        for score in judge.standings(prompts[start], answers[start : start + size])
    ]
    return Judged(scores, scores)


def measured(contest: Contest, session: Session) -> dict[str, float]:
    """What the policy said, how it did against its opponent, and how much of the judge's word can be learnt from."""
    own = contest.own()
    sums = own.measured()
    rows = own.mask_BT.any(1).float()
    sums.add("objective/scores", (own.scores_B * rows).sum(), rows.sum())
    sums.add("completions/clipped_ratio", ((1 - own.ended_B) * rows).sum(), rows.sum())
    scores_PK, valid_PK = contest.scores_PK, contest.valid_PK
    met_PK, theirs_PK = contest.own_PK & valid_PK, contest.theirs_PK
    sums.add_masked(theirs_PK, {"objective/opponent_scores": scores_PK})
    met_PK = met_PK & theirs_PK.any(1, keepdim=True)
    sums.add_masked(met_PK, {"objective/win_rate": win_rates(scores_PK, met_PK, theirs_PK, hard)})
    found = (sums | _usable(contest)).means(session.world.sum)
    if "objective/opponent_scores" in found and "objective/scores" in found:
        found["objective/scores_margin"] = found["objective/scores"] - found["objective/opponent_scores"]
    return found


def scores_of_prompts(contest: Contest, places: Sequence[int], world: World) -> Answered:
    """What the judge said of the policy's own answers, before penalties, on every process.

    places: of the prompts of the step, over all processes.
    """
    raw_PK = contest.batch.raw_scores_B.cpu().view_as(contest.scores_PK)
    own_PK = contest.own_PK & contest.valid_PK
    parts = world.gather_objects([raw_PK[p, own_PK[p]].tolist() for p in range(len(raw_PK))])
    return [(place, parts[p % world.size][p // world.size]) for p, place in enumerate(places)]


def _usable(contest: Contest) -> MetricSums:
    """Shares of the pairs, of the answers, and of the prompts."""
    sums, valid_PK = MetricSums(), contest.valid_PK
    ranks_PK = ranks_of(contest.scores_PK, valid_PK)
    pairs_PKK = (valid_PK[:, :, None] & valid_PK[:, None, :]).triu(1)
    equal_PKK = (ranks_PK[:, :, None] == ranks_PK[:, None, :]) & pairs_PKK
    sums.add("judge/no_opinion", (~valid_PK).sum(), valid_PK.numel())
    sums.add("judge/same", (contest.same_PKK & pairs_PKK).sum(), pairs_PKK.sum())
    sums.add("judge/ties", (equal_PKK & ~contest.same_PKK).sum(), pairs_PKK.sum())
    teaches_P = (pairs_PKK & ~equal_PKK).flatten(1).any(1)
    sums.add("judge/compared", teaches_P.sum(), len(teaches_P))
    return sums


def _sides(config: OnlineConfig) -> tuple[Tensor, Tensor]:
    """Which of the K answers are the policy's, and which those of an opponent that is somebody else. -> bool_K"""
    places_K = torch.arange(config.num_generations)
    if config.opponent == "self":
        return places_K >= int(config.from_demonstrations), places_K < 0
    return places_K < config.num_generations // 2, places_K >= config.num_generations // 2


def _generate(
    mine: Sequence[Task], numbers: Sequence[int], players: tuple[Player, Player], config: OnlineConfig, seed: int
) -> list[Generation]:
    """K answers in a row to each prompt; answer k to prompt p draws from stream p * K + k."""
    size = config.num_generations
    made: list[list[Generation | None]] = [[task.shown, *[None] * (size - 1)] for task in mine]
    own_K, theirs_K = _sides(config)
    for player, side_K in zip(players, (own_K, theirs_K), strict=True):
        places = [(i, k) for i in range(len(mine)) for k in range(size) if side_K[k]]
        streams = [numbers[i] * size + k for i, k in places]
        new = player([mine[i].ids for i, _ in places], config.sampling, seed, streams) if places else []
        for (i, k), each in zip(places, new, strict=True):
            made[i][k] = each
    return [each for row in made for each in row if each is not None]


def _scored(
    prompts: Sequence[Prompt], made: Sequence[Generation], answers: Sequence[Answer], said: Judged, size: int
) -> tuple[list[Scored], Tensor]:
    """Every answer with what was said of it; the same words again have what was said of them first: a judge with moods
    must not make a pair of them. -> answers, same_PKK
    """
    found: list[Scored] = []
    same_PKK = torch.zeros(len(answers) // size, size, size, dtype=torch.bool)
    for row, (prompt, generation, answer) in enumerate(zip(prompts, made, answers, strict=True)):
        p, k = divmod(row, size)
        again = [j for j in range(k) if answers[p * size + j].words == answer.words]
        same_PKK[p, again, k] = True
        first = p * size + again[0] if again else row
        terms = {name: values[row] for name, values in said.terms.items()}
        found.append(Scored(prompt, generation, answer, said.raw[first], said.scores[first], terms))
    return found, same_PKK


def _shown(record: Demonstration, template: Template, room: int, wanted: int) -> Task:
    """Raises TemplateError for a demonstration that cannot be told from its prompt, or one without room.

    room, wanted: tokens that the prompt and the answer may have.
    """
    ids = template.prompt_ids(record.prompt)
    if not ids or len(ids) > room:
        raise TemplateError(f"prompt empty, or longer than {room} tokens (the model's context less max_new_tokens)")
    example = answer_example(record.prompt, record.answer, template, room + wanted)
    said = [i for i, marked in zip(example.ids, example.mask, strict=True) if marked]
    if (
        example.ids[: len(ids)] != ids
        or example.ids[len(ids) : len(ids) + len(said)] != said
        or any(example.mask[: len(ids)])
    ):
        raise TemplateError(_NOT_ONE_TURN)
    finish: Finish = "eos" if said[-1] in template.eos_ids else "length"
    return Task(record.prompt, ids, record.answer, Generation(ids, said, [0.0] * len(said), finish))
