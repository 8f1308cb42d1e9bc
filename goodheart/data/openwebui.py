"""Open WebUI: exported feedback, with the chat it was given in.

    {"id", "user_id", "type": "rating", "data": {"rating": 1 or -1, "model_id", "sibling_model_ids", "comment", ...},
     "meta": {"arena", "chat_id", "message_id"},
     "snapshot": {"chat": {"chat": {"history": {"messages": {id: message}}}}}}
    message  {"id", "parentId", "childrenIds", "role", "content", "model"}

An answer with siblings (other answers of the assistant to the same message) beats them all, or loses to them all: a
pair for each, which say nothing about the siblings among each other. Without siblings the feedback is a thumb.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goodheart.data.cells import Data, answer, chat, number, spare
from goodheart.data.messages import RowError, as_object, message
from goodheart.data.notes import group_of, read_notes
from goodheart.data.records import Answer, Judgement, Message, Prompt, Thumb
from goodheart.data.rows import Rows, all_pairs, asked, iso_time, other_notes, plain, plain_turns, row, seconds_of

_OWN = ("id", "user_id", "version", "type", "data", "meta", "snapshot", "created_at", "updated_at", "user")
Tree = Mapping[str, Mapping[str, Any]]  # id -> message


def is_feedback(data: Data) -> bool:
    """Whether a row is feedback."""
    return "rating" in (as_object(data["data"]) or {}) and as_object(data["meta"]) is not None


def read(data: Data) -> list[Judgement | Thumb]:
    """One feedback: a pair for each sibling, or a thumb; none where nothing was rated up or down."""
    given, meta = as_object(data["data"]) or {}, as_object(data["meta"]) or {}
    if given.get("rating") is None:
        return []
    rating = number(given["rating"], "rating")
    if rating not in (1, -1):
        raise RowError(f"rating must be 1 or -1, found {given['rating']!r}")
    tree = _tree(data.get("snapshot"))
    rated = tree.get(str(meta.get("message_id")))
    if rated is None:
        raise RowError("the rated message is not in the snapshot of the chat")
    columns = spare(data, *_OWN)
    if isinstance(given.get("reason"), str) and given["reason"]:
        columns["reason"] = given["reason"]
    turns = _before(tree, rated)
    prompt = chat(turns, columns)
    siblings = [other for other in tree.values() if other is not rated and _answers(other, rated)]
    if not siblings:
        user = data.get("user_id")
        return [Thumb(prompt, _answer(rated), rating == 1, rater=user if isinstance(user, str) else None)]
    notes = as_object(meta.get("notes")) or {}
    told = {"item_id": meta.get("chat_id"), "comment": given.get("comment"), **notes, "rater": data.get("user_id")}
    told["created_at"] = notes.get("created_at") or iso_time(data.get("created_at"))
    return [_judgement(prompt, rated, other, rating == 1, told) for other in siblings]


def _judgement(prompt: Prompt, rated: Any, other: Any, up: bool, told: dict[str, Any]) -> Judgement:
    """In the order in which the two were shown."""
    first = rated.get("place", 0) < other.get("place", 0)
    answers = (_answer(rated), _answer(other)) if first else (_answer(other), _answer(rated))
    return Judgement(prompt, answers, (0, 1) if first == up else (1, 0), **read_notes(told))


def _tree(snapshot: Any) -> Tree:
    """Messages of the chat by their ids, each with its place among the children of its parent."""
    found = as_object((as_object(snapshot) or {}).get("chat")) or {}
    inner = as_object(found.get("chat")) or found
    held = as_object((as_object(inner.get("history")) or {}).get("messages"))
    if not held:
        raise RowError("the feedback has no snapshot of its chat, so its texts are not known; export it with snapshots")
    tree = {str(key): {**cell, "id": str(key)} for key, cell in held.items() if isinstance(cell, Mapping)}
    for cell in tree.values():
        for place, child in enumerate(cell.get("childrenIds") or []):
            if str(child) in tree:
                tree[str(child)]["place"] = place
    return tree


def _answers(other: Mapping[str, Any], rated: Mapping[str, Any]) -> bool:
    same = other.get("parentId") == rated.get("parentId") and other.get("role") == "assistant"
    return same and bool(str(other.get("content") or "").strip())


def _before(tree: Tree, rated: Mapping[str, Any]) -> list[Message]:
    """The turns that led to a message, oldest first.

    Raises:
        RowError: they run in a circle.
    """
    turns: list[Message] = []
    parent, seen = rated.get("parentId"), set()
    while parent is not None and str(parent) in tree:
        if str(parent) in seen:
            raise RowError("the messages of the chat run in a circle")
        seen.add(str(parent))
        cell = tree[str(parent)]
        turns.insert(0, message({"role": cell.get("role"), "content": cell.get("content")}))
        parent = cell.get("parentId")
    return turns


def _answer(cell: Mapping[str, Any]) -> Answer:
    model = cell.get("model")
    return answer(cell.get("content"), "the rated answer", model=model if isinstance(model, str) else None)


def write(judgement: Judgement) -> Rows:
    """A feedback for each pair; notes it has no place for under `meta.notes`, which Open WebUI does not read.

    Raises:
        RowError: all answers tie, or a turn is more than text.
    """
    time = seconds_of(judgement.created_at)
    notes = other_notes(judgement, "rater", "comment", "item_id", *(["created_at"] if time is not None else []))
    for better, worse, tied in all_pairs(judgement):
        if tied:
            continue
        first, second = sorted((better, worse))
        sides = [judgement.answers[place] for place in (first, second)]
        rated = int(second == better)
        given: dict[str, Any] = {"rating": 1, "model_id": sides[rated].model, "comment": judgement.comment}
        given["sibling_model_ids"] = [sides[1 - rated].model]
        meta: dict[str, Any] = {"arena": True, "chat_id": judgement.item_id, "message_id": f"answer_{rated + 1}"}
        meta |= {"notes": notes} if notes else {}
        line: dict[str, Any] = {"id": f"{group_of(judgement)}-{first}-{second}", "user_id": judgement.rater}
        line |= {"type": "rating", "data": given, "meta": meta, "snapshot": _snapshot(judgement, sides)}
        yield row({**line, **({} if time is None else {"created_at": time})}, judgement.prompt.meta)


def _snapshot(judgement: Judgement, answers: list[Answer]) -> dict[str, Any]:
    turns = plain_turns(asked(judgement.prompt), "Open WebUI feedback")
    cells: dict[str, dict[str, Any]] = {}
    for place, turn in enumerate(turns):
        parent = f"turn_{place - 1}" if place else None
        cells[f"turn_{place}"] = {"parentId": parent, "childrenIds": [], "role": turn.role, "content": turn.content}
        if parent:
            cells[parent]["childrenIds"] = [f"turn_{place}"]
    last = f"turn_{len(turns) - 1}"
    for place, each in enumerate(answers, 1):
        text = plain(each, "Open WebUI feedback")
        cell: dict[str, Any] = {"parentId": last, "childrenIds": [], "role": "assistant", "content": text}
        cells[f"answer_{place}"] = {**cell, "model": each.model}
        cells[last]["childrenIds"].append(f"answer_{place}")
    messages = {key: {"id": key, **cell} for key, cell in cells.items()}
    return {"chat": {"chat": {"history": {"messages": messages, "currentId": "answer_1"}}}}
