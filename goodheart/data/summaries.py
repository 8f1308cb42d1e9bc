"""OpenAI's summarize-from-feedback: comparisons of two summaries, and ratings of one along axes.

    {"info": {"id", "post", "title", "subreddit"} or {"id", "article"}, "summaries": [{"text", "policy", "note"}, ...],
     "choice": 0 or 1, "worker", "batch", "split", "extra": {"confidence": 1..9}}
    {"info": {...}, "summary": {"text", "policy", "note", "axes": {"overall": 1..7, ...}}, "worker", "batch", "split"}

The prompt is the post as the paper's models read it (Stiennon et al. arXiv:2009.01325, appendix). The confidence is
kept as it is, among the flags. Of the axes `overall` is the score, the others stay with the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goodheart.data.cells import Data, answer, number, prompt, spare
from goodheart.data.messages import RowError, as_list, as_object
from goodheart.data.notes import read_notes
from goodheart.data.records import Answer, Judgement, Prompt, Rating
from goodheart.data.rows import Rows, all_pairs, other_notes, plain, row

_ABOUT = ("info", "summaries", "summary", "choice", "worker", "batch", "extra")


def is_comparison(data: Data) -> bool:
    """Whether the cells are those of a comparison."""
    return as_object(data["info"]) is not None and as_list(data["summaries"]) is not None


def is_rating(data: Data) -> bool:
    """Whether the cells are those of a rated summary."""
    return as_object(data["info"]) is not None and "axes" in (as_object(data["summary"]) or {})


def read(data: Data) -> list[Judgement]:
    """A comparison."""
    summaries = as_list(data["summaries"]) or []
    if len(summaries) != 2:
        raise RowError(f"a comparison holds two summaries, found {len(summaries)}")
    choice = number(data["choice"], "choice")
    if choice not in (0, 1):
        raise RowError(f"choice must be 0 or 1, found {data['choice']!r}")
    extra = as_object(data.get("extra")) or {}
    sure = {} if extra.get("confidence") is None else {"confidence": extra["confidence"]}
    asked, key = _prompt(data)
    flags = {**sure, **(as_object(extra.get("flags")) or {})}
    told = {"item_id": key, **extra, "rater": data.get("worker"), "batch": data.get("batch"), "flags": flags}
    answers = tuple(_summary(each, place) for place, each in enumerate(summaries, 1))
    return [Judgement(asked, answers, (0, 1) if choice == 0 else (1, 0), **read_notes(told))]


def read_rating(data: Data) -> list[Rating]:
    """A rated summary; none where it has no overall score."""
    summary = as_object(data["summary"]) or {}
    axes = as_object(summary.get("axes")) or {}
    if axes.get("overall") is None:
        return []
    others = {name: value for name, value in axes.items() if name != "overall" and value is not None}
    asked, _ = _prompt({**data, **({"axes": others} if others else {})})
    said = _summary({name: cell for name, cell in summary.items() if name != "axes"}, 1)
    worker = data.get("worker")
    return [Rating(asked, said, number(axes["overall"], "overall"), worker if isinstance(worker, str) else None)]


def _summary(value: Any, place: int) -> Answer:
    cell = as_object(value)
    if cell is None:
        raise RowError(f"summary {place} is no object with text and policy")
    renamed = {("model" if name == "policy" else name): inner for name, inner in cell.items() if name != "text"}
    return answer({**renamed, "completion": cell.get("text")}, f"summary {place}")


def _prompt(data: Data) -> tuple[Prompt, Any]:
    """The prompt, and the id of what was summarised."""
    info: Mapping[str, Any] = as_object(data["info"]) or {}
    if info.get("prompt") is not None:
        text = info["prompt"]
    elif info.get("post") is not None:
        text = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}\n\nTL;DR:"
    elif info.get("article") is not None:
        text = f"Article: {info['article']}\n\nTL;DR:"
    else:
        raise RowError("info holds no post and no article")
    about = spare(info, "id", "prompt", "post", "article", "title")
    return prompt(text, {**about, **spare(data, *_ABOUT)}), info.get("id")


def write(judgement: Judgement) -> Rows:
    """A row for each pair; what the format has no place for goes to `extra`.

    Raises:
        RowError: all answers tie, or one is more than text.
    """
    extra = other_notes(judgement, "item_id", "rater", "batch")
    if "confidence" in judgement.flags:
        extra["confidence"] = judgement.flags["confidence"]
        extra["flags"] = {name: flag for name, flag in judgement.flags.items() if name != "confidence"}
    info = {"id": judgement.item_id, "prompt": judgement.prompt.as_column()}
    for better, worse, tied in all_pairs(judgement):
        if not tied:
            first, second = sorted((better, worse))
            summaries = [_cell(judgement.answers[place]) for place in (first, second)]
            columns = {"info": info, "summaries": summaries, "choice": int(second == better)}
            columns |= {"worker": judgement.rater, "batch": judgement.batch, "extra": extra}
            yield row(columns, judgement.prompt.meta)


def _cell(answer_: Answer) -> dict[str, Any]:
    text = plain(answer_, "a summary")
    return {**answer_.meta, "text": text, "policy": answer_.model}
