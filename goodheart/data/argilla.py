"""Argilla 2: records with fields, responses and suggestions, nested (`to_json`) or flat (`to_list(flatten=True)`).

    nested  {"id", "fields": {...}, "metadata": {...}, "responses": {QUESTION: [{"value", "user_id"}]}, ...}
    flat    {"id", FIELD: ..., "QUESTION.responses": [...], "QUESTION.responses.users": [...], ".status": [...]}

Of the questions, one orders the answers: a ranking of fields ([{"value", "rank"}] or names, best first), or a label
that names the better field or says tie. A question with numbers rates the one answer there is. The questions strength,
comment and flags of the same person become notes. One record of ours for each person who submitted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from goodheart.data.cells import Data, answer, number, prompt
from goodheart.data.messages import RowError, as_list, as_object
from goodheart.data.notes import read_notes, without_nulls, write_notes
from goodheart.data.records import Judgement, Rating
from goodheart.data.rows import Rows, asked, said

_PROMPTS = ("prompt", "instruction", "question", "input", "conversation", "messages", "chat", "text", "context")
_ANSWERS = ("response", "answer", "completion", "output", "generation", "chosen", "text")
_EQUAL = ("tie", "equal", "both", "same", "draw")
_BOTH_BAD = ("both_bad", "bothbad", "neither", "none")
_OWN = ("id", "_server_id", "status", "inserted_at", "updated_at")
# Notes that are about the record and not one person's word go to its metadata; all of them are plain values.
_METADATA = ("margin", "weight", "guideline", "gold", "batch", "source", "kind", "created_at", "group_id", "seconds",
             "probability")  # fmt: skip
_QUESTIONS = ("strength", "comment", "flags")  # what a person says beside the order


def is_nested(data: Data) -> bool:
    """Whether a row is a record with its fields in an object."""
    return as_object(data.get("fields")) is not None and as_object(data.get("responses")) is not None


def is_flat(data: Data) -> bool:
    """Whether a row is a record with a column for each field and question."""
    return any(name.endswith(".responses") and f"{name}.users" in data for name in data)


def read_flat(data: Data) -> list[Judgement | Rating]:
    """A flat record."""
    responses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    fields: dict[str, Any] = {}
    for name, value in data.items():
        question, dot, what = name.partition(".")
        if dot and (what.startswith("responses") or what.startswith("suggestion")):
            if what == "responses":
                values, people = as_list(value) or [], as_list(data.get(f"{name}.users")) or []
                states = as_list(data.get(f"{name}.status")) or [None] * len(values)
                if not len(values) == len(people) == len(states):
                    raise RowError(f"{name}: {len(values)} values of {len(people)} people with {len(states)} states")
                for said_value, person, state in zip(values, people, states, strict=True):
                    responses[question].append({"value": said_value, "user_id": person, "status": state})
        elif name not in _OWN and value is not None:
            fields[name] = value
    return _read(fields, {}, responses, data.get("id"))


def read_nested(data: Data) -> list[Judgement | Rating]:
    """A nested record."""
    fields, metadata = as_object(data["fields"]) or {}, as_object(data.get("metadata")) or {}
    return _read(without_nulls(fields), without_nulls(metadata), as_object(data["responses"]) or {}, data.get("id"))


def _read(
    fields: Mapping[str, Any], metadata: Mapping[str, Any], responses: Mapping[str, Any], key: Any
) -> list[Judgement | Rating]:
    """One record of ours for each person who submitted an order, or a rating."""
    people = _by_person(responses)
    read: list[Judgement | Rating] = []
    for person, values in people.items():
        asked_for = [value for question, value in values.items() if question not in _QUESTIONS]
        order = next((found for value in asked_for if (found := _order(value, fields)) is not None), None)
        if order is not None:
            names, ranks, flags = order
            more = {name: value for name, value in {**fields, **metadata}.items() if name not in names}
            flags |= {str(flag): True for flag in as_list(values.get("flags")) or []}
            told = {**more, "strength": values.get("strength"), "comment": values.get("comment"), "flags": flags}
            notes = read_notes({**told, "rater": person, "item_id": key}, len(names))
            asked_in = _prompt_field(fields, names)
            meta = {n: v for n, v in more.items() if n != asked_in and n not in notes}
            answers = tuple(answer(_chat(fields[name]), name) for name in names)
            read.append(Judgement(prompt(_chat(fields[asked_in]), meta), answers, ranks, **notes))
        else:
            read += _ratings(fields, metadata, values, person)
    return read


def _by_person(responses: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """person -> question -> value, of what was submitted."""
    people: dict[str, dict[str, Any]] = defaultdict(dict)
    for question, given in responses.items():
        for number_, response in enumerate(as_list(given) or [], 1):
            if not isinstance(response, Mapping):
                raise RowError(f"response {number_} to {question} is no object with value and user_id")
            if response.get("status") in (None, "submitted") and response.get("value") is not None:
                person = response.get("user_id")
                people["" if person is None else str(person)][question] = response["value"]
    return people


def _order(value: Any, fields: Mapping[str, Any]) -> tuple[list[str], tuple[int, ...], dict[str, bool]] | None:
    """Fields that are compared, their ranks and flags, where a response orders fields."""
    ranking = as_list(value)
    if ranking and len(ranking) > 1:
        given = [_ranked(place, each) for place, each in enumerate(ranking)]
        names = [_field(name, fields) for name, _ in given]
        if any(name is None for name in names) or len(set(names)) < len(names):
            return None
        ranks = {str(name): rank for name, (_, rank) in zip(names, given, strict=True)}
        tiers = sorted(set(ranks.values()))
        in_place = [name for name in fields if name in ranks]
        return in_place, tuple(tiers.index(ranks[name]) for name in in_place), {}
    if not isinstance(value, str):
        return None
    answers = _numbered(fields)
    word = re.sub(r"[^a-z]+", "_", value.lower()).strip("_")
    if len(answers) == 2 and (word in _EQUAL or word in _BOTH_BAD):
        return answers, (0, 0), {"both_bad": True} if word in _BOTH_BAD else {}
    best = _field(value, fields)
    if len(answers) == 2 and best in answers:
        return answers, (0, 1) if best == answers[0] else (1, 0), {}
    return None


def _ranked(place: int, given: Any) -> tuple[str, float]:
    if isinstance(given, Mapping):
        rank = given.get("rank")
        return str(given.get("value")), place if rank is None else number(rank, "rank")
    return str(given), place


def _field(name: str, fields: Mapping[str, Any]) -> str | None:
    """The field that a choice names: by its name, or by its number (response-2 for a field called answer_2)."""
    if name in fields:
        return name
    digits = re.search(r"\d+$", name)
    found = [field for field in fields if digits and re.search(r"\d+$", field) and _tail(field) == int(digits[0])]
    return found[0] if len(found) == 1 else None


def _tail(name: str) -> int:
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else -1


def _numbered(fields: Mapping[str, Any]) -> list[str]:
    """Fields called alike but for a number at the end, or chosen and rejected."""
    stems: dict[str, list[str]] = defaultdict(list)
    for name in fields:
        if _tail(name) >= 0:
            stems[re.sub(r"\d+$", "", name)].append(name)
    best = max(stems.values(), key=len, default=[])
    return best if len(best) > 1 else [name for name in ("chosen", "rejected") if name in fields]


def _prompt_field(fields: Mapping[str, Any], answers: Sequence[str]) -> str:
    rest = [name for name in fields if name not in answers]
    named = [name for name in _PROMPTS if name in rest]
    if not named and len(rest) != 1:
        raise RowError(f"which field is the prompt? call it prompt; found {', '.join(rest) or 'none'}")
    return (named or rest)[0]


def _chat(value: Any) -> Any:
    """A chat field's turns; they carry roles already."""
    return as_list(value) or value


def _ratings(
    fields: Mapping[str, Any], metadata: Mapping[str, Any], values: Mapping[str, Any], person: str
) -> Iterator[Rating]:
    rated = {name: v for name, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    scores = {name: value for name, value in rated.items() if name not in _QUESTIONS}
    if not scores:
        return
    if len(scores) > 1:
        raise RowError(f"several questions rate the answer ({', '.join(scores)}): which one counts is not known")
    found = next((name for name in _ANSWERS if name in fields and name != _PROMPTS[0]), None)
    if found is None:
        raise RowError("a rating, but no field called response, answer or completion that it is for")
    asked_in = _prompt_field(fields, [found])
    meta = {n: v for n, v in {**fields, **metadata}.items() if n not in (found, asked_in)}
    (score,) = scores.values()
    yield Rating(prompt(_chat(fields[asked_in]), meta), answer(_chat(fields[found]), found), score, person or None)


def write(judgement: Judgement) -> Rows:
    """One nested record with one response. Ties need Argilla's form with ranks, which its server takes and its
    Python client does not; without ties the order is a list of names, which both take.
    """
    names = [f"answer_{place}" for place in range(1, len(judgement.answers) + 1)]
    fields: dict[str, Any] = {"prompt": judgement.prompt.text or [turn.as_dict() for turn in asked(judgement.prompt)]}
    fields |= {name: said(each, as_chat=False) for name, each in zip(names, judgement.answers, strict=True)}
    order = sorted(range(len(names)), key=judgement.ranks.__getitem__)
    value: list[Any] = [names[place] for place in order]
    if len(set(judgement.ranks)) < len(names):
        value = [{"value": names[place], "rank": judgement.ranks[place] + 1} for place in order]
    notes = write_notes(judgement)
    person = judgement.rater or ""
    responses = {"ranking": [{"value": value, "user_id": person}]}
    responses |= {n: [{"value": notes[n], "user_id": person}] for n in ("strength", "comment") if n in notes}
    yes = [name for name, flag in judgement.flags.items() if flag is True]
    responses |= {"flags": [{"value": yes, "user_id": person}]} if yes else {}
    plain_columns = {k: v for k, v in judgement.prompt.meta.items() if isinstance(v, (str, int, float))}
    metadata = {**plain_columns, **{name: notes[name] for name in _METADATA if name in notes}}
    row = {"id": judgement.item_id, "status": "completed", "fields": fields, "metadata": metadata}
    yield {**row, "suggestions": {}, "responses": responses}
