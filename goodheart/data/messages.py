"""Chat turns as the many formats spell them, read into `Message` and `Answer`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from goodheart.data.records import Answer, Message


class RowError(ValueError):
    """One row cannot be used; the text says why. It becomes a bad row and never ends a run."""


ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool",
}  # fmt: skip


def message(value: Any) -> Message:
    """One turn from {"role", "content"} or {"from", "value"}; other keys go to `extra`."""
    if not isinstance(value, Mapping):
        raise RowError(f"a message must be an object with role and content, found {type(value).__name__}")
    said = value.get("role", value.get("from"))
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise RowError(f"unknown role {said!r}; known are {', '.join(ROLES)}")
    key = next((key for key in ("content", "value", "text") if key in value), None)
    extra = {k: v for k, v in value.items() if k not in ("role", "from", key) and v is not None}
    if said == "function_call":
        return _function_call(value.get(key) if key else None)
    return Message(role, content(value.get(key) if key else None), extra)


def content(value: Any) -> str:
    """Text of a message: a string, null (a turn of tool calls alone) or a list of text parts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in value]
        if all(kind == "text" for kind in kinds):
            return "".join(str(part.get("text") or "") for part in value)
        raise RowError(f"a message has parts that are no text: {', '.join(sorted(set(map(str, kinds)) - {'text'}))}")
    raise RowError(f"the content of a message is {type(value).__name__}, not text")


def _function_call(value: Any) -> Message:
    """ShareGPT's function_call turn as an assistant message with tool_calls, the form chat templates know."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return Message("assistant", content(value))
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return Message("assistant", content(value))
    function = [{"name": call["name"], "arguments": call.get("arguments", {})} for call in calls]
    return Message("assistant", "", {"tool_calls": [{"type": "function", "function": each} for each in function]})


def messages(value: Any) -> tuple[Message, ...]:
    """Turns of a conversation given as a list of messages, or as that list in JSON text (a CSV cell)."""
    parsed = as_list(value)
    if not parsed:
        raise RowError("the conversation is empty" if parsed == [] else "a conversation must be a list of messages")
    return tuple(message(item) for item in parsed)


def as_list(value: Any) -> list[Any] | None:
    """`value` where it is a list, or JSON text of one; else None."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def as_object(value: Any) -> Mapping[str, Any] | None:
    """`value` where it is an object, or JSON text of one (a CSV cell); else None."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping) else None


def is_turns(value: Any) -> bool:
    """Whether a cell holds chat messages (a list of objects with roles, maybe as JSON text) and not plain text."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return False
    found = as_list(value)
    return bool(found) and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in found or [])


def from_turns(turns: Sequence[Message], name: str = "answer") -> Answer:
    """An answer of one or more turns, the last of them the assistant's and not empty."""
    last = turns[-1] if turns else None
    if last is None or (last.role == "assistant" and not last.content.strip() and not last.extra.get("tool_calls")):
        raise RowError(f"{name} is empty")
    if last.role != "assistant":
        raise RowError(f"{name} ends with a turn of the {last.role}, not of the assistant")
    if len(turns) == 1 and not last.extra:
        return Answer(last.content)
    return Answer(messages=tuple(turns))
