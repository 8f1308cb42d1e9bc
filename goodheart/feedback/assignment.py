"""Who gets which item next.

An item is held for the person who has it open until its lock runs out; then it is free for others, and comes back to
them, with their draft, while it is still wanted. What a person has labelled or skipped never comes back to them, except
by their own `undo`.

Locks of PostgreSQL rows are taken in the order member, assignment, item, so that no two transactions wait for each
other. The locks of others that ran out are ended in a transaction of its own, which takes what is free.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, bindparam, func, select, text, union_all, update

from goodheart.feedback.campaigns import Campaign, load
from goodheart.feedback.expired import release
from goodheart.feedback.known import answers_to_known
from goodheart.feedback.seats import OWN_COLUMNS, Own, Seat, own_task, take_seat
from goodheart.feedback.store import Store, insert_row, update_row, utcnow
from goodheart.feedback.tables import WAITING, assignments, items, members
from goodheart.feedback.tasks import HOLD, Task, hold, task_of

# Every so many tasks a member's cursor is forgotten, so that items that came free behind it are found; and all that
# they ever left open is looked through for what is wanted again, not just the newest.
_LOOK_BACK = 20
_NEWEST = 10
_END = 2**62  # a place after all others

# The question that is asked for every task is written out: its conditions stand in the words of the partial index, and
# SQLite, which keeps no statistics, is told to use that (it would sort all items of a campaign).
_SELECT_NEXT = f"""
    SELECT {", ".join(f"items.{column.name}" for column in items.c)}
    FROM items{{hint}} WHERE items.campaign_id = :campaign AND {WAITING} AND place > :cursor
    AND NOT EXISTS (SELECT 1 FROM assignments WHERE assignments.item_id = items.id AND assignments.person_id = :person)
    ORDER BY place LIMIT 1{{lock}}"""
_NEXT = {
    "sqlite": text(_SELECT_NEXT.format(hint=" INDEXED BY ix_items_waiting", lock="")).columns(*items.c),
    "postgresql": text(_SELECT_NEXT.format(hint="", lock=" FOR UPDATE OF items SKIP LOCKED")).columns(*items.c),
}


def _newest(state: str) -> Select[Any]:
    """A person's newest tasks of a state, the newest first."""
    mine = (assignments.c.campaign_id == bindparam("campaign")) & (assignments.c.person_id == bindparam("person"))
    found = select(*OWN_COLUMNS).where(mine, assignments.c.state == text(f"'{state}'"))
    newest = found.order_by(assignments.c.given_at.desc(), assignments.c.id.desc()).limit(_NEWEST)
    return select(newest.subquery())


# What a person has open (undo and fetching ahead leave several), and what they left open until its lock ran out.
_KEPT = union_all(_newest("given"), _newest("expired"))
_LAPSED = (
    select(assignments.c.id.label("assignment"), items)
    .join_from(assignments, items, items.c.id == assignments.c.item_id)
    .where(assignments.c.campaign_id == bindparam("campaign"), assignments.c.person_id == bindparam("person"))
    .where(text("assignments.state = 'expired'"), assignments.c.given_at >= bindparam("since"))
    .where(items.c.phase.in_(bindparam("phases", expanding=True)), items.c.state == "open")
    .where((items.c.phase != "work") | (items.c.done + items.c.held < items.c.wanted))
    .order_by(assignments.c.id)
    .limit(1)
    .with_for_update(of=[assignments, items])
)
_EVER = datetime.min.replace(tzinfo=UTC)
_CHANGE_MEMBER = update(members).where(
    members.c.campaign_id == bindparam("campaign"), members.c.person_id == bindparam("person")
)

Why = Literal[
    "finished",  # nothing is left to label in this campaign
    "nothing_left",  # nothing for this person now: they did all they can, or others hold the rest
    "campaign_paused",
    "campaign_closed",
    "paused",  # the person: by a manager, or by gold
    "failed",  # the qualification round
    "removed",
    "not_a_member",
    "not_ready",  # there are fewer training or qualification items than the settings promise
]


@dataclass(frozen=True, slots=True)
class Idle:
    """Why there is no task."""

    why: Why
    reason: str | None = None  # in a manager's words, or what gold said


def next_task(
    store: Store, campaign: int, person: int, *, besides: int | None = None, now: datetime | None = None
) -> Task | Idle:
    """The task a person has open, or else a new one.

    Args:
        besides: a task they are working on; gives the one that comes after it, so that a page can fetch it ahead. A
            person holds two tasks at most.

    Raises:
        MissingError: there is no such campaign.
    """
    now = now or utcnow()
    task = _next_task(store, campaign, person, besides, now, as_it_is=False)
    if task is None:
        release(store, campaign, now=now)
        task = _next_task(store, campaign, person, besides, now, as_it_is=True)
        assert task is not None
    return task


def _next_task(
    store: Store, campaign: int, person: int, besides: int | None, now: datetime, *, as_it_is: bool
) -> Task | Idle | None:
    """`next_task`. None: locks ran out, which are to be ended first; not where it is to be taken `as_it_is`."""
    with store.begin() as connection:
        taken = take_seat(connection, campaign, person, now)
        if taken is None:
            load(connection, campaign)
            return Idle("not_a_member")
        seat, over = taken
        if seat.state == "removed":
            return Idle("removed", seat.reason)
        if seat.campaign.state != "open":
            return Idle("campaign_paused" if seat.campaign.state == "paused" else "campaign_closed")
        if seat.state in ("paused", "failed"):
            return Idle("paused" if seat.state == "paused" else "failed", seat.reason)
        kept = [Own(*row) for row in connection.execute(_KEPT, {"campaign": campaign, "person": person})]
        held = sorted((own for own in kept if own.state == "given"), key=lambda own: (own.given_at, own.id))[::-1]
        lapsed = [own.given_at for own in kept if own.state == "expired"]
        at_hand = next((own for own in held if own.id == besides), None)
        other = next((own for own in held if own.id != besides), None)
        if at_hand is not None:
            _renew(connection, seat, at_hand, now)
        if other is not None:
            expires = _renew(connection, seat, other, now)
            item = connection.execute(select(items).where(items.c.id == other.item_id)).one()
            return task_of(seat.campaign, seat.guideline, item, other, expires)
        if over and not as_it_is:
            return None
        task = _new_task(connection, seat, lapsed, now)
        if at_hand is not None and isinstance(task, Task):
            # What is fetched ahead lies below the task at hand: the newest is the one they come back to.
            below = {"given_at": at_hand.given_at - timedelta(microseconds=1)}
            update_row(connection, assignments, task.id, below)
        return task


def _renew(connection: Connection, seat: Seat, own: Own, now: datetime) -> datetime:
    expires = now + timedelta(minutes=seat.campaign.settings.lock_minutes)
    update_row(connection, assignments, own.id, {"expires_at": expires})
    return expires


def _new_task(connection: Connection, seat: Seat, lapsed: Sequence[datetime], now: datetime) -> Task | Idle:
    """A task that is not open: one that lapsed (`lapsed`: when the newest of those were given), or a new one."""
    state = advanced(connection, seat.campaign, seat.person, seat.state)
    if state is None:
        return Idle("not_ready")
    changes: dict[str, Any] = {"turns": seat.turns + 1}
    if state != seat.state:
        changes["state"] = state
    phases = (ROUNDS[state],) if state in ROUNDS else ("work", "gold")
    since = _EVER if not lapsed or seat.turns % _LOOK_BACK == 0 else min(lapsed)
    back = _come_back(connection, seat, phases, since, now) if lapsed and state != "failed" else None
    given: Task | Idle
    if back is not None:
        given = back
    elif state == "failed":
        given = Idle("failed")
    elif state in ROUNDS:
        given = _round(connection, seat, ROUNDS[state], now)
    else:
        given = _work(connection, seat, changes, now)
        if isinstance(given, Idle) and len(lapsed) == _NEWEST:
            given = _come_back(connection, seat, phases, _EVER, now) or given
    connection.execute(_CHANGE_MEMBER, {"campaign": seat.campaign.id, "person": seat.person, **changes})
    return given


ROUNDS = {"training": "training", "qualifying": "qualification"}  # state of a member -> phase of the items they get


def advanced(connection: Connection, campaign: Campaign, person: int, state: str) -> str | None:
    """A member's state after what they have answered: training -> qualifying -> working or failed.

    None: the campaign has fewer items of the round than it promises.
    """
    settings = campaign.settings
    for now, wanted, after in (
        ("training", settings.training, "qualifying"),
        ("qualifying", settings.qualification, "working"),
    ):
        if state != now:
            continue
        if not wanted:
            state = after
            continue
        phase = (items.c.campaign_id == campaign.id) & (items.c.phase == ROUNDS[now]) & (items.c.state != "closed")
        right = answers_to_known(connection, campaign.id, person, ROUNDS[now])
        if len(right) < wanted:
            enough = connection.execute(select(func.count()).select_from(items).where(phase)).scalar_one() >= wanted
            return state if enough else None
        passed = now == "training" or sum(right) >= settings.qualification_pass * len(right) - 1e-9
        state = after if passed else "failed"
    return state


def _unseen(person: int) -> Any:
    """That a person has never had an item."""
    had = select(assignments.c.id).where(assignments.c.item_id == items.c.id, assignments.c.person_id == person)
    return ~had.exists()


def _round(connection: Connection, seat: Seat, phase: str, now: datetime) -> Task | Idle:
    """An item of training or qualification."""
    open_ones = (items.c.campaign_id == seat.campaign.id) & (items.c.phase == phase) & (items.c.state == "open")
    unseen = select(items).where(open_ones, _unseen(seat.person)).order_by(items.c.place).limit(1)
    item = connection.execute(unseen).first()
    return Idle("not_ready") if item is None else _give(connection, seat, item, now)


def _work(connection: Connection, seat: Seat, changes: dict[str, Any], now: datetime) -> Task | Idle:
    """An item of work, or of gold in its place; `changes` of the member's row are added to."""
    campaign = seat.campaign
    cursor = None if seat.turns % _LOOK_BACK == 0 else seat.cursor
    item = _waiting(connection, campaign.id, seat.person, cursor)
    if item is None and cursor is not None:
        item = _waiting(connection, campaign.id, seat.person, None)
    if item is None:
        changes["cursor"] = _END  # asked again, only what may have come free is looked for
        left = select(items.c.id).where(items.c.campaign_id == campaign.id, text("phase = 'work' AND state = 'open'"))
        return Idle("nothing_left" if connection.execute(left.limit(1)).first() else "finished")
    chance = random.Random(f"gold {campaign.settings.seed} {campaign.id} {seat.person} {seat.turns}")
    if chance.random() < campaign.settings.gold_share:
        gold = _gold(connection, campaign.id, seat.person, chance)
        if gold is not None:
            return _give(connection, seat, gold, now)
    changes["cursor"] = item.place
    return _give(connection, seat, item, now)


def _waiting(connection: Connection, campaign: int, person: int, cursor: int | None) -> Row[Any] | None:
    where = {"campaign": campaign, "person": person, "cursor": -_END if cursor is None else cursor}
    return connection.execute(_NEXT[connection.dialect.name], where).first()


def _gold(connection: Connection, campaign: int, person: int, chance: random.Random) -> Row[Any] | None:
    open_ones = (items.c.campaign_id == campaign) & (items.c.phase == "gold") & (items.c.state == "open")
    found = select(items.c.id).where(open_ones, _unseen(person)).order_by(items.c.place)
    ids = list(connection.execute(found).scalars())
    return connection.execute(select(items).where(items.c.id == chance.choice(ids))).first() if ids else None


def _come_back(
    connection: Connection,
    seat: Seat,
    phases: Sequence[str],
    since: datetime,
    now: datetime,
) -> Task | None:
    """What a person left open until its lock ran out, if it is an item of these phases and still wanted.

    since: among what they were given from then on.
    """
    where = {"campaign": seat.campaign.id, "person": seat.person, "phases": phases, "since": since}
    item = connection.execute(_LAPSED, where).first()
    if item is None:
        return None
    hold(connection, seat.campaign.settings, item.assignment, item.id, now)
    renewed = own_task(connection, item.assignment)
    return task_of(seat.campaign, seat.guideline, item, renewed, renewed.expires_at)


def _give(connection: Connection, seat: Seat, item: Row[Any], now: datetime) -> Task:
    campaign, person = seat.campaign, seat.person
    expires = now + timedelta(minutes=campaign.settings.lock_minutes)
    turn = item.done + item.held + item.skips
    shown = shown_order(campaign.settings.seed, campaign.id, item.id, person, len(item.answers), turn)
    values = {"item_id": item.id, "person_id": person, "campaign_id": campaign.id, "shown": list(shown)}
    values |= {"given_at": now, "expires_at": expires, "state": "given"}
    assignment = insert_row(connection, assignments, values)
    connection.execute(HOLD, {"item": item.id})
    own = Own(assignment, item.id, person, shown, now, expires, "given", draft=None)
    return task_of(campaign, seat.guideline, item, own, expires)


def shown_order(seed: int, campaign: int, item: int, person: int, count: int, turn: int) -> tuple[int, ...]:
    """In which order somebody sees the answers of an item.

    Which answer comes first goes round by `turn` (how many had the item before), from a random start: over an item's
    labellers each comes first equally often. The others follow in an order drawn for the item and the person.
    """
    first = (random.Random(f"first {seed} {campaign} {item}").randrange(count) + turn) % count
    rest = [index for index in range(count) if index != first]
    random.Random(f"shown {seed} {campaign} {item} {person}").shuffle(rest)
    return (first, *rest)
