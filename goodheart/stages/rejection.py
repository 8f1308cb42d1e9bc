"""Rejection sampling: draw n answers to every prompt, keep what a reward likes best, and fine-tune on it.

    1 draw     n answers per prompt, scored as they come; kept in `drawn/`, so that nothing paid for is lost
    2 recall   answers of earlier rounds, scored again by this round's reward: only its own scores compare
    3 select   the best for each prompt, the best share of all, or all that reach a threshold
    4 fine-tune on what is left, as sft does
    5 save

answers.jsonl holds every answer that was drawn with its score, selected.jsonl what was trained on.

Sources: best of n, Stiennon et al. arXiv:2009.01325; rounds whose answers all compete, Touvron et al. arXiv:2307.09288
section 3.2.3, and `preprompt` (context distillation), section 4.2.4; threshold over all answers, Dong et al.
arXiv:2304.06767 (RAFT) and Gulcehre et al. arXiv:2308.08998.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from goodheart.data.batches import Example
from goodheart.data.examples import Prepared, Skipped, answer_example, require
from goodheart.data.formats import write_rows
from goodheart.data.records import Answer
from goodheart.data.template import Template
from goodheart.errors import DataError, TemplateError
from goodheart.judges.best_of_n import best_of_n_curve, best_of_n_kl
from goodheart.judges.load import Judge, load_judge
from goodheart.judges.settings import judge_names
from goodheart.models.causal import CausalLM
from goodheart.models.load import resolve
from goodheart.stages.draw import Judging, draw, scoring
from goodheart.stages.kept import Kept, identity
from goodheart.stages.rejection_prompts import Asked, asked_prompts
from goodheart.stages.rounds import ANSWERS, DRAWN, answers_of, answers_row, recall
from goodheart.stages.selection import (
    Candidate,
    Selection,
    at_least,
    best_of_each,
    distinct,
    question,
    score_of,
    selected_row,
    top_share,
)
from goodheart.stages.settings.rejection import RejectionConfig
from goodheart.stages.writer import Writer, room_for_prompts
from goodheart.train.files import sha256_of, sha256_of_folder
from goodheart.train.language_model import Rows, fit
from goodheart.train.lineage import content
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.policy import load_policy, row_length, save_policy
from goodheart.train.run import Run
from goodheart.train.session import Session, open_session

__all__ = ["RejectionConfig", "train"]

SELECTED = "selected.jsonl"


def train(config: RejectionConfig) -> Run:
    """Runs the stage; returns its finished run folder.

    Raises:
        DataError: no usable prompt, or no answer reaches the threshold.
        Interrupted: asked to stop; what was drawn, scored and trained is kept.
    """
    sources = [config.prompts] if isinstance(config.prompts, str) else config.prompts
    rounds = {name: answers_of(name) for name in config.history}
    parents = {"model": config.model, **judge_names(config.reward)}
    with open_session("rejection", config, parents=parents, data=[*sources, *map(str, rounds.values())]) as session:
        if session.finished:
            return session.run

        # 1. draw
        policy, template = load_policy(config, session)
        dtype = resolve_dtype(config.dtype, session.device)
        judge = load_judge(config.reward, dtype=dtype, device=session.device, max_tokens=config.max_tokens)
        asked, skipped = _prompts(config, sources, policy, template, judge)
        seed = _drawing_seed(config, list(rounds.values()))
        work = _identity(config, asked, seed, session)
        writer = Writer(policy, template, slots=config.slots).recorded(session.run)
        fresh = _draw(config, session, writer, asked, scoring(judge), seed, work)
        # 2. recall
        earlier = [each for name, file in rounds.items() for each in recall(name, file, scoring(judge), session, work)]
        # 3. select
        selected, results = select(fresh, earlier, config)
        _write(session, fresh, selected, config.num_generations)
        session.run.note(_told(results))
        # 4. fine-tune
        rows = _rows(selected, template, row_length(config, policy.max_length), config.pack, skipped, session)
        session.report_skipped(skipped)
        fit(session, policy, rows, Rows([], False, template.pad_id, [], lambda _: ""), config, "fine-tuning")
        # 5. save
        with session.model_folder() as folder:
            save_policy(policy, template, folder, session)
        run = session.finish(results | session.last_metrics("loss") | {"skipped": skipped.total})
        if session.world.is_main:
            shutil.rmtree(run.path / DRAWN, ignore_errors=True)
        return run


def selection(config: RejectionConfig) -> Selection:
    """How what is kept is chosen."""
    kinds: dict[str, Selection] = {
        "best": best_of_each,
        "top": partial(top_share, share=config.top_share),
        "threshold": list,
    }
    return kinds[config.keep]


def select(
    fresh: Sequence[Candidate], earlier: Sequence[Candidate], config: RejectionConfig
) -> tuple[list[Candidate], dict[str, Any]]:
    """What is kept, and the count of everything that is not.

    Args:
        fresh: this round's answers, n in a row for each prompt.
        earlier: those of earlier rounds.

    Raises:
        DataError: nothing is left.
    """
    candidates = [*fresh, *earlier]
    scored = [each for each in candidates if each.score is not None]
    if not scored:
        raise DataError(f"the reward has no opinion (None) on any of {len(candidates)} answers")
    different = distinct(scored)
    over = different if config.threshold is None else at_least(different, config.threshold)
    if not over:
        best = max(map(score_of, scored))
        raise DataError(f"no answer reaches the threshold {config.threshold:g}: the best of {len(scored)} has {best:g}")
    selected = selection(config)(over)
    prompts = {question(each.prompt) for each in candidates}
    scores = [each.score for each in fresh if each.score is not None]
    results: dict[str, Any] = {
        "prompts": len(prompts),
        "prompts_without": len(prompts - {question(each.prompt) for each in selected}),
        "answers": len(candidates),
        "no_opinion": len(candidates) - len(scored),
        "distinct": len(different),
        "selected": len(selected),
        "rejected": len(different) - len(selected),
        "selected_of_earlier_rounds": sum(bool(each.round) for each in selected),
        "score_all": fmean(scores) if scores else None,
        "score_selected": fmean(map(score_of, selected)),
        "best_of": _curve(fresh, config.num_generations),
    }
    n = config.num_generations
    from_one = not earlier and config.preprompt is None  # the model as it is drew them all
    if config.keep == "best" and config.threshold is None and from_one and len(prompts) * n == len(fresh):
        results["kl_bound"] = best_of_n_kl(n)
    return selected, results


def _curve(fresh: Sequence[Candidate], n: int) -> list[dict[str, Any]]:
    """What the best of 1, 2, 4 ... n has by the reward that chooses: exact means over all subsets of the n answers.

    Prompts with an answer without a score are left out.
    """
    whole = [[each.score for each in fresh[i : i + n]] for i in range(0, len(fresh), n)]
    scores_PN = [scores for scores in whole if None not in scores]
    if not scores_PN:
        return []
    sizes = sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})
    return [
        {"n": point.n, "kl_bound": point.kl, "score": point.proxy, "error": _finite(point.proxy_error)}
        for point in best_of_n_curve(scores_PN, scores_PN, sizes)  # type: ignore[arg-type]
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _told(results: dict[str, Any]) -> str:
    """What was kept, in a line for people."""
    kept = f"kept {results['selected']} of {results['distinct']} distinct answers"
    if results["score_all"] is not None:
        kept += f": mean score {results['score_selected']:.4g}, of all that were drawn {results['score_all']:.4g}"
    if results["selected_of_earlier_rounds"]:
        kept += f"; {results['selected_of_earlier_rounds']} are of earlier rounds"
    if results["prompts_without"]:
        kept += f"; {results['prompts_without']} of {results['prompts']} prompts have none that was kept"
    if results["no_opinion"]:
        kept += f"; {results['no_opinion']} answers have no score"
    if "kl_bound" in results:
        kept += f"; KL of the kept from the drawn: {results['kl_bound']:.3f} nats at most"
    return kept


def _write(session: Session, fresh: Sequence[Candidate], selected: Sequence[Candidate], n: int) -> None:
    """answers.jsonl and selected.jsonl."""
    if session.world.is_main:
        groups = (fresh[i : i + n] for i in range(0, len(fresh), n))
        write_rows(session.run.path / ANSWERS, (answers_row(group) for group in groups))
        write_rows(session.run.path / SELECTED, (selected_row(each) for each in selected))
    session.world.barrier()


def _rows(
    selected: Sequence[Candidate],
    template: Template,
    max_length: int,
    packed: bool,
    skipped: Skipped,
    session: Session,
) -> Rows:
    """The kept answers as tokens, the loss on what was answered; one that was cut off has no end token to learn."""
    examples: list[Example] = []
    for line, each in enumerate(selected, 1):
        try:
            examples.append(replace(answer_example(each.prompt, each.answer, template, max_length), row=line))
        except TemplateError as error:
            skipped.add(str(error), f"{session.run.path / SELECTED}:{line}", each.answer.text)
    require(examples, skipped, "answer", [str(session.run.path / SELECTED)])
    rows = Rows.of(Prepared(examples, skipped), packed=packed, max_length=max_length, pad_id=template.pad_id)
    rows.where = lambda line: f"{session.run.path / SELECTED}:{line}"
    return rows


def _prompts(
    config: RejectionConfig, sources: list[str], policy: CausalLM, template: Template, judge: Judge
) -> tuple[Asked, Skipped]:
    """The prompts that leave room for an answer, by place."""
    room = room_for_prompts(config, config.sampling, policy, judge)
    return asked_prompts(sources, template, room, only=config.only, preprompt=config.preprompt)


def _drawing_seed(config: RejectionConfig, earlier: Sequence[Path]) -> int:
    """What this round's answers are drawn with: the same for the same `seed`, weights and answers of earlier rounds.

    With `seed` alone the answers would be those of `goodheart sample`, from which the reward may have learned, and a
    round whose model hardly moved would draw those of the round before.
    """
    weights = sha256_of_folder(resolve(config.model), "*.safetensors")  # other files may name paths
    return int(identity("rejection", str(config.seed), weights, *map(sha256_of, earlier))[:15], 16)


def _identity(config: RejectionConfig, asked: Asked, seed: int, session: Session) -> str:
    """Part of the names of what is kept: equal where the same answers are drawn and scored in the same way.

    Settings of the fine-tuning are not in it, so that they may be changed while nothing is trained yet.
    """
    settings = config.model_dump(
        mode="json",
        include={"reward", "num_generations", "sampling", "dtype", "plain_prompts", "preprompt"},
    )
    return identity(
        json.dumps(settings, sort_keys=True),
        str(seed),
        sha256_of_folder(resolve(config.model)),
        str(session.world.size),
        *(str(content(judge)) for judge in judge_names(config.reward).values()),
        *(json.dumps([i, prompt.as_column()]) for i, (prompt, _) in asked.items()),
    )[:16]


def _draw(
    config: RejectionConfig, session: Session, writer: Writer, asked: Asked, judging: Judging, seed: int, work: str
) -> list[Candidate]:
    """This round's answers of all processes, n in a row for each prompt."""
    name = f"{work}-{session.world.rank}"
    found = draw(
        writer,
        {place: asked[place] for place in session.world.shard(list(asked))},
        range(config.num_generations),
        each=config.num_generations,
        sampling=config.sampling,
        seed=seed,
        kept=Kept(session.run.path / DRAWN / f"{name}.jsonl", name),
        stop=session.stop,
        show=lambda total: session.run.progress(total, "sampling", "answers"),
        judging=judging,
    )
    everything = {place: row for part in session.world.gather_objects(found) for place, row in part.items()}
    return [
        Candidate(asked[i][0], Answer(row["text"], meta={"finish": row["finish"]}), row["score"], row.get("terms", {}))
        for (i, _), row in sorted(everything.items())
    ]
