"""Records to rows in each layout we write. What a layout cannot hold is a RowError and is counted, never bent.

What each one loses:

    ranked              nothing
    trl-preference      ties; which pairs came from one ranking of many; raters
    trl-conversational  that a prompt was raw text; where the prompt of a demonstration ends
    trl-sft             rejected answers
    kto                 margins; middle ranks
    hh                  that a prompt was raw text; spaces around turns; tools
    alpaca              ties; where the prompt ends; tools
    sharegpt            ties; where the prompt ends
    openai-preference   ties
    prompts             answers
    text                where the prompt ends; it holds no chats
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from goodheart.data.kinds import as_kind
from goodheart.data.messages import RowError
from goodheart.data.records import Answer, Demonstration, Judgement, Message, Prompt, Text, Thumb
from goodheart.data.shapes import Record
from goodheart.data.transcripts import as_transcript

Rows = Iterator[dict[str, Any]]
_NOTES = ("margin", "rater", "rater_attributes", "guideline", "seconds", "flags", "gold", "batch")


def to_rows(record: Record, layout: str) -> list[dict[str, Any]]:
    """Rows of `layout` that hold `record`; several for a ranking of many answers, none where all are tied.

    Raises:
        RowError: the layout cannot hold it.
    """
    return list(LAYOUTS[layout](record))


def _preferences(record: Record) -> Iterator[Judgement]:
    return (view for view in as_kind(record, "preference") if isinstance(view, Judgement))


def _demonstrations(record: Record) -> Iterator[Demonstration]:
    return (view for view in as_kind(record, "demonstration") if isinstance(view, Demonstration))


def _pairs(judgement: Judgement) -> Iterator[tuple[Answer, Answer]]:
    """All (better, worse) pairs, ties left out."""
    order = sorted(range(len(judgement.ranks)), key=judgement.ranks.__getitem__)
    for better, worse in itertools.combinations(order, 2):
        if judgement.ranks[better] < judgement.ranks[worse]:
            yield judgement.answers[better], judgement.answers[worse]


def _row(columns: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    return {**columns, **{key: value for key, value in meta.items() if key not in columns}}


def _said(answer: Answer, *, as_chat: bool) -> str | list[dict[str, Any]]:
    if not as_chat and not answer.messages:
        return answer.text
    return [turn.as_dict() for turn in answer.turns()]


def _asked(prompt: Prompt) -> tuple[Message, ...]:
    return prompt.messages if prompt.text is None else (Message("user", prompt.text),)


def _margin(judgement: Judgement) -> dict[str, float]:
    return {} if judgement.margin is None else {"margin": judgement.margin}


def ranked(record: Record) -> Rows:
    """prompt, completions, ranks and every note of the judgement."""
    for judgement in as_kind(record, "any"):
        if not isinstance(judgement, Judgement):
            raise RowError("only comparisons of answers have ranks")
        columns: dict[str, Any] = {
            "prompt": judgement.prompt.as_column(),
            "completions": [_with_model(answer, judgement.prompt.is_chat) for answer in judgement.answers],
            "ranks": list(judgement.ranks),
        }
        notes = {name: value for name in _NOTES if _is_said(value := getattr(judgement, name))}
        if judgement.weight != 1:
            notes["weight"] = judgement.weight
        if judgement.shown_order is not None:
            notes["shown_order"] = list(judgement.shown_order)
        yield _row({**columns, **notes}, judgement.prompt.meta)


def _is_said(note: Any) -> bool:
    """Whether a note says anything: 0 does (a margin of 0, no seconds), False and an empty mapping do not."""
    return not (note is None or note is False or note == {})


def _with_model(answer: Answer, as_chat: bool) -> Any:
    said = _said(answer, as_chat=as_chat)
    return said if answer.model is None else {"completion": said, "model": answer.model}


def trl_preference(record: Record) -> Rows:
    """prompt, chosen, rejected: text for raw prompts, messages for chats."""
    return _trl_pairs(record, as_chat=False)


def _trl_pairs(record: Record, *, as_chat: bool) -> Rows:
    for judgement in _preferences(record):
        prompt = judgement.prompt
        chat = as_chat or prompt.is_chat
        asked = [turn.as_dict() for turn in _asked(prompt)] if chat else prompt.text
        for better, worse in _pairs(judgement):
            pair = {"prompt": asked, "chosen": _said(better, as_chat=chat), "rejected": _said(worse, as_chat=chat)}
            yield _row({**pair, **_margin(judgement)}, prompt.meta)


def trl_conversational(record: Record) -> Rows:
    """Whatever the record is, as chat messages."""
    if isinstance(record, Judgement):
        yield from _trl_pairs(record, as_chat=True)
        return
    if isinstance(record, Text):
        raise RowError("a document is no conversation")
    prompt = record if isinstance(record, Prompt) else record.prompt
    asked = [turn.as_dict() for turn in _asked(prompt)]
    if isinstance(record, Prompt):
        yield _row({"prompt": asked}, prompt.meta)
    elif isinstance(record, Demonstration):
        yield _row({"messages": [*asked, *_said(record.answer, as_chat=True)]}, prompt.meta)
    else:
        mark = {"label": record.label} if isinstance(record, Thumb) else {"score": record.score}
        yield _row({"prompt": asked, "completion": _said(record.answer, as_chat=True), **mark}, prompt.meta)


def trl_sft(record: Record) -> Rows:
    """prompt, completion."""
    for demonstration in _demonstrations(record):
        prompt = demonstration.prompt
        said = _said(demonstration.answer, as_chat=prompt.is_chat)
        yield _row({"prompt": prompt.as_column(), "completion": said}, prompt.meta)


def kto(record: Record) -> Rows:
    """prompt, completion, label."""
    for thumb in as_kind(record, "thumb"):
        if isinstance(thumb, Thumb):
            prompt = thumb.prompt
            row = {"prompt": prompt.as_column(), "completion": _said(thumb.answer, as_chat=prompt.is_chat)}
            notes: dict[str, Any] = {} if thumb.rater is None else {"rater": thumb.rater}
            notes |= {} if thumb.weight == 1 else {"weight": thumb.weight}
            yield _row({**row, "label": thumb.label, **notes}, prompt.meta)


def hh(record: Record) -> Rows:
    """chosen, rejected as whole transcripts."""
    for judgement in _preferences(record):
        asked = _asked(judgement.prompt)
        for better, worse in _pairs(judgement):
            pair = {"chosen": as_transcript([*asked, *better.turns()])}
            pair["rejected"] = as_transcript([*asked, *worse.turns()])
            yield _row({**pair, **_margin(judgement)}, judgement.prompt.meta)


def alpaca(record: Record) -> Rows:
    """instruction, input, output, history, system; output is a list, best first, for comparisons."""
    if isinstance(record, Judgement):
        for judgement in _preferences(record):
            if len(set(judgement.ranks)) < len(judgement.ranks):
                raise RowError("a ranked Alpaca row cannot hold ties")
            order = sorted(range(len(judgement.ranks)), key=judgement.ranks.__getitem__)
            outputs = [_plain(judgement.answers[index]) for index in order]
            yield _alpaca_row(_asked(judgement.prompt), outputs, judgement.prompt.meta)
        return
    for demonstration in _demonstrations(record):
        turns = [*_asked(demonstration.prompt), *demonstration.answer.turns()]
        yield _alpaca_row(turns[:-1], _plain(Answer(messages=(turns[-1],))), demonstration.prompt.meta)


def _plain(answer: Answer) -> str:
    turns = answer.turns()
    if len(turns) > 1 or turns[0].extra:
        raise RowError("this layout holds answers of one plain turn only")
    return turns[0].content


def _alpaca_row(turns: Sequence[Message], output: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
    system = [turn.content for turn in turns[:1] if turn.role == "system"]
    turns = turns[len(system) :]
    wanted = ["user" if index % 2 == 0 else "assistant" for index in range(len(turns))]
    plain = [turn.role for turn in turns] == wanted and not any(turn.extra for turn in turns)
    if not plain or len(turns) % 2 == 0:
        raise RowError("an Alpaca row holds plain turns of user and assistant by turns only")
    said = [turn.content for turn in turns]
    columns = {"instruction": said[-1], "input": "", "output": output}
    columns |= {"history": [said[index : index + 2] for index in range(0, len(said) - 1, 2)]} if said[:-1] else {}
    return _row({**columns, **({"system": system[0]} if system else {})}, meta)


_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def _sharegpt_turn(turn: Message) -> dict[str, Any]:
    return {"from": _SHAREGPT[turn.role], "value": turn.content, **turn.extra}


def sharegpt(record: Record) -> Rows:
    """conversations, with chosen and rejected for comparisons."""
    if isinstance(record, Judgement):
        for judgement in _preferences(record):
            asked = [_sharegpt_turn(turn) for turn in _asked(judgement.prompt)]
            for better, worse in _pairs(judgement):
                if len(better.turns()) + len(worse.turns()) > 2:
                    raise RowError("a ShareGPT pair holds answers of one turn only")
                pair = {"chosen": _sharegpt_turn(better.turns()[0]), "rejected": _sharegpt_turn(worse.turns()[0])}
                yield _row({"conversations": asked, **pair, **_margin(judgement)}, judgement.prompt.meta)
        return
    for demonstration in _demonstrations(record):
        turns = [*_asked(demonstration.prompt), *demonstration.answer.turns()]
        yield _row({"conversations": [_sharegpt_turn(turn) for turn in turns]}, demonstration.prompt.meta)


def openai_preference(record: Record) -> Rows:
    """input.messages, preferred_output, non_preferred_output."""
    for judgement in _preferences(record):
        meta = dict(judgement.prompt.meta)
        given = {"messages": [turn.as_dict() for turn in _asked(judgement.prompt)]}
        given |= {key: meta.pop(key) for key in ("tools", "parallel_tool_calls") if key in meta}
        for better, worse in _pairs(judgement):
            outputs = [_said(better, as_chat=True), _said(worse, as_chat=True)]
            row = {"input": given, "preferred_output": outputs[0], "non_preferred_output": outputs[1]}
            yield _row({**row, **_margin(judgement)}, meta)


def prompts(record: Record) -> Rows:
    """prompt, and the columns beside it."""
    for prompt in as_kind(record, "prompt"):
        if isinstance(prompt, Prompt):
            yield _row({"prompt": prompt.as_column()}, prompt.meta)


def text(record: Record) -> Rows:
    """text: a document, or a raw prompt joined with its answer."""
    if isinstance(record, Text):
        yield _row({"text": record.text}, record.meta)
        return
    for demonstration in _demonstrations(record):
        if demonstration.prompt.text is None:
            raise RowError("a chat becomes text only through a model's chat template")
        yield _row({"text": demonstration.prompt.text + demonstration.answer.text}, demonstration.prompt.meta)


LAYOUTS: dict[str, Callable[[Record], Rows]] = {
    "trl-preference": trl_preference,
    "trl-conversational": trl_conversational,
    "trl-sft": trl_sft,
    "kto": kto,
    "hh": hh,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "openai-preference": openai_preference,
    "ranked": ranked,
    "prompts": prompts,
    "text": text,
}
