"""OpenAssistant: conversation trees whose replies to one message are ranked, 0 best.

    {"message_tree_id", "tree_state", "prompt": node}
    node  {"message_id", "text", "role": "prompter" or "assistant", "rank", "lang", "deleted", "review_result",
           "replies": [node]}

Each message with two or more ranked replies of the assistant gives one judgement; deleted replies, and those that
reviewers refused, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from goodheart.data.cells import Data, answer, chat, number, spare
from goodheart.data.messages import ROLES, RowError, as_list, as_object
from goodheart.data.notes import read_notes, write_notes
from goodheart.data.records import Judgement, Message
from goodheart.data.rows import Rows, asked, plain, plain_turns, row

_DEEPEST = 500  # messages on the way from the first to the last; more is a broken file


def is_tree(data: Data) -> bool:
    """Whether the prompt is the root of a tree."""
    return "replies" in (as_object(data["prompt"]) or {})


def read(data: Data) -> list[Judgement]:
    """All rankings in a tree; none where nothing was ranked."""
    columns = spare(data, "prompt", "message_tree_id", "tree_state", "notes")
    notes = as_object(data.get("notes")) or {}
    return list(_rankings(as_object(data["prompt"]) or {}, (), columns, notes))


def _rankings(
    node: Mapping[str, Any], before: tuple[Message, ...], columns: dict[str, Any], notes: Mapping[str, Any]
) -> Iterator[Judgement]:
    if len(before) > _DEEPEST:
        raise RowError(f"the tree is deeper than {_DEEPEST} messages")
    role = ROLES.get(str(node.get("role")))
    if role is None or not isinstance(node.get("text"), str):
        raise RowError(f"message {node.get('message_id')!r} of the tree has no text and known role")
    turns = (*before, Message(role, node["text"]))
    replies = [reply for reply in as_list(node.get("replies")) or [] if isinstance(reply, Mapping)]
    kept = [reply for reply in replies if not reply.get("deleted") and reply.get("review_result") is not False]
    ranked = [r for r in kept if r.get("rank") is not None and ROLES.get(str(r.get("role"))) == "assistant"]
    if len(ranked) > 1:
        ranks = [number(reply["rank"], "rank") for reply in ranked]
        tiers = sorted(set(ranks))
        answers = tuple(_answer(reply, place) for place, reply in enumerate(ranked, 1))
        told = read_notes({"item_id": node.get("message_id"), **notes}, len(answers))
        meta = {**columns, **({"lang": node["lang"]} if node.get("lang") else {})}
        yield Judgement(chat(turns, meta), answers, tuple(tiers.index(rank) for rank in ranks), **told)
    for reply in kept:
        yield from _rankings(reply, turns, columns, notes)


def _answer(reply: Mapping[str, Any], place: int) -> Any:
    model = reply.get("model_name")
    return answer(reply.get("text"), f"reply {place}", model=model if isinstance(model, str) else None)


def write(judgement: Judgement) -> Rows:
    """One tree: the conversation, and the answers as ranked replies to its last message.

    Raises:
        RowError: a turn is more than text, or is the system's.
    """
    turns = plain_turns(asked(judgement.prompt), "an OpenAssistant tree")
    if any(turn.role == "system" for turn in turns):
        raise RowError("an OpenAssistant tree holds no turn of the system")
    notes = write_notes(judgement, "item_id")
    meta = {name: cell for name, cell in judgement.prompt.meta.items() if name != "lang"}
    replies: list[dict[str, Any]] = []
    for rank, each in zip(judgement.ranks, judgement.answers, strict=True):
        text = plain(each, "an OpenAssistant tree")
        reply = {"text": text, "role": "assistant", "rank": rank, "model_name": each.model, "replies": []}
        replies.append(reply)
    for place in range(len(turns) - 1, -1, -1):
        role = "prompter" if turns[place].role == "user" else "assistant"
        node: dict[str, Any] = {"text": turns[place].content, "role": role, "replies": replies}
        if place == len(turns) - 1:
            node |= {"message_id": judgement.item_id, "lang": judgement.prompt.meta.get("lang")}
        replies = [node]
    columns = {"message_tree_id": judgement.item_id, "tree_state": "ready_for_export", "prompt": replies[0]}
    yield row({**columns, **({"notes": notes} if notes else {})}, meta)
