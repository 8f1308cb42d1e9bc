"""Rows with one answer or none, read into `Demonstration`, `Rating`, `Thumb`, `Prompt` or `Text`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from goodheart.data.cells import Data, answer, chat, number, prompt, spare, truth
from goodheart.data.messages import RowError, as_list, from_turns, is_turns, messages
from goodheart.data.preferences import ALPACA, alpaca_turns
from goodheart.data.records import Answer, Demonstration, Message, Prompt, Rating, Text, Thumb


def completion(data: Data) -> list[Demonstration]:
    """prompt, completion."""
    return [Demonstration(*_asked_and_said(data, "completion"))]


def response(data: Data) -> list[Demonstration]:
    """prompt, response."""
    return [Demonstration(*_asked_and_said(data, "response"))]


def completions(data: Data) -> list[Demonstration]:
    """prompt and a list of completions that nobody has compared: one record for each."""
    found = as_list(data["completions"])
    if not found:
        raise RowError("completions must be a list with at least one answer")
    asked = prompt(data["prompt"], spare(data, "prompt", "completions"))
    return [Demonstration(asked, answer(item, f"answer {index}")) for index, item in enumerate(found, 1)]


def _asked_and_said(data: Data, said: str, *used: str) -> tuple[Prompt, Answer]:
    value = data["prompt"]
    if is_turns(data[said]) and isinstance(value, str) and not is_turns(value):
        value = [{"role": "user", "content": value}]  # chat messages answer a chat
    asked = prompt(value, spare(data, "prompt", said, "system", *used), system=data.get("system"))
    return asked, answer(data[said], said, to=value)


def thumb(data: Data) -> list[Thumb]:
    """prompt, completion, label (TRL's KTO)."""
    notes = _rater(data)
    asked, said = _asked_and_said(data, "completion", "label", *notes)
    return [Thumb(asked, said, bool(truth(data["label"])), **notes)]


def dialogue_thumb(data: Data) -> list[Thumb]:
    """conversations, kto_tag: the label is for the last turn."""
    key, turns = _turns(data)
    notes = _rater(data)
    if turns[-1].role != "assistant":
        raise RowError("the conversation does not end with the answer that is labelled")
    asked = chat(turns[:-1], spare(data, key, "system", "kto_tag", *notes), system=data.get("system"))
    return [Thumb(asked, from_turns(turns[-1:], "the last turn"), bool(truth(data["kto_tag"])), **notes)]


def rating(data: Data) -> list[Rating]:
    """prompt, completion, score."""
    notes = _rater(data)
    asked, said = _asked_and_said(data, "completion", "score", *notes)
    return [Rating(asked, said, number(data["score"], "score"), **notes)]


def _rater(data: Data) -> dict[str, Any]:
    notes: dict[str, Any] = {"rater": data["rater"]} if isinstance(data.get("rater"), str) else {}
    if data.get("weight") not in (None, ""):
        notes["weight"] = number(data["weight"], "weight")
    return notes


def conversation(data: Data) -> list[Demonstration | Prompt]:
    """messages or conversations: the answer is every turn from the assistant's first on; without one it is a prompt."""
    key, turns = _turns(data)
    meta = spare(data, key, "system")
    if all(turn.role != "assistant" for turn in turns):
        return [chat(turns, meta, system=data.get("system"))]
    return [_whole(turns, meta, data.get("system"), "the conversation")]


def _whole(turns: Sequence[Message], meta: Mapping[str, Any], system: Any, name: str) -> Demonstration:
    asked = next((index for index, turn in enumerate(turns) if turn.role in ("user", "tool")), len(turns))
    start = next((index for index, turn in enumerate(turns) if index > asked and turn.role == "assistant"), None)
    if start is None:
        raise RowError(f"{name} has no answer of the assistant to a question")
    return Demonstration(chat(turns[:start], meta, system=system), from_turns(turns[start:], name))


def _turns(data: Data) -> tuple[str, tuple[Message, ...]]:
    key = next(key for key in CONVERSATIONS if data.get(key) is not None)
    return key, messages(data[key])


CONVERSATIONS = ("messages", "conversations", "conversation")


def alpaca(data: Data) -> list[Demonstration]:
    """instruction, input, output, history: a conversation whose earlier turns are in `history`."""
    said = answer(data["output"], "output")
    return [_whole([*alpaca_turns(data), *said.turns()], spare(data, *ALPACA, "output"), data.get("system"), "output")]


def alpaca_question(data: Data) -> list[Prompt]:
    """instruction, input, without an output."""
    return [chat(alpaca_turns(data), spare(data, *ALPACA), system=data.get("system"))]


def instances(data: Data) -> list[Demonstration]:
    """instruction with a list of {input, output} (Self-Instruct): one record for each."""
    found = as_list(data["instances"])
    if not found or not all(isinstance(item, Mapping) for item in found):
        raise RowError("instances must be a list of {input, output}")
    meta = spare(data, "instruction", "instances")
    return [
        Demonstration(
            chat(alpaca_turns({"instruction": data["instruction"], "input": item.get("input")}), meta),
            answer(item.get("output"), "output"),
        )
        for item in found
    ]


def dolly(data: Data) -> list[Demonstration]:
    """instruction, context, response."""
    asked = chat(alpaca_turns(data, "context"), spare(data, "instruction", "context", "history", "response"))
    return [Demonstration(asked, answer(data["response"], "response"))]


def question(data: Data) -> list[Prompt]:
    """prompt alone."""
    return [prompt(data["prompt"], spare(data, "prompt", "system"), system=data.get("system"))]


def document(data: Data) -> list[Text]:
    """text."""
    if not isinstance(data["text"], str):
        raise RowError(f"text must be text, found {type(data['text']).__name__}")
    if not data["text"].strip():
        raise RowError("the text is empty")
    return [Text(data["text"], spare(data, "text"))]
