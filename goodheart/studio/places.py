"""Tasks and answers on their way between the page and the store.

The browser knows answers by their place on the page (0 is the first shown); the store knows them by their place in the
item. Here, and nowhere else, one becomes the other. The browser never learns which model wrote what in a blind
campaign, nor which items have a known answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from goodheart.data.records import Message, Prompt
from goodheart.feedback.answered import MOST_COMMENT, Answered
from goodheart.feedback.items import MOST_ANSWERS
from goodheart.feedback.tasks import Task
from goodheart.studio.markdown import render
from goodheart.studio.marks import sound
from goodheart.studio.words import script_of

Place = Annotated[int, Field(ge=0, lt=MOST_ANSWERS)]


class Label(BaseModel):
    """What the page sends when an answer is handed in; lists count by place on the page."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request: str = Field(pattern=r"^[A-Za-z0-9-]{8,64}$")
    ranks: list[Place] = Field(min_length=2, max_length=MOST_ANSWERS)
    strength: int | None = Field(None, ge=1, le=4)
    both_bad: bool = False
    flags: dict[str, list[Place]] = Field(default_factory=dict, max_length=50)
    ratings: dict[str, list[Annotated[int, Field(ge=1, le=5)] | None]] | None = Field(None, max_length=50)
    comment: str = Field("", max_length=MOST_COMMENT)
    seconds: float = Field(ge=0, le=86_400, allow_inf_nan=False)


def as_shown(task: Task) -> dict[str, Any]:
    """A task for the page: texts made safe, answers in shown order."""
    answers = [task.answers[index] for index in task.shown]
    asked = "\n".join(turn.content for turn in _turns(task.prompt))
    return {
        "id": task.id,
        "phase": task.phase,
        "guideline": task.guideline,
        "prompt": [_text(words_of([turn]), asked) | {"role": sound(turn.role)[:40]} for turn in _turns(task.prompt)],
        "answers": [
            _text(words_of(each.turns()), asked) | {"model": each.model and sound(each.model)} for each in answers
        ],
        "draft": _draft(task.draft, task.shown),
    }


def _turns(prompt: Prompt) -> Sequence[Message]:
    return prompt.messages if prompt.is_chat else (Message("prompt", prompt.text or ""),)


def words_of(turns: Sequence[Message]) -> str:
    """What turns say, their calls of tools as JSON: an answer that only calls a tool is not an empty one."""
    parts = []
    for turn in turns:
        parts.append(turn.content)
        if turn.extra.get("tool_calls"):
            parts.append(f"````json\n{json.dumps(turn.extra['tool_calls'], indent=1, ensure_ascii=False)}\n````")
    return "\n\n".join(part for part in parts if part)


def _text(text: str, asked: str) -> dict[str, Any]:
    shown = render(text)
    raw = None if shown.raw == shown.html else shown.raw
    about = {"characters": shown.characters, "left_out": shown.left_out, "folded": shown.folded}
    return {"html": shown.html, "raw": raw, "language": script_of(text, asked), **about}


def _draft(draft: Mapping[str, Any] | None, shown: Sequence[int]) -> dict[str, Any] | None:
    """What was said so far: as the page saved it, or, after undo, as the label said it."""
    if draft is None or "ranks" not in draft:
        return None if draft is None else dict(draft)
    said = as_said(draft, shown)
    return {"said": said, "seconds": draft.get("seconds") or 0.0}


def as_said(label: Mapping[str, Any], shown: Sequence[int]) -> dict[str, Any]:
    """A label by place on the page: the inverse of `as_stored`."""
    flags = {name: value for name, value in (label.get("flags") or {}).items() if name != "both_bad"}
    place = {index: at for at, index in enumerate(shown)}
    return {
        "ranks": [label["ranks"][index] for index in shown],
        "strength": label.get("strength"),
        "both_bad": bool((label.get("flags") or {}).get("both_bad")),
        "flags": {name: sorted(place[index] for index in held) for name, held in flags.items()},
        "ratings": {name: [row[index] for index in shown] for name, row in (label.get("ratings") or {}).items()},
        "comment": label.get("comment") or "",
    }


def as_stored(label: Label, shown: Sequence[int]) -> Answered:
    """A label by place in the item. Raises 422 where its lists do not fit the number of answers."""
    count = len(shown)
    rows: list[Sequence[Any]] = [label.ranks, *(label.ratings or {}).values()]
    if any(len(row) != count for row in rows) or any(at >= count for held in label.flags.values() for at in held):
        raise HTTPException(422)

    def by_item(row: Sequence[Any]) -> list[Any]:
        return [row[shown.index(index)] for index in range(count)]

    flags: dict[str, Any] = {name: [shown[at] for at in held] for name, held in label.flags.items()}
    return Answered(
        ranks=by_item(label.ranks),
        strength=label.strength,
        flags=flags | ({"both_bad": True} if label.both_bad else {}),
        ratings=label.ratings and {name: by_item(row) for name, row in label.ratings.items()},
        comment=sound(label.comment).strip() or None,
        seconds=label.seconds,
        request=label.request,
    )
