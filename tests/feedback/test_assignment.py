"""Who gets which item: locks, orders, gold, rounds; and that the counts hold whatever happens in whatever order."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import bindparam, event, insert, select, text, update

from goodheart.data.records import Answer
from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import assignment, audit, campaigns, expired, membership, people, seats
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import Idle, next_task, shown_order
from goodheart.feedback.campaigns import close_item
from goodheart.feedback.expired import release
from goodheart.feedback.known import known_right
from goodheart.feedback.labels import save, undo
from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tables import Moment, assignments, items, labels, members
from goodheart.feedback.tasks import Task, get_task, save_draft, skip
from tests.feedback.making import campaign, known, pairs, task

HOUR = timedelta(hours=1)


def idle(store: Store, campaign_id: int, person: int, **more: Any) -> str:
    found = next_task(store, campaign_id, person, **more)
    assert isinstance(found, Idle), found
    return found.why


def finish(store: Store, campaign_id: int, person: int, ranks: tuple[int, ...] = (0, 1)) -> list[int]:
    """Labels until there is nothing left; returns the items."""
    done = []
    while isinstance(found := next_task(store, campaign_id, person), Task):
        save(store, found.id, person, Answered(ranks))
        done.append(found.item)
    return done


def test_only_members_get_tasks(store: Store) -> None:
    made, _ = campaign(store)
    stranger = people.add_person(store, "stranger").id
    assert idle(store, made.id, stranger) == "not_a_member"
    with pytest.raises(MissingError):
        next_task(store, made.id + 1, stranger)


def test_asked_again_it_is_the_same_task(store: Store) -> None:
    made, (person,) = campaign(store)
    first, now = task(store, made.id, person), utcnow()
    later = task(store, made.id, person, now=now + timedelta(minutes=10))
    assert (later.id, later.shown) == (first.id, first.shown)
    assert later.expires_at == now + timedelta(minutes=30)  # looking at it renews the lock of 20 minutes


def test_one_label_each_is_held_for_one_person(store: Store) -> None:
    made, (one, two) = campaign(store, 2, people=2)
    first, second = task(store, made.id, one), task(store, made.id, two)
    assert first.item != second.item
    save(store, first.id, one, Answered([0, 1]))
    assert idle(store, made.id, one) == "nothing_left"
    save(store, second.id, two, Answered([0, 1]))
    assert idle(store, made.id, one) == "finished"


def test_a_lock_that_ran_out_frees_the_item(store: Store) -> None:
    made, (one, two) = campaign(store, 1, people=2)
    now = utcnow()
    first = task(store, made.id, one, now=now)
    assert idle(store, made.id, two, now=now + timedelta(minutes=19)) == "nothing_left"
    second = task(store, made.id, two, now=now + timedelta(minutes=20))
    assert second.item == first.item
    with pytest.raises(ConflictError, match="others have taken it"):
        save(store, first.id, one, Answered([0, 1]), now=now + timedelta(minutes=21))
    save(store, second.id, two, Answered([0, 1]), now=now + timedelta(minutes=21))


def test_a_late_label_counts_while_nobody_took_the_item(store: Store) -> None:
    made, (one, _) = campaign(store, 1, people=2)
    now = utcnow()
    first = task(store, made.id, one, now=now)
    assert release(store, made.id, now=now + HOUR) == 1
    save(store, first.id, one, Answered([0, 1]), now=now + HOUR)
    assert idle(store, made.id, one) == "finished"


def test_locks_are_ended_some_at_a_time_and_in_two_statements_at_most(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weekend's locks, 130 items held by two people each, are not all ended by who comes first."""
    made, people = campaign(store, 130, people=2, overlap=3, gold_share=0)
    held = [
        {"item_id": item + 1, "person_id": person, "campaign_id": made.id, "shown": [0, 1], "given_at": utcnow() - HOUR,
         "expires_at": utcnow() - HOUR / 2, "state": "given"} for item in range(130) for person in people
    ]  # fmt: skip
    with store.begin() as connection:
        connection.execute(insert(assignments), held)
        connection.execute(update(items).values(held=2))
    seen: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda _, __, statement, *___: seen.append(statement))
    assert release(store, made.id) == 200
    assert len([each for each in seen if "UPDATE" in each]) <= 2
    assert (release(store, made.id), release(store, made.id)) == (60, 0)
    with store.read() as connection:
        assert set(connection.execute(select(items.c.held)).scalars()) == {0}
        assert set(connection.execute(select(assignments.c.state)).scalars()) == {"expired"}


def test_what_was_left_open_comes_back_with_its_draft(store: Store) -> None:
    made, (one,) = campaign(store, 5)
    now = utcnow()
    first = task(store, made.id, one, now=now)
    save_draft(store, first.id, one, {"ranks": [1, 0]}, now=now)
    release(store, made.id, now=now + HOUR)
    again = task(store, made.id, one, now=now + HOUR)
    assert (again.id, again.shown, again.draft) == (first.id, first.shown, {"ranks": [1, 0]})
    assert again.expires_at == now + HOUR + timedelta(minutes=20)


@pytest.mark.parametrize("more", [0, 30], ids=["where nothing else is left", "among new ones"])
def test_what_was_left_open_long_ago_comes_back_too(store: Store, more: int) -> None:
    """Of much that was left open and is wanted no more only the newest is looked at for each task."""
    made, (one, two) = campaign(store, 15 + more, people=2, gold_share=0)
    now = utcnow()
    left = []
    for hour in range(15):
        found = task(store, made.id, one, now=now + hour * HOUR)
        save_draft(store, found.id, one, {"ranks": [0, 1]}, now=now + hour * HOUR)
        release(store, made.id, now=now + (hour + 0.5) * HOUR)
        taken = task(store, made.id, two, now=now + (hour + 0.5) * HOUR)
        assert taken.item == found.item
        save(store, taken.id, two, Answered([0, 1]), now=now + (hour + 0.5) * HOUR)
        left.append(found)
    for _ in range(15):
        last = undo(store, made.id, two, now=now + 15 * HOUR)
    assert last.item == left[0].item
    release(store, made.id, now=now + 16 * HOUR)  # all that `two` undid is wanted again
    with store.begin() as connection:  # but for the oldest
        newer = items.c.id.in_([each.item for each in left[1:]])
        connection.execute(update(items).where(newer).values(state="closed"))
    seen = []
    for _ in range(21):
        found = task(store, made.id, one, now=now + 16 * HOUR)
        seen.append(found.item)
        if found.item == left[0].item:
            break
        save(store, found.id, one, Answered([0, 1]), now=now + 16 * HOUR)
    assert found.id == left[0].id
    assert found.draft == {"ranks": [0, 1]}
    assert (len(seen) > 1) == bool(more)


def test_drafts_renew_the_lock_and_end_with_the_task(store: Store) -> None:
    made, (one,) = campaign(store, 2)
    now = utcnow()
    first = task(store, made.id, one, now=now)
    assert save_draft(store, first.id, one, {"x": 1}, now=now + HOUR / 6) == now + HOUR / 6 + HOUR / 3
    assert get_task(store, first.id, one).draft == {"x": 1}
    save(store, first.id, one, Answered([0, 1]))
    with pytest.raises(ConflictError, match="finished already"):
        save_draft(store, first.id, one, {"x": 2})
    with pytest.raises(FeedbackError, match="at most"):
        save_draft(store, task(store, made.id, one).id, one, {"x": "a" * 300_000})


@pytest.mark.parametrize("number", [0, 10**6, 2**31, 10**30])
def test_tasks_of_others_are_missing(store: Store, number: int) -> None:
    made, (one, two) = campaign(store, 2, people=2)
    theirs = task(store, made.id, two)
    for found in (theirs.id, number):
        for use in (
            lambda t: get_task(store, t, one),
            lambda t: save_draft(store, t, one, {}),
            lambda t: skip(store, t, one, ""),
            lambda t: save(store, t, one, Answered([0, 1])),
        ):
            with pytest.raises(MissingError):
                use(found)


def test_skipped_items_do_not_come_back_and_reach_an_adjudicator(store: Store) -> None:
    made, (one, two) = campaign(store, 1, people=2, max_skips=2)
    first = task(store, made.id, one)
    skip(store, first.id, one, "I know nothing of this")
    skip(store, first.id, one, "again")
    assert idle(store, made.id, one) == "nothing_left"
    skip(store, task(store, made.id, two).id, two, "nor I")
    with store.read() as connection:
        row = connection.execute(select(items)).one()
    assert (row.state, row.skips, row.held, row.done) == ("disputed", 2, 0, 0)
    with pytest.raises(ConflictError, match="skipped already"):
        save(store, first.id, one, Answered([0, 1]))


def test_higher_priorities_come_first_and_the_rest_at_random(store: Store) -> None:
    made = campaigns.create(store, campaigns.CampaignSettings(name="c", seed=3, gold_share=0), pairs(12))
    campaigns.add_items(store, made.id, pairs(3, answers=3, priority=5))
    campaigns.add_items(store, made.id, pairs(3, answers=4, priority=-5))
    person = people.add_person(store, "p").id
    membership.join(store, made.id, person)
    sizes, order = [], []
    while isinstance(found := next_task(store, made.id, person), Task):
        sizes.append(len(found.answers))
        order.append(found.item)
        save(store, found.id, person, Answered([0] * len(found.answers)))
    assert sizes == [3] * 3 + [2] * 12 + [4] * 3
    assert order[3:15] != sorted(order[3:15])


def test_new_items_of_high_priority_come_at_once(store: Store) -> None:
    made, (person,) = campaign(store, 10, gold_share=0)
    for _ in range(5):
        save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    campaigns.add_items(store, made.id, pairs(1, answers=3, priority=1))
    assert len(task(store, made.id, person).answers) == 3


def test_each_answer_is_first_equally_often() -> None:
    for count in (2, 3, 4):
        firsts = Counter(shown_order(0, 1, item, 7, count, 0)[0] for item in range(3000))
        # 3000 draws: a share lies within 4 standard deviations of 1/count (one false alarm in 16,000)
        for index in range(count):
            p = 1 / count
            assert abs(firsts[index] / 3000 - p) < 4 * (p * (1 - p) / 3000) ** 0.5
        # over the labellers of one item exactly equally often
        assert Counter(shown_order(0, 1, 5, person, count, person)[0] for person in range(2 * count)) == dict.fromkeys(
            range(count), 2
        )
    orders = Counter(shown_order(0, 1, item, 7, 3, item) for item in range(3000))
    assert len(orders) == 6
    assert min(orders.values()) > 400


def test_shown_order_is_kept_and_blind_answers_have_no_model(store: Store) -> None:
    made, (person,) = campaign(store, 1)
    found = task(store, made.id, person)
    assert sorted(found.shown) == [0, 1]
    assert found.answers == (Answer("answer 0 of 0"), Answer("answer 1 of 0"))
    assert found.prompt.messages[0].content.startswith("question 0")


def test_models_are_told_where_the_campaign_is_not_blind(store: Store) -> None:
    made, (person,) = campaign(store, 1, blind=False)
    assert [a.model for a in task(store, made.id, person).answers] == ["m0", "m1"]


def test_paused_and_closed_campaigns_give_nothing_but_take_what_is_open(store: Store) -> None:
    made, (person,) = campaign(store, 3)
    found = task(store, made.id, person)
    campaigns.pause(store, made.id)
    assert idle(store, made.id, person) == "campaign_paused"
    save(store, found.id, person, Answered([0, 1]))
    campaigns.resume(store, made.id)
    task(store, made.id, person)
    campaigns.close(store, made.id)
    assert idle(store, made.id, person) == "campaign_closed"


def test_gold_comes_among_the_work_at_random_places(store: Store) -> None:
    made, (one, two) = campaign(store, 60, gold=30, people=2, gold_share=0.3, overlap=2, seed=1)
    places = []
    for person in (one, two):
        done = finish(store, made.id, person)
        with store.read() as connection:
            gold = set(connection.execute(select(items.c.id).where(items.c.phase == "gold")).scalars())
        places.append([i for i, item in enumerate(done) if item in gold])
        # 60 items of work, 0.3 / 0.7 gold for each: 25.7, standard deviation 6.1; 30 at most
        assert 10 <= len(places[-1]) <= 30
        assert len(done) == len(set(done))
    assert places[0] != places[1]
    with store.read() as connection:
        looks = connection.execute(select(assignments.c.id, items.c.phase).join(items)).all()
    gold_task = next(row.id for row in looks if row.phase == "gold")
    assert get_task(store, gold_task, _owner(store, gold_task)).phase == "work"  # it cannot be told from the work


def _owner(store: Store, task_id: int) -> int:
    with store.read() as connection:
        return connection.execute(select(assignments.c.person_id).where(assignments.c.id == task_id)).scalar_one()


def test_careless_members_are_paused_by_gold_and_careful_ones_are_not(store: Store) -> None:
    made, (careful, careless) = campaign(
        store, 40, gold=20, people=2, gold_share=0.5, gold_pause_below=0.7, overlap=2, seed=2
    )
    finish(store, made.id, careful, (0, 1))
    finish(store, made.id, careless, (1, 0))
    first, second = membership.member(store, made.id, careful), membership.member(store, made.id, careless)
    assert first is not None
    assert second is not None
    assert (first.state, first.gold_right) == ("working", first.gold_seen)
    assert first.gold_seen >= 10
    assert (second.state, second.gold_seen, second.gold_right) == ("paused", 5, 0)
    assert second.reason == "0 of the newest 5 gold items right"
    assert idle(store, made.id, careless) == "paused"
    membership.set_member(store, made.id, careless, "working")
    assert isinstance(next_task(store, made.id, careless), Task)


def rounds(store: Store, **more: Any) -> tuple[int, int]:
    made = campaigns.create(
        store,
        campaigns.CampaignSettings(name="c", training=2, qualification=5, qualification_pass=0.8, **more),
        [*pairs(3), *known(2, "training"), *known(6, "qualification")],
    )
    person = people.add_person(store, "p").id
    membership.join(store, made.id, person)
    return made.id, person


def test_training_tells_and_qualification_tests(store: Store) -> None:
    made, person = rounds(store)
    for ranks in ((1, 0), (0, 1)):
        found = task(store, made, person)
        assert found.phase == "training"
        saved = save(store, found.id, person, Answered(ranks))
        assert saved.feedback is not None
        assert (saved.feedback.right, saved.feedback.ranks, saved.feedback.why) == (ranks == (0, 1), (0, 1), "because")
    assert saved.member == "qualifying"
    for i in range(5):  # 4 of 5 right is just enough
        found = task(store, made, person)
        assert found.phase == "qualification"
        with pytest.raises(FeedbackError, match="cannot be skipped"):
            skip(store, found.id, person, "hard")
        saved = save(store, found.id, person, Answered((0, 1) if i else (1, 0)))
        assert saved.feedback is None
    assert saved.member == "working"
    with pytest.raises(FeedbackError, match="cannot be undone"):
        undo(store, made, person)
    with pytest.raises(ConflictError, match="cannot be changed"):
        save(store, found.id, person, Answered([0, 0]))
    assert len(finish(store, made, person)) == 3


def test_who_fails_the_test_gets_no_work(store: Store) -> None:
    made, person = rounds(store)
    for _ in range(2):
        save(store, task(store, made, person).id, person, Answered([0, 1]))
    for i in range(5):
        saved = save(store, task(store, made, person).id, person, Answered((0, 1) if i > 1 else (1, 0)))
    assert saved.member == "failed"
    assert idle(store, made, person) == "failed"


def test_promised_rounds_need_their_items(store: Store) -> None:
    made, (person,) = campaign(store, qualification=3)
    assert idle(store, made.id, person) == "not_ready"
    campaigns.add_items(store, made.id, known(3, "qualification"))
    assert task(store, made.id, person).phase == "qualification"


def test_a_cursor_does_not_lose_what_came_free_behind_it(store: Store) -> None:
    made, (one, two) = campaign(store, 30, people=2, gold_share=0)
    now = utcnow()
    left = task(store, made.id, two, now=now)  # held by two, then never finished
    done = []
    for _ in range(29):
        found = task(store, made.id, one, now=now)
        save(store, found.id, one, Answered([0, 1]), now=now)
        done.append(found.item)
    assert left.item not in done
    assert idle(store, made.id, one, now=now) == "nothing_left"
    assert task(store, made.id, one, now=now + HOUR).item == left.item


def test_until_agreement_asks_more_people_only_where_they_differ(store: Store) -> None:
    made, everybody = campaign(store, 1, people=4, overlap=2, until_agreement=0.7, max_overlap=4)
    for person, ranks in zip(everybody, [(0, 1), (1, 0), (0, 1), (1, 0)], strict=True):
        save(store, task(store, made.id, person).id, person, Answered(ranks))
    with store.read() as connection:
        row = connection.execute(select(items)).one()
    assert (row.state, row.done, row.wanted) == ("disputed", 4, 4)  # 1/2, 2/3 and 1/2 of them agree: never 0.7


def test_until_agreement_stops_when_the_first_agree(store: Store) -> None:
    made, everybody = campaign(store, 1, people=3, overlap=2, until_agreement=0.7, max_overlap=4)
    for person in everybody[:2]:
        save(store, task(store, made.id, person).id, person, Answered([1, 0]))
    assert idle(store, made.id, everybody[2]) == "finished"


def test_quotas_keep_the_rest_in_reserve(store: Store) -> None:
    settings_ = campaigns.CampaignSettings(name="c", quotas={"language": {"en": 2, "zh": 1}}, gold_share=0)
    new = [
        item
        for language, answers in (("en", 2), ("zh", 3), ("fr", 4))
        for item in pairs(4, answers=answers, slice={"language": language})
    ]
    made = campaigns.create(store, settings_, new)
    person = people.add_person(store, "p").id
    membership.join(store, made.id, person)
    first = next_task(store, made.id, person)
    assert isinstance(first, Task)
    done = [first.item]
    save(store, first.id, person, Answered([0] * len(first.answers)))
    while isinstance(found := next_task(store, made.id, person), Task):
        save(store, found.id, person, Answered([0] * len(found.answers)))
        done.append(found.item)
    with store.read() as connection:
        rows = connection.execute(select(items.c.id, items.c.slice, items.c.state)).all()
    assert Counter(row.slice["language"] for row in rows if row.id in done) == {"en": 2, "zh": 1, "fr": 4}
    assert Counter(row.state for row in rows) == {"done": 7, "spare": 5}


def test_a_closed_item_is_replaced_from_the_reserve(store: Store) -> None:
    made = campaigns.create(
        store, campaigns.CampaignSettings(name="c", quotas={"l": {"en": 1}}), pairs(3, slice={"l": "en"})
    )
    person = people.add_person(store, "p").id
    membership.join(store, made.id, person)
    first = task(store, made.id, person)
    close_item(store, first.item)
    with store.read() as connection:
        states = Counter(connection.execute(select(items.c.state)).scalars())
    assert states == {"closed": 1, "open": 1, "spare": 1}
    save(store, first.id, person, Answered([0, 1]))  # what was in hand is kept all the same
    assert task(store, made.id, person).item != first.item


def test_answers_to_a_closed_gold_item_count_no_more(store: Store) -> None:
    """Its known answer was wrong: who answered otherwise is not held to be careless for it."""
    made, (person,) = campaign(store, 40, gold=2, gold_share=0.5, seed=3)
    wrong: int | None = None
    for _ in range(12):
        found = task(store, made.id, person)
        with store.read() as connection:
            is_gold = connection.execute(select(items.c.phase).where(items.c.id == found.item)).scalar() == "gold"
        save(store, found.id, person, Answered([1, 0] if is_gold and wrong is None else [0, 1]))
        wrong = found.item if is_gold and wrong is None else wrong
    assert wrong is not None
    assert known_right(store, made.id, person, "gold") == (2, 1)
    close_item(store, wrong)
    assert known_right(store, made.id, person, "gold") == (1, 1)
    close_item(store, wrong)  # a second time nothing happens
    assert [line.action for line in audit.entries(store)].count("close item") == 1


def test_a_closed_item_of_a_round_is_asked_no_more(store: Store) -> None:
    made, (person,) = campaign(store, 2, training=2)
    campaigns.add_items(store, made.id, known(3, "training"))
    first = task(store, made.id, person)
    save(store, first.id, person, Answered([0, 1]))
    second = task(store, made.id, person)
    close_item(store, second.item)
    save(store, second.id, person, Answered([0, 1]))
    third = task(store, made.id, person)  # two that count are wanted, and the closed one does not
    assert third.phase == "training"
    close_item(store, third.item)
    assert len({first.item, second.item, third.item}) == 3
    save(store, third.id, person, Answered([0, 1]))
    assert idle(store, made.id, person) == "not_ready"  # one is left of the two that the settings promise


# --- whatever happens in whatever order -------------------------------------------------------------------------------

ACTIONS = ("fetch", "fetch", "save", "save", "change", "repeat", "skip", "undo", "draft", "wait", "long wait")


class Walk:
    """People who do things in any order, and what must be true after each."""

    def __init__(self, store: Store, name: str, seed: int, **more: Any) -> None:
        self.store, self.now = store, utcnow()
        made = campaigns.create(
            store,
            campaigns.CampaignSettings(name=name, gold_share=0.2, gold_pause_below=0, seed=seed, **more),
            [*pairs(4), *known(2)],
        )
        self.campaign, self.most = made.id, made.settings.most_labels
        self.people = [people.add_person(store, f"{name} {i}").id for i in range(4)]
        for person in self.people:
            membership.join(store, self.campaign, person)
        self.open: dict[int, Task] = {}
        self.saved: dict[int, tuple[int, Answered]] = {}
        self.finished: set[tuple[int, int]] = set()
        self.acknowledged: dict[int, list[int]] = {}  # task -> ranks

    def step(self, action: str, person: int, first: bool) -> None:
        answered = Answered([0, 1] if first else [1, 0])
        held, last = self.open.get(person), self.saved.get(person)
        self.now += timedelta(minutes=30 if action == "long wait" else 6 if action == "wait" else 0)
        try:
            if action == "fetch":
                found = next_task(self.store, self.campaign, person, now=self.now)
                if isinstance(found, Task):
                    assert (found.item, person) not in self.finished, "given again"
                    self.open[person] = found
            elif action == "save" and held:
                save(self.store, held.id, person, answered, now=self.now)
                self._end(person, held)
                self.saved[person] = (held.id, answered)
                self.acknowledged[held.id] = list(answered.ranks)
            elif action == "change" and last:
                save(self.store, last[0], person, answered, now=self.now)
                self.saved[person] = (last[0], answered)
                self.acknowledged[last[0]] = list(answered.ranks)
            elif action == "repeat" and last:
                assert save(self.store, *last[:1], person, last[1], now=self.now).again
            elif action == "skip" and held:
                skip(self.store, held.id, person, "why", now=self.now)
                self._end(person, held)
            elif action == "undo":
                again = undo(self.store, self.campaign, person, now=self.now)
                self.finished.discard((again.item, person))
                self.open[person] = again
                self.saved.pop(person, None)
                del self.acknowledged[again.id]
            elif action == "draft" and held:
                save_draft(self.store, held.id, person, {"x": 1}, now=self.now)
        except ConflictError:
            self.open.pop(person, None)
        except FeedbackError as error:
            if "nothing to undo" not in str(error):
                raise

    def _end(self, person: int, held: Task) -> None:
        self.finished.add((held.item, person))
        del self.open[person]

    def check(self) -> None:
        with self.store.read() as connection:
            here = items.c.campaign_id == self.campaign
            rows = connection.execute(select(items).where(here)).all()
            live = connection.execute(
                select(labels.c.item_id, labels.c.person_id).where(labels.c.campaign_id == self.campaign, labels.c.live)
            ).all()
            locks = connection.execute(
                select(assignments.c.item_id, assignments.c.person_id, assignments.c.state).where(
                    assignments.c.campaign_id == self.campaign
                )
            ).all()
        done = Counter(row.item_id for row in live)
        held = Counter(row.item_id for row in locks if row.state == "given")
        assert len(set(live)) == len(live), "two labels of one person on one item count"
        assert len({(row.item_id, row.person_id) for row in locks}) == len(locks)
        assert {(row.item_id, row.person_id) for row in locks if row.state == "done"} == {tuple(row) for row in live}
        for row in rows:
            assert (row.done, row.held) == (done[row.id], held[row.id])
            if row.phase == "work":
                assert row.done + row.held <= row.wanted <= self.most
                if row.state == "done":
                    assert row.done >= min(row.wanted, 2)
                if row.state == "open":
                    assert row.done < row.wanted


_walks = iter(range(10**9))


@pytest.mark.parametrize("more", [{"overlap": 2}, {"overlap": 2, "until_agreement": 0.7, "max_overlap": 3}])
@settings(
    max_examples=10, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(
    seed=st.integers(0, 99),
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3), st.booleans()), min_size=20, max_size=50),
)
def test_counts_hold_after_any_interleaving(
    store: Store, more: dict[str, Any], seed: int, steps: list[tuple[str, int, bool]]
) -> None:
    walk = Walk(store, f"walk {next(_walks)}", seed, **more)
    for action, person, first in steps:
        walk.step(action, walk.people[person], first)
        walk.check()
    with store.read() as connection:
        here = (labels.c.campaign_id == walk.campaign) & labels.c.live
        kept = connection.execute(select(labels.c.assignment_id, labels.c.ranks).where(here)).all()
    assert {row.assignment_id: row.ranks for row in kept} == walk.acknowledged  # every answer as it was given last


@pytest.mark.parametrize("threads", [32])
def test_many_at_once_lose_and_double_nothing(store: Store, threads: int) -> None:
    made, everybody = campaign(store, 30, gold=4, people=threads, overlap=3, gold_share=0.1, gold_pause_below=0)
    errors: list[BaseException] = []
    acknowledged: list[tuple[int, int]] = []

    def labelling(person: int) -> None:
        try:
            while isinstance(found := next_task(store, made.id, person), Task):
                saved = save(store, found.id, person, Answered([0, 1]))
                acknowledged.append((saved.label, found.item))
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=labelling, args=(person,)) for person in everybody]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert errors == []
    with store.read() as connection:
        rows = connection.execute(select(items)).all()
        kept = connection.execute(select(labels.c.id, labels.c.item_id, labels.c.person_id)).all()
        turns = connection.execute(select(members.c.turns)).scalars().all()
    assert sorted((row.id, row.item_id) for row in kept) == sorted(acknowledged)
    assert len({(row.item_id, row.person_id) for row in kept}) == len(kept)
    for row in rows:
        if row.phase == "work":
            assert (row.done, row.held, row.state) == (3, 0, "done")
    assert sum(turns) >= len(kept)


def test_the_next_item_comes_from_the_index_of_waiting_ones(store: Store) -> None:
    """Without it a campaign of 100,000 items is read and sorted for each task."""
    made, (person,) = campaign(store, 50)
    where = {"campaign": made.id, "person": person, "cursor": 0, "now": utcnow()}
    explain = "EXPLAIN QUERY PLAN " if store.is_sqlite else "EXPLAIN "
    with store.begin() as connection:
        if not store.is_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        seat = seats._IN_CAMPAIGN.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
        asked = seat.construct_params(where)
        asked["now"] = where["now"].isoformat()
        values = tuple(asked[name] for name in seat.positiontup or ()) if store.is_sqlite else asked
        plan = connection.exec_driver_sql(explain + str(seat), values).all()
        assert "ix_assignments_locks" in str(plan)
        if store.is_sqlite:
            assert "ix_assignments_locks (campaign_id=? AND expires_at<?)" in str(plan)
        ends = expired._END_SQLITE if store.is_sqlite else expired._END_POSTGRES
        for written, index in (
            (assignment._NEXT[connection.dialect.name].element.text, "ix_items_waiting"),
            (ends.text, "ix_assignments_locks"),
        ):
            names = [bindparam("now", type_=Moment)] if ":now" in written else []
            plan = connection.execute(text(explain + written).bindparams(*names), where).all()
            assert index in str(plan)
            assert "TEMP B-TREE" not in str(plan)


def test_now_is_taken_where_it_is_not_given(store: Store) -> None:
    made, (person,) = campaign(store)
    assert abs((task(store, made.id, person).given_at - datetime.now().astimezone()).total_seconds()) < 60
