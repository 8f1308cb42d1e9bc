"""Drawing answers that are kept as they come, so that an interrupted job continues where it stood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from goodheart.data.cells import answer, prompt, spare
from goodheart.data.messages import as_list
from goodheart.data.records import Answer, Prompt
from goodheart.errors import Interrupted
from goodheart.judges.judged import judged
from goodheart.judges.load import Judge
from goodheart.stages.kept import Kept
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.writer import Writer
from goodheart.train.interrupt import Stop
from goodheart.train.progress import Progress

_CHUNK = 128  # answers between two writes to disk

Place = tuple[int, int]  # place of the prompt, k
Drawn = dict[Place, dict[str, Any]]  # text, finish, tokens; with a judge also score and terms
Asked = Mapping[int, tuple[Prompt, list[int]]]  # place -> prompt, token ids
Judging = Callable[[Sequence[Prompt], Sequence[Answer]], Sequence[Mapping[str, Any]]]


def draw(
    writer: Writer,
    asked: Asked,
    turns: Sequence[int],
    *,
    each: int,
    sampling: SamplingSettings,
    seed: int,
    kept: Kept,
    stop: Stop,
    show: Callable[[int], AbstractContextManager[Progress]],
    judging: Judging | None = None,
) -> Drawn:
    """Answers to every prompt, continuing from what is kept already.

    Args:
        asked: prompts by place.
        turns: which of the answers 0 .. each - 1 to a prompt are drawn here; place and turn pick the random numbers.
        kept: where answers are kept as they come.
        stop: asked after every batch.
        show: a progress display for so many answers.
        judging: columns to keep with each answer, scores say; paid for once like the answer itself.

    Raises:
        Interrupted: asked to stop; what was drawn is kept.
    """
    drawn: Drawn = {(row["prompt"], row["k"]): row["answer"] for line in kept.rows for row in line}
    batches = _batches(writer, sampling, asked, [(i, k) for i in asked for k in turns if (i, k) not in drawn])
    with show(sum(len(batch) for _, batch in batches)) as bar:
        for how, batch in batches:
            generations = writer.generate(
                [asked[i][1] for i, _ in batch],
                how,
                seed=seed,
                sequence_ids=[i * each + k for i, k in batch],
                on_finish=lambda _, __: bar.advance(),
            )
            prompts = [asked[i][0] for i, _ in batch]
            answers = [writer.answer(p, made, how.stop) for p, made in zip(prompts, generations, strict=True)]
            found: Sequence[Mapping[str, Any]] = judging(prompts, answers) if judging else [{}] * len(batch)
            fresh = {
                place: {"text": said.text, "finish": made.finish, "tokens": len(made.ids), **more}
                for place, said, made, more in zip(batch, answers, generations, found, strict=True)
            }
            drawn |= fresh
            # One line for all that was drawn together, so that after a kill the rest is drawn in the same company:
            # rounding may depend on that.
            kept.add([{"prompt": i, "k": k, "answer": row} for (i, k), row in fresh.items()])
            if stop.requested:
                raise Interrupted(f"stopped; {len(drawn)} answers are kept and the same command continues")
    return drawn


def scoring(judge: Judge) -> Judging:
    """The judge's score of each answer as it is read, on the judge's own scale, and of several rewards each apart."""

    def columns(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[dict[str, Any]]:
        found = judged(judge, prompts, answers, normalize=False)
        rows: list[dict[str, Any]] = [{"score": score} for score in found.raw]
        if found.terms:
            for i, row in enumerate(rows):
                row["terms"] = {name: values[i] for name, values in found.terms.items()}
        return rows

    return columns


def sampled(row: Mapping[str, Any]) -> tuple[Prompt, list[Answer]]:
    """Prompt and answers of a row as `goodheart sample` writes them.

    Models say nothing at times, so an empty answer is one like any other; one that was cut off says so in its
    `meta["finish"]`, and is then read without an end token, as when it was sampled.

    Raises:
        RowError: the row cannot be read.
    """
    said = as_list(row["completions"]) or []
    answers = [Answer("") if item == "" else answer(item, f"answer {i}") for i, item in enumerate(said, 1)]
    ends = as_list(row.get("finish")) or []
    if len(ends) == len(answers):
        answers = [replace(one, meta={**one.meta, "finish": end}) for one, end in zip(answers, ends, strict=True)]
    asked = prompt(row.get("prompt"), spare(row, "prompt", "completions"), system=row.get("system"))
    return asked, answers


def _batches(
    writer: Writer, sampling: SamplingSettings, asked: Asked, wanted: Sequence[Place]
) -> list[tuple[SamplingSettings, Sequence[Place]]]:
    """Answers to draw together and how: those to chats also end at what opens another turn."""
    in_chat = sampling.model_copy(update={"stop": [*sampling.stop, *writer.template.stop_strings]})
    chats = [(i, k) for i, k in wanted if writer.is_chat(asked[i][0])]
    others = [(i, k) for i, k in wanted if not writer.is_chat(asked[i][0])]
    return [
        (how, part[start : start + _CHUNK])
        for how, part in ((in_chat, chats), (sampling, others))
        for start in range(0, len(part), _CHUNK)
    ]
