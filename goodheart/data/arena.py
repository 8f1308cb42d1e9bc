"""Votes of a chat arena between two models: FastChat's log, and the table the Chatbot Arena publishes.

    log    {"tstamp", "type": "leftvote", "rightvote", "tievote" or "bothbad_vote", "models", "states": [...], "ip"}
    state  {"roles", "messages": [[role, text], ...], "offset", "system_message", "conv_id", "model_name"}
    table  {"question_id", "model_a", "model_b", "winner": "model_a", "model_b", "tie" or "tie (bothbad)", "judge",
            "conversation_a": [messages], "conversation_b", "tstamp"}

The prompt is what both conversations share, up to the last shared question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from goodheart.data.cells import Data, chat, spare
from goodheart.data.messages import RowError, as_list, as_object, from_turns, messages
from goodheart.data.notes import read_notes
from goodheart.data.records import Answer, Judgement, Message
from goodheart.data.rows import Rows, all_pairs, asked, iso_time, other_notes, plain_turns, row, seconds_of
from goodheart.data.transcripts import split_shared

_VOTES: dict[str, tuple[tuple[int, int], dict[str, bool]]] = {
    "leftvote": ((0, 1), {}),
    "rightvote": ((1, 0), {}),
    "tievote": ((0, 0), {}),
    "bothbad_vote": ((0, 0), {"both_bad": True}),
}
_WINNERS = {"model_a": "leftvote", "model_b": "rightvote", "tie": "tievote", "tie (bothbad)": "bothbad_vote"}


def is_log(data: Data) -> bool:
    """Whether a row is a line of FastChat's log: other lines (chats, shares) are of other types."""
    return as_list(data["states"]) is not None and isinstance(data["type"], str)


def read_log(data: Data) -> list[Judgement]:
    """A line of the log; none where it is about something else than a vote on two answers."""
    states = as_list(data["states"]) or []
    if data["type"] not in _VOTES or len(states) != 2:
        return []
    named = as_list(data.get("models")) or []
    turns, models = [], []
    for side, state in enumerate(states):
        cell = as_object(state)
        if cell is None:
            raise RowError(f"state {side + 1} is no object with messages")
        turns.append(_said(cell))
        # Where models are hidden while they compete, only the state knows which one it was.
        known = [name for name in (*named[side : side + 1], cell.get("model_name")) if name]
        models.append(str(known[0]) if known else None)
    given = as_object(data.get("notes")) or {}
    told = {"item_id": (as_object(states[0]) or {}).get("conv_id"), **given}
    told |= {"rater": data.get("ip"), "created_at": given.get("created_at") or iso_time(data.get("tstamp"))}
    meta = spare(data, "tstamp", "type", "models", "states", "ip", "notes")
    return [_judgement(turns, models, data["type"], told, meta)]


def read_table(data: Data) -> list[Judgement]:
    """A row of the published table."""
    vote = _WINNERS.get(str(data["winner"]))
    if vote is None:
        raise RowError(f"winner must be one of {', '.join(_WINNERS)}; found {data['winner']!r}")
    turns = [messages(data[name]) for name in ("conversation_a", "conversation_b")]
    told = {"item_id": data.get("question_id"), "rater": data.get("judge"), "created_at": iso_time(data.get("tstamp"))}
    models = [name if isinstance(name, str) else None for name in (data.get("model_a"), data.get("model_b"))]
    meta = spare(data, "question_id", "judge", "tstamp", "model_a", "model_b", "winner", "conversation_a",
                 "conversation_b")  # fmt: skip
    return [_judgement(turns, models, vote, told, meta)]


def _said(state: Mapping[str, Any]) -> tuple[Message, ...]:
    """The turns of a state, without the examples that `offset` counts and without an answer still to come."""
    roles = as_list(state.get("roles")) or ["user", "assistant"]
    said = as_list(state.get("messages")) or []
    turns = []
    for turn in said[int(state.get("offset") or 0) :]:
        if not (isinstance(turn, list) and len(turn) == 2 and turn[0] in roles):
            raise RowError("a turn of a state must be [role, text]")
        if turn[1] is not None and not isinstance(turn[1], str):
            raise RowError("a turn of a state holds more than text")
        if turn[1] is not None:
            turns.append(Message("user" if turn[0] == roles[0] else "assistant", turn[1]))
    system = state.get("system_message")
    return (Message("system", system), *turns) if isinstance(system, str) and system.strip() else tuple(turns)


def _judgement(
    turns: Sequence[Sequence[Message]], models: Sequence[str | None], vote: str, told: dict[str, Any], meta: Any
) -> Judgement:
    left, right = turns
    cut = len(left) - 1 if left == right else split_shared(left, right, "the two conversations")
    answers = []
    for side, (said, model) in enumerate(zip(turns, models, strict=True)):
        found = from_turns(tuple(said[cut:]), f"answer {side + 1}")
        answers.append(Answer(found.text, found.messages, model))
    ranks, flags = _VOTES[vote]
    notes = read_notes({**told, "flags": {**(as_object(told.get("flags")) or {}), **flags}})
    return Judgement(chat(left[:cut], meta), tuple(answers), ranks, **notes)


def write(judgement: Judgement) -> Rows:
    """A line of FastChat's log for each pair; notes it has no place for under `notes`, which FastChat does not read.

    Raises:
        RowError: a turn is more than text, or is the system's and not the first.
    """
    time = seconds_of(judgement.created_at)
    kept = ["created_at"] if time is not None else []
    notes = other_notes(judgement, "rater", "item_id", *kept)
    for better, worse, tied in all_pairs(judgement):
        first, second = sorted((better, worse))
        vote = "tievote" if tied else "leftvote" if better == first else "rightvote"
        if tied and judgement.flags.get("both_bad") is True:
            vote = "bothbad_vote"
        sides = [judgement.answers[place] for place in (first, second)]
        line: dict[str, Any] = {} if time is None else {"tstamp": time}
        line |= {"type": vote, "models": [each.model or "" for each in sides]}
        line["states"] = [_state(judgement, each) for each in sides]
        line |= {} if judgement.rater is None else {"ip": judgement.rater}
        yield row({**line, **({"notes": notes} if notes else {})}, judgement.prompt.meta)


def _state(judgement: Judgement, answer: Answer) -> dict[str, Any]:
    turns = plain_turns([*asked(judgement.prompt), *answer.turns()], "FastChat's log")
    system = [turn.content for turn in turns[:1] if turn.role == "system"]
    turns = turns[len(system) :]
    if any(turn.role == "system" for turn in turns):
        raise RowError("FastChat's log holds a turn of the system only at the beginning")
    return {
        "template_name": "",
        "system_message": system[0] if system else "",
        "roles": ["user", "assistant"],
        "messages": [[turn.role, turn.content] for turn in turns],
        "offset": 0,
        "conv_id": judgement.item_id,
        "model_name": answer.model,
    }
