from __future__ import annotations

from goodheart.data.records import Answer, Prompt
from goodheart.feedback.assignment import Idle, Task, next_task
from goodheart.feedback.campaigns import CampaignSettings, create
from goodheart.feedback.items import NewItem
from goodheart.feedback.labels import Answered, history, save, undo
from goodheart.feedback.people import add_person, join
from goodheart.feedback.store import Store


def test_smoke(store: Store) -> None:
    me = add_person(store, "me", "manager", password="correct horse")
    new = [NewItem(Prompt(text=f"Q{i}"), (Answer("a"), Answer("b"))) for i in range(3)]
    campaign = create(store, CampaignSettings(name="c"), new, "be good", by=me.id)
    join(store, campaign.id, me.id)
    for _ in range(3):
        task = next_task(store, campaign.id, me.id)
        assert isinstance(task, Task)
        save(store, task.id, me.id, Answered([0, 1], strength=2))
    idle = next_task(store, campaign.id, me.id)
    assert idle == Idle("finished")
    again = undo(store, campaign.id, me.id)
    assert again.id == task.id
    save(store, again.id, me.id, Answered([1, 1]))
    assert [(r.ranks, r.live) for r in history(store, task.item)] == [((0, 1), False), (None, False), ((0, 0), True)]
