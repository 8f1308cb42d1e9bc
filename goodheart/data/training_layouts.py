"""Layouts that trainers read: TRL, HH-RLHF, Alpaca, ShareGPT, OpenAI, plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from goodheart.data.kinds import as_kind
from goodheart.data.messages import RowError
from goodheart.data.records import Answer, Demonstration, Judgement, Message, Prompt, Rating, Text, Thumb
from goodheart.data.rows import Rows, asked, pair_notes, plain, row, said, untied_pairs
from goodheart.data.shapes import Record
from goodheart.data.transcripts import as_transcript


def comparisons(record: Record) -> Iterator[Judgement]:
    """The comparison a record is.

    Raises:
        RowError: it is none, or its answers are all the same.
    """
    return (view for view in as_kind(record, "preference") if isinstance(view, Judgement))


def _demonstrations(record: Record) -> Iterator[Demonstration]:
    return (view for view in as_kind(record, "demonstration") if isinstance(view, Demonstration))


def _mark_of(record: Thumb | Rating) -> dict[str, Any]:
    mark: dict[str, Any] = {"label": record.label} if isinstance(record, Thumb) else {"score": record.score}
    mark |= {} if record.rater is None else {"rater": record.rater}
    return mark | ({} if record.weight == 1 else {"weight": record.weight})


def trl_preference(record: Record) -> Rows:
    """prompt, chosen, rejected: text for raw prompts, messages for chats."""
    return _trl_pairs(record, as_chat=False)


def _trl_pairs(record: Record, *, as_chat: bool) -> Rows:
    for judgement in comparisons(record):
        prompt = judgement.prompt
        chat = as_chat or prompt.is_chat
        given = [turn.as_dict() for turn in asked(prompt)] if chat else prompt.text
        for better, worse in untied_pairs(judgement):
            pair = {"prompt": given, "chosen": said(better, as_chat=chat), "rejected": said(worse, as_chat=chat)}
            yield row({**pair, **pair_notes(judgement)}, prompt.meta)


def trl_conversational(record: Record) -> Rows:
    """Whatever the record is, as chat messages."""
    if isinstance(record, Judgement):
        yield from _trl_pairs(record, as_chat=True)
        return
    if isinstance(record, Text):
        raise RowError("a document is no conversation")
    prompt = record if isinstance(record, Prompt) else record.prompt
    given = [turn.as_dict() for turn in asked(prompt)]
    if isinstance(record, Prompt):
        yield row({"prompt": given}, prompt.meta)
    elif isinstance(record, Demonstration):
        yield row({"messages": [*given, *said(record.answer, as_chat=True)]}, prompt.meta)
    else:
        columns = {"prompt": given, "completion": said(record.answer, as_chat=True), **_mark_of(record)}
        yield row(columns, prompt.meta)


def trl_sft(record: Record) -> Rows:
    """prompt, completion."""
    for demonstration in _demonstrations(record):
        prompt = demonstration.prompt
        cell = said(demonstration.answer, as_chat=prompt.is_chat)
        yield row({"prompt": prompt.as_column(), "completion": cell}, prompt.meta)


def kto(record: Record) -> Rows:
    """prompt, completion, label."""
    return _marked(view for view in as_kind(record, "thumb") if isinstance(view, Thumb))


def ratings(record: Record) -> Rows:
    """prompt, completion, score."""
    return _marked(view for view in as_kind(record, "rating") if isinstance(view, Rating))


def _marked(records: Iterator[Thumb] | Iterator[Rating]) -> Rows:
    for record in records:
        prompt = record.prompt
        cell = said(record.answer, as_chat=prompt.is_chat)
        yield row({"prompt": prompt.as_column(), "completion": cell, **_mark_of(record)}, prompt.meta)


def hh(record: Record) -> Rows:
    """chosen, rejected as whole transcripts."""
    for judgement in comparisons(record):
        turns = asked(judgement.prompt)
        for better, worse in untied_pairs(judgement):
            pair = {"chosen": as_transcript([*turns, *better.turns()])}
            pair["rejected"] = as_transcript([*turns, *worse.turns()])
            yield row({**pair, **pair_notes(judgement)}, judgement.prompt.meta)


def alpaca(record: Record) -> Rows:
    """instruction, input, output, history, system; output is a list, best first, for comparisons."""
    if isinstance(record, Judgement):
        for judgement in comparisons(record):
            if len(set(judgement.ranks)) < len(judgement.ranks):
                raise RowError("a ranked Alpaca row cannot hold ties")
            order = sorted(range(len(judgement.ranks)), key=judgement.ranks.__getitem__)
            outputs = [plain(judgement.answers[index]) for index in order]
            yield _alpaca_row(asked(judgement.prompt), outputs, judgement.prompt.meta)
        return
    for demonstration in _demonstrations(record):
        turns = [*asked(demonstration.prompt), *demonstration.answer.turns()]
        yield _alpaca_row(turns[:-1], plain(Answer(messages=(turns[-1],))), demonstration.prompt.meta)


def _alpaca_row(turns: Sequence[Message], output: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
    system = [turn.content for turn in turns[:1] if turn.role == "system"]
    turns = turns[len(system) :]
    wanted = ["user" if index % 2 == 0 else "assistant" for index in range(len(turns))]
    are_plain = [turn.role for turn in turns] == wanted and not any(turn.extra for turn in turns)
    if not are_plain or len(turns) % 2 == 0:
        raise RowError("an Alpaca row holds plain turns of user and assistant by turns only")
    texts = [turn.content for turn in turns]
    columns = {"instruction": texts[-1], "input": "", "output": output}
    columns |= {"history": [texts[index : index + 2] for index in range(0, len(texts) - 1, 2)]} if texts[:-1] else {}
    return row({**columns, **({"system": system[0]} if system else {})}, meta)


_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def _sharegpt_turn(turn: Message) -> dict[str, Any]:
    return {"from": _SHAREGPT[turn.role], "value": turn.content, **turn.extra}


def sharegpt(record: Record) -> Rows:
    """conversations, with chosen and rejected for comparisons."""
    if isinstance(record, Judgement):
        for judgement in comparisons(record):
            given = [_sharegpt_turn(turn) for turn in asked(judgement.prompt)]
            for better, worse in untied_pairs(judgement):
                if len(better.turns()) + len(worse.turns()) > 2:
                    raise RowError("a ShareGPT pair holds answers of one turn only")
                pair = {"chosen": _sharegpt_turn(better.turns()[0]), "rejected": _sharegpt_turn(worse.turns()[0])}
                yield row({"conversations": given, **pair, **pair_notes(judgement)}, judgement.prompt.meta)
        return
    for demonstration in _demonstrations(record):
        turns = [*asked(demonstration.prompt), *demonstration.answer.turns()]
        yield row({"conversations": [_sharegpt_turn(turn) for turn in turns]}, demonstration.prompt.meta)


def openai_preference(record: Record) -> Rows:
    """input.messages, preferred_output, non_preferred_output."""
    for judgement in comparisons(record):
        meta = dict(judgement.prompt.meta)
        given = {"messages": [turn.as_dict() for turn in asked(judgement.prompt)]}
        given |= {key: meta.pop(key) for key in ("tools", "parallel_tool_calls") if key in meta}
        for better, worse in untied_pairs(judgement):
            outputs = [said(better, as_chat=True), said(worse, as_chat=True)]
            pair = {"input": given, "preferred_output": outputs[0], "non_preferred_output": outputs[1]}
            yield row({**pair, **pair_notes(judgement)}, meta)


def prompts(record: Record) -> Rows:
    """prompt, and the columns beside it."""
    for prompt in as_kind(record, "prompt"):
        if isinstance(prompt, Prompt):
            yield row({"prompt": prompt.as_column()}, prompt.meta)


def text(record: Record) -> Rows:
    """text: a document, or a raw prompt joined with its answer."""
    if isinstance(record, Text):
        yield row({"text": record.text}, record.meta)
        return
    for demonstration in _demonstrations(record):
        if demonstration.prompt.text is None:
            raise RowError("a chat becomes text only through a model's chat template")
        yield row({"text": demonstration.prompt.text + demonstration.answer.text}, demonstration.prompt.meta)
