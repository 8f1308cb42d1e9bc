"""Single cells of a row: the prompt, an answer, a number, a yes or no, and the columns that are left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from goodheart.data.messages import RowError, as_list, from_turns, is_turns, message, messages
from goodheart.data.records import Answer, Message, Prompt
from goodheart.data.transcripts import is_transcript, transcript

Data = Mapping[str, Any]
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def prompt(value: Any, meta: Mapping[str, Any], *, system: Any = None) -> Prompt:
    """A prompt cell: messages, a transcript that ends in "Assistant:", or text to be continued.

    `system` is put before a chat's turns; before plain text it makes a chat of it.
    """
    if is_turns(value):
        turns = messages(value)
    elif not isinstance(value, str):
        raise RowError(f"the prompt must be text or a list of messages, found {type(value).__name__}")
    elif not value.strip():
        raise RowError("the prompt is empty")
    elif is_transcript(value) and value.rstrip().endswith("\n\nAssistant:"):
        turns = transcript(value.rstrip().removesuffix("\n\nAssistant:"))
    elif system:
        turns = (Message("user", value),)
    else:
        return Prompt(text=value, meta=meta)
    return chat(turns, meta, system=system)


def chat(turns: Sequence[Message], meta: Mapping[str, Any], *, system: Any = None) -> Prompt:
    """A chat prompt; refuses one in which nobody has asked anything."""
    if isinstance(system, str) and system.strip() and not (turns and turns[0].role == "system"):
        turns = (Message("system", system), *turns)
    if not any(turn.content.strip() for turn in turns if turn.role in ("user", "tool")):
        raise RowError("the prompt is empty" if turns else "there is no prompt before the answer")
    return Prompt(messages=tuple(turns), meta=meta)


def answer(value: Any, name: str = "answer", *, to: Any = None, model: str | None = None) -> Answer:
    """An answer cell: text, one message, a list of messages, or {"completion" or "text" or "response", "model", ...}.

    `to` is the prompt cell it belongs to: text that follows a transcript loses the spaces around it. What an object
    holds beside text and model (sampling settings, log-probability, how it ended) goes to `Answer.meta`.

    Raises:
        RowError: it is empty, or does not end in a turn of the assistant.
    """
    if isinstance(value, Mapping):
        key = next((key for key in ("completion", "text", "response", "answer", "output") if key in value), None)
        if key == "completion" or (key and "role" not in value and "from" not in value):
            said = value.get("model")
            named = said if isinstance(said, str) else model
            rest = {k: v for k, v in value.items() if k != key and v is not None and not (k == "model" and v == named)}
            return replace(answer(value[key], name, to=to, model=named), meta=rest)
        return replace(from_turns((message(value),), name), model=model)
    if is_turns(value):
        return replace(from_turns(messages(value), name), model=model)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(f"{name} is empty")
    if not isinstance(value, str):
        raise RowError(f"{name} must be text or a list of messages, found {type(value).__name__}")
    return Answer(value.strip() if is_transcript(to) else value, model=model)


def spare(data: Data, *used: str) -> dict[str, Any]:
    """The columns that a shape has no use for (null ones dropped); they travel in `Prompt.meta`."""
    meta = {key: value for key, value in data.items() if key not in used and value is not None}
    tools = as_list(meta.get("tools"))
    if tools is not None:
        meta["tools"] = tools
    return meta


def number(value: Any, name: str) -> float:
    """A number, also as the text of a CSV cell.

    Raises:
        RowError: it is none, or not a number (NaN).
    """
    try:
        found = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):  # the last of an integer beyond all floats
        found = float("nan")
    if found != found:
        raise RowError(f"{name} must be a number, found {value!r}")
    return found


def truth(value: Any) -> bool | None:
    """A label as true or false (also 1, 0 and the text of them), None where it is neither."""
    if isinstance(value, str):
        return _LABELS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None
