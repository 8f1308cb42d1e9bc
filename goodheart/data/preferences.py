"""Rows that compare answers, read into `Judgement`: pairs as many projects write them, K ranked or scored answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from goodheart.data.cells import Data, answer, chat, number, prompt
from goodheart.data.messages import RowError, as_list, as_object, from_turns, is_turns, messages
from goodheart.data.notes import taken
from goodheart.data.records import Answer, Judgement, Message
from goodheart.data.transcripts import is_transcript, split_shared, split_shared_text, transcript

IDENTICAL = "chosen and rejected are identical"
ALPACA = ("instruction", "input", "history", "system")  # columns that make the prompt of an Alpaca row


def pair(data: Data) -> list[Judgement]:
    """chosen and rejected (TRL, HH-RLHF), with a prompt column or with the prompt inside both."""
    chosen, rejected, given = data["chosen"], data["rejected"], data.get("prompt")
    if is_transcript(chosen) and is_transcript(rejected):
        return _pair_of_dialogues(data, transcript(chosen), transcript(rejected))
    if is_turns(chosen) and is_turns(rejected):
        return _pair_of_dialogues(data, messages(chosen), messages(rejected))
    if given is None:
        for name in ("chosen", "rejected"):
            answer(data[name], name)  # an empty one is the better reason to give
        if not (isinstance(chosen, str) and isinstance(rejected, str)):
            raise RowError("there is no prompt column, and chosen and rejected are not whole dialogues")
        if chosen == rejected:
            raise RowError(IDENTICAL)
        cut = split_shared_text(chosen, rejected)
        given, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    notes, meta = taken(data, ("prompt", "chosen", "rejected", "system"))
    asked = prompt(given, meta, system=data.get("system"))
    answers = (answer(chosen, "chosen", to=given), answer(rejected, "rejected", to=given))
    return [Judgement(asked, answers, (0, 1), **notes)]


def _pair_of_dialogues(data: Data, chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Judgement]:
    """Whole dialogues are parted after the last question they share; bare answers belong to the prompt column."""
    given = data.get("prompt")
    if chosen[0].role != "assistant" and rejected[0].role != "assistant":
        cut = len(chosen) - 1 if chosen == rejected else split_shared(chosen, rejected)
        turns, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    elif is_turns(given):
        turns = messages(given)
    else:
        turns = (Message("user", given),) if isinstance(given, str) else ()
    notes, meta = taken(data, ("prompt", "chosen", "rejected", "system"))
    asked = chat(turns, meta, system=data.get("system"))
    return [Judgement(asked, (from_turns(chosen, "chosen"), from_turns(rejected, "rejected")), (0, 1), **notes)]


def sharegpt_pair(data: Data) -> list[Judgement]:
    """conversations, chosen, rejected: ShareGPT's turns with one message for each answer."""
    notes, meta = taken(data, ("conversations", "chosen", "rejected", "system"))
    asked = chat(messages(data["conversations"]), meta, system=data.get("system"))
    # In a CSV cell the one message is JSON text.
    chosen, rejected = (answer(_one_turn(data[name]) or data[name], name) for name in ("chosen", "rejected"))
    return [Judgement(asked, (chosen, rejected), (0, 1), **notes)]


def _one_turn(value: Any) -> Any:
    turn = as_object(value)
    return turn if turn and ("from" in turn or "role" in turn) else None


def openai_pair(data: Data) -> list[Judgement]:
    """input.messages, preferred_output, non_preferred_output: OpenAI's preference fine-tuning."""
    given = as_object(data["input"]) or {}
    notes, meta = taken(data, ("input", "preferred_output", "non_preferred_output"))
    rest = {key: value for key, value in given.items() if key != "messages" and value is not None}
    answers = tuple(answer(data[name], name) for name in ("preferred_output", "non_preferred_output"))
    return [Judgement(chat(messages(given["messages"]), {**rest, **meta}), answers, (0, 1), **notes)]


def alpaca_pair(data: Data) -> list[Judgement]:
    """instruction, input, chosen, rejected."""
    notes, meta = taken(data, (*ALPACA, "chosen", "rejected"))
    answers = (answer(data["chosen"], "chosen"), answer(data["rejected"], "rejected"))
    return [Judgement(chat(alpaca_turns(data), meta, system=data.get("system")), answers, (0, 1), **notes)]


def numbered_pair(data: Data) -> list[Judgement]:
    """prompt, response_0, response_1, better_response_id: PKU-SafeRLHF."""
    best = number(data["better_response_id"], "better_response_id")
    if best not in (0, 1):
        raise RowError(f"better_response_id must be 0 or 1, found {data['better_response_id']!r}")
    notes, meta = taken(data, ("prompt", "response_0", "response_1", "better_response_id"))
    answers = tuple(answer(data[f"response_{index}"], f"response_{index}") for index in (0, 1))
    return [Judgement(prompt(data["prompt"], meta), answers, (0, 1) if best == 0 else (1, 0), **notes)]


def ranked(data: Data) -> list[Judgement]:
    """prompt, completions, ranks (0 best, equal numbers tie) or scores (highest best, kept in `Answer.meta`).

    finish: how each answer ended ("length" = cut off), where it was sampled; kept in `Answer.meta` too.
    """
    column = "scores" if data.get("ranks") is None else "ranks"
    answers, values = _answers(data["completions"]), [number(value, column) for value in as_list(data[column]) or []]
    if len(values) != len(answers):
        raise RowError(f"{len(answers)} completions but {len(values)} {column}")
    tiers = sorted(set(values), reverse=column == "scores")
    if column == "scores":
        answers = [replace(a, meta={**a.meta, "score": v}) for a, v in zip(answers, values, strict=True)]
    ends = as_list(data.get("finish")) or []
    told = len(ends) == len(answers)
    if told:
        answers = [replace(a, meta={**a.meta, "finish": end}) for a, end in zip(answers, ends, strict=True)]
    notes, meta = taken(data, ("prompt", "completions", column, *(["finish"] if told else [])), len(answers))
    asked = prompt(data["prompt"], meta)
    return [Judgement(asked, tuple(answers), tuple(tiers.index(value) for value in values), **notes)]


def listed(data: Data) -> list[Judgement]:
    """prompt and a list of responses, best first."""
    answers = _answers(data["response"])
    notes, meta = taken(data, ("prompt", "response"), len(answers))
    return [Judgement(prompt(data["prompt"], meta), tuple(answers), tuple(range(len(answers))), **notes)]


def alpaca_listed(data: Data) -> list[Judgement]:
    """instruction, input and a list of outputs, best first."""
    answers = _answers(data["output"])
    notes, meta = taken(data, (*ALPACA, "output"), len(answers))
    asked = chat(alpaca_turns(data), meta, system=data.get("system"))
    return [Judgement(asked, tuple(answers), tuple(range(len(answers))), **notes)]


def _answers(value: Any) -> list[Answer]:
    found = as_list(value) or []
    if len(found) < 2:
        raise RowError(f"a comparison needs two or more answers, found {len(found)}")
    return [answer(item, f"answer {index}") for index, item in enumerate(found, 1)]


def alpaca_turns(data: Data, more: str = "input") -> list[Message]:
    """Turns of an Alpaca row up to its question: `history`, then instruction and `more` with a blank line between."""
    turns: list[Message] = []
    for past in as_list(data.get("history")) or []:
        if not (isinstance(past, list) and len(past) == 2 and all(isinstance(text, str) for text in past)):
            raise RowError("history must be a list of [question, answer] pairs")
        turns += [Message("user", past[0]), Message("assistant", past[1])]
    said = [data["instruction"], data.get(more)]
    if not all(isinstance(text, str | None) for text in said):
        raise RowError(f"instruction and {more} must be text")
    question = "\n\n".join(text for text in said if text and text.strip())
    if not question:
        raise RowError("the prompt is empty")
    return [*turns, Message("user", question)]
