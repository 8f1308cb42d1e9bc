"""Dialogues as one text (the transcript form of HH-RLHF), and the place where two dialogues that open alike part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from goodheart.data.messages import RowError
from goodheart.data.records import Message

_NAMES = {"user": "Human", "assistant": "Assistant"}
# Full-width marks after which a tokenizer starts anew: a place to cut text that has no spaces.
_CJK_MARKS = "。！？；：，、）」』】"


def is_transcript(value: Any) -> bool:
    """Whether text is a dialogue in the form of HH-RLHF: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    if not isinstance(value, str) or "\n\nAssistant:" not in value:
        return False
    return "\n\nHuman:" in value or value.lstrip().startswith("Human:")


def transcript(value: str) -> tuple[Message, ...]:
    """Turns of an HH-RLHF transcript, spaces around them dropped.

    Two turns of one side in a row (a label inside a text) become one message: chat templates refuse repeated roles.
    Text before the first label becomes a system message.
    """
    turns: list[Message] = []
    # Two plain splits are several times faster than one regular expression, and most of the work of reading HH.
    for index, piece in enumerate(("\n\n" + value.strip()).split("\n\nHuman:")):
        said, *replies = piece.split("\n\nAssistant:")
        if index or said.strip():
            _append(turns, "user" if index else "system", said.strip())
        for reply in replies:
            _append(turns, "assistant", reply.strip())
    return tuple(turns)


def _append(turns: list[Message], role: str, text: str) -> None:
    if turns and turns[-1].role == role:
        turns[-1] = Message(role, f"{turns[-1].content}\n\n{text}".strip())
    else:
        turns.append(Message(role, text))


def as_transcript(turns: Iterable[Message]) -> str:
    """The HH-RLHF form of a dialogue.

    Raises:
        RowError: a turn this form cannot hold (tools, a system message in the middle, a label inside a text).
    """
    text = ""
    for turn in turns:
        said = turn.content.strip() if turn.role != "system" else f"\n\n{turn.content.strip()}"
        if any(f"\n\n{name}:" in said for name in _NAMES.values()):
            raise RowError("a transcript cannot hold a turn that itself has a line starting with Human: or Assistant:")
        if turn.role == "system" and not text:
            text = turn.content.strip()
        elif turn.role in _NAMES and not turn.extra:
            text += f"\n\n{_NAMES[turn.role]}: {turn.content.strip()}"
        else:
            more = " with tool calls or other extras" if turn.extra else ""
            raise RowError(f"a transcript cannot hold a turn of role {turn.role}{more}")
    return text


def split_shared(first: Sequence[Message], second: Sequence[Message], names: str = "chosen and rejected") -> int:
    """Number of opening turns that two dialogues share, up to and with the last shared turn of the user (or a tool).

    Raises:
        RowError: not even the first question is shared.
    """
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    while shared and first[shared - 1].role not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise RowError(f"{names} do not open with the same question")
    return shared


def split_shared_text(first: str, second: str) -> int:
    """Number of opening characters that two texts share as whole words, the space before the next word left out.

    A cut inside a word would give other tokens than the model meets in use. Text without spaces is cut after
    full-width punctuation.

    Raises:
        RowError: no such place.
    """
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    for cut in range(min(shared, len(first) - 1, len(second) - 1), 0, -1):
        if _is_boundary(first[cut - 1], first[cut], second[cut]) and first[cut:].strip() and second[cut:].strip():
            return cut
    raise RowError("chosen and rejected share no opening words to take as the prompt; add a prompt column")


def _is_boundary(before: str, *after: str) -> bool:
    if before.isspace():
        return False
    return all(sign.isspace() for sign in after) or (before in _CJK_MARKS and all(sign.isalnum() for sign in after))
