"""Small campaigns for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from goodheart.data.records import Answer, Message, Prompt
from goodheart.feedback.assignment import next_task
from goodheart.feedback.campaigns import Campaign, CampaignSettings, create
from goodheart.feedback.items import NewItem
from goodheart.feedback.membership import join
from goodheart.feedback.people import add_person
from goodheart.feedback.store import Store
from goodheart.feedback.tasks import Task


def pairs(count: int, *, answers: int = 2, **more: Any) -> Iterator[NewItem]:
    """Items with different prompts; models are named m0, m1, ..."""
    for i in range(count):
        said = tuple(Answer(f"answer {k} of {i}", model=f"m{k}") for k in range(answers))
        yield NewItem(Prompt(messages=(Message("user", f"question {i} {more.get('phase', '')}"),)), said, **more)


def known(count: int, phase: str = "gold", ranks: tuple[int, ...] = (0, 1)) -> Iterator[NewItem]:
    """Items whose right answer is known."""
    return pairs(count, answers=len(ranks), phase=phase, gold={"ranks": list(ranks), "why": "because"})


def campaign(
    store: Store, count: int = 10, *, gold: int = 0, people: int = 1, **settings: Any
) -> tuple[Campaign, list[int]]:
    """A campaign with its labellers."""
    made = create(store, CampaignSettings(name="c", **settings), [*pairs(count), *known(gold)], "Which helps more?")
    ids = [add_person(store, f"p{i}").id for i in range(people)]
    for person in ids:
        join(store, made.id, person)
    return made, ids


def task(store: Store, campaign_id: int, person: int, **more: Any) -> Task:
    """The next task, which there must be."""
    found = next_task(store, campaign_id, person, **more)
    assert isinstance(found, Task), found
    return found
