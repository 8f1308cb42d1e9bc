"""Label Studio: tasks to import there, and its JSON export with annotations.

    task        {"data": {"prompt", "answer1", "answer2"}} or {"data": {"prompt", "items": [{"id", "title", "body"}]}}
    annotation  {"completed_by", "lead_time", "ground_truth", "was_cancelled", "result": [...]}
    result      {"type": "pairwise", "value": {"selected": "left"}}
                {"type": "ranker", "value": {"ranker": [ids, best first]}} or {"ranker": {BUCKET: [ids]}}

Buckets are tiers of equally good answers, best first, in the order of the numbers in their names. Choices become flags,
a text area the comment, a rating called strength the strength. One record of ours for each annotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from goodheart.data.cells import Data, answer, prompt
from goodheart.data.messages import RowError, as_list, as_object
from goodheart.data.notes import read_notes, without_nulls, write_notes
from goodheart.data.records import Judgement
from goodheart.data.rows import Rows, asked, plain

_ANSWER = re.compile(r"(answer|response|text|output|completion)[_ ]?([12])", re.IGNORECASE)
_PROMPTS = ("messages", "prompt", "instruction", "question", "text")
_EQUAL = ("tie", "equal", "both", "none")
_OF_ANNOTATIONS = ("rater", "seconds", "gold", "created_at", "strength", "comment", "flags")  # not in the task's data


def is_task(data: Data) -> bool:
    """Whether a row is a task."""
    return as_object(data.get("data")) is not None and as_list(data.get("annotations")) is not None


def read(data: Data) -> list[Judgement]:
    """A task: one judgement for each annotation that was not cancelled and compares its answers."""
    task = without_nulls(as_object(data["data"]) or {})
    found = []
    for annotation in as_list(data["annotations"]) or []:
        if not isinstance(annotation, Mapping):
            raise RowError("an annotation is no object")
        if not annotation.get("was_cancelled"):
            found += _annotated(task, annotation, data.get("id"))
    return found


def _annotated(task: Mapping[str, Any], annotation: Mapping[str, Any], key: Any) -> list[Judgement]:
    notes = _notes(annotation)
    answers = _answers(task)
    for result in _results(annotation):
        value = as_object(result.get("value")) or {}
        if result.get("type") == "pairwise":
            names = list(answers)
            if len(names) != 2:
                raise RowError("a pairwise result, but the task's data hold no answer1 and answer2")
            ranks, flags = _side(value.get("selected"))
        elif result.get("type") == "ranker" and value.get("ranker") is not None:
            names = list(answers)
            ranks, flags = _order(value["ranker"], names), {}
        else:
            continue
        used = [n for n in task if n == "items" or n in answers]
        more = {name: cell for name, cell in task.items() if name not in used}
        flagged = {**flags, **notes.get("flags", {})}
        told = read_notes({"item_id": key, **more, **notes, "flags": flagged}, len(names))
        asked_in = next((name for name in _PROMPTS if name in more), None)
        if asked_in is None:
            raise RowError(f"the task's data hold no prompt; found {', '.join(task)}")
        # The same once more as text, for people to read.
        shown = ("prompt",) if asked_in == "messages" else ()
        meta = {n: v for n, v in more.items() if n not in (asked_in, *shown, *told)}
        asked_for = prompt(as_list(more[asked_in]) or more[asked_in], meta)
        return [Judgement(asked_for, tuple(answer(answers[name], name) for name in names), ranks, **told)]
    return []


def _results(annotation: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [result for result in as_list(annotation.get("result")) or [] if isinstance(result, Mapping)]


def _notes(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Who annotated, how long it took, and what was said beside the order."""
    person = annotation.get("completed_by")
    if isinstance(person, Mapping):
        person = person.get("email") or person.get("id")
    notes = {
        "rater": person,
        "seconds": annotation.get("lead_time"),
        "gold": bool(annotation.get("ground_truth")),
        "created_at": annotation.get("created_at"),
    }
    for result in _results(annotation):
        value = as_object(result.get("value")) or {}
        if result.get("type") == "choices":
            notes["flags"] = {str(choice): True for choice in as_list(value.get("choices")) or []}
        elif result.get("type") == "textarea":
            text = value.get("text")
            notes["comment"] = "\n".join(map(str, text)) if isinstance(text, list) else text
        elif result.get("type") == "rating" and result.get("from_name") == "strength":
            notes["strength"] = value.get("rating")
    return notes


def _answers(task: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> answer cell: items by their ids, or the two columns that are called alike but for 1 and 2."""
    items = as_list(task.get("items"))
    if items is None:
        numbered = sorted((match[2], name) for name in task if (match := _ANSWER.fullmatch(name)))
        return {name: task[name] for _, name in numbered}
    found: dict[str, Any] = {}
    for item in items:
        if not isinstance(item, Mapping) or item.get("id") is None:
            raise RowError("an item is no object with an id")
        text = next((item[name] for name in ("body", "html", "title") if item.get(name)), None)
        extra = {name: cell for name, cell in item.items() if name not in ("id", "body", "html", "title")}
        found[str(item["id"])] = {**extra, "completion": text}
    return found


def _side(selected: Any) -> tuple[tuple[int, ...], dict[str, bool]]:
    if selected in ("left", "right"):
        return ((0, 1) if selected == "left" else (1, 0)), {}
    if selected is None or str(selected).lower() in _EQUAL:
        return (0, 0), {}
    raise RowError(f"pairwise: selected must be left or right, found {selected!r}")


def _order(ranker: Any, names: Sequence[str]) -> tuple[int, ...]:
    """The tier of each item.

    Raises:
        RowError: items are missing or unknown, or the order of the buckets is not.
    """
    if isinstance(ranker, list):
        tiers = [[str(name)] for name in ranker]
    elif isinstance(ranker, Mapping):
        filled = {bucket: [str(name) for name in as_list(held) or []] for bucket, held in ranker.items() if held}
        if any(not re.search(r"\d", bucket) for bucket in filled) and len(filled) > 1:
            raise RowError(f"which bucket is best? number them; found {', '.join(filled)}")
        tiers = [filled[bucket] for bucket in sorted(filled, key=_number_in)]
    else:
        raise RowError("ranker must be a list of ids or buckets of ids")
    rank = {name: place for place, tier in enumerate(tiers) for name in tier}
    if set(rank) != set(names) or sum(map(len, tiers)) != len(names):
        raise RowError(f"the ranking is of {', '.join(rank)}, the items are {', '.join(names)}")
    return tuple(rank[name] for name in names)


def _number_in(bucket: str) -> int:
    digits = re.search(r"\d+", bucket)
    return int(digits[0]) if digits else 0


def write_task(judgement: Judgement) -> Rows:
    """A task to be annotated there: the answers without their order, and the notes that are not one person's word."""
    yield {"data": _task(judgement)}


def write(judgement: Judgement) -> Rows:
    """A task with one annotation: a pairwise choice where one of two is better, else buckets of equally good ones."""
    notes = write_notes(judgement)
    ranks = judgement.ranks
    if _is_pair(judgement):
        results = [_result("pairwise", "preference", {"selected": "left" if ranks[0] < ranks[1] else "right"})]
    else:
        buckets: dict[str, list[str]] = {f"rank_{tier + 1}": [] for tier in sorted(set(ranks))}
        for place, tier in enumerate(ranks, 1):
            buckets[f"rank_{tier + 1}"].append(f"answer_{place}")
        results = [_result("ranker", "ranking", {"ranker": buckets})]
    yes = [name for name, flag in judgement.flags.items() if flag is True]
    results += [_result("choices", "flags", {"choices": yes})] if yes else []
    results += [_result("textarea", "comment", {"text": [notes["comment"]]})] if "comment" in notes else []
    results += [_result("rating", "strength", {"rating": notes["strength"]})] if "strength" in notes else []
    annotation: dict[str, Any] = {"completed_by": judgement.rater, "lead_time": judgement.seconds}
    annotation |= {"created_at": judgement.created_at, "ground_truth": judgement.gold, "was_cancelled": False}
    annotation["result"] = results
    yield {"id": judgement.item_id, "data": _task(judgement), "annotations": [annotation]}


def _is_pair(judgement: Judgement) -> bool:
    """Whether `answer1` and `answer2` hold all there is to say of the answers, and one is better."""
    told = any(each.meta or each.model is not None for each in judgement.answers)
    return len(set(judgement.ranks)) == len(judgement.answers) == 2 and not told


def _task(judgement: Judgement) -> dict[str, Any]:
    texts = [plain(each, "a Label Studio task") for each in judgement.answers]
    turns = asked(judgement.prompt)
    shown = "\n\n".join(turn.content if len(turns) == 1 else f"{turn.role}: {turn.content}" for turn in turns)
    data: dict[str, Any] = {"prompt": shown}
    if judgement.prompt.is_chat:
        data["messages"] = [turn.as_dict() for turn in turns]
    if _is_pair(judgement):
        data |= {"answer1": texts[0], "answer2": texts[1]}
    else:
        data["items"] = [
            {**each.meta, "id": f"answer_{place}", "title": f"Answer {place}", "body": text}
            | ({} if each.model is None else {"model": each.model})
            for place, (each, text) in enumerate(zip(judgement.answers, texts, strict=True), 1)
        ]
    notes = write_notes(judgement, "item_id", *_OF_ANNOTATIONS)
    return {**{k: v for k, v in judgement.prompt.meta.items() if k not in data}, **notes, **data}


def _result(kind: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "answers", "type": kind, "value": value}
