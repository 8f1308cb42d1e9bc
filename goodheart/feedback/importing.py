"""Labels that were made elsewhere, into a campaign: the same comparison by several people becomes one item.

Two comparisons are the same where prompt and answers are, in whatever order the answers stand; ranks, shown orders,
flags and ratings are turned into the item's order. What has no column of its own is kept in `labels.notes`.

A file may be imported again: a rater's label takes the place of their older one unless it says the same in all it
says, and of labels that name no rater as many as are there already stay as they are.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from goodheart.data.rankings import said_by
from goodheart.data.records import Judgement
from goodheart.errors import FeedbackError
from goodheart.feedback import audit
from goodheart.feedback.bulk import insert_rows
from goodheart.feedback.campaign_items import add_rows, keep_quotas
from goodheart.feedback.campaigns import Campaign, load
from goodheart.feedback.items import NewItem, checked, unpack_answer
from goodheart.feedback.judged import Named, digest, label_of, name_of, order_of
from goodheart.feedback.labels import standing
from goodheart.feedback.membership import take_places
from goodheart.feedback.store import Store, take_turn, utcnow
from goodheart.feedback.tables import assignments, items, labels

_AT_ONCE = 1000  # judgements per statement
Unnamed = Counter[tuple[int, str]]  # (item, what was said) -> how often without a rater, so far
_OF_THE_STORE = ("campaign_id", "item_id", "person_id", "live", "request")  # what of a label its file did not say


@dataclass(slots=True)
class Imported:
    """What became of the judgements."""

    labels: int = 0
    items: int = 0  # new ones
    people: int = 0  # new ones
    replaced: int = 0  # labels of somebody who had labelled the item before: the older stays as history
    again: int = 0  # labels that were there already
    left_out: int = 0  # all answers the same, or too many of them


def import_judgements(
    store: Store, campaign: int, given: Iterable[Judgement], *, by: int | None = None, now: datetime | None = None
) -> Imported:
    """Adds judgements as labels: all of them or, on an error, none. They are held in memory.

    Raters become people who cannot log in. An item is done when it has as many labels as the campaign's `overlap`; else
    the rest is asked of the campaign's labellers.

    Raises:
        MissingError: there is no such campaign.
    """
    done, now = Imported(), now or utcnow()
    held = list(given)  # a slow source is read before others have to wait for the store
    source = iter(held)
    with store.begin() as connection:
        take_turn(connection)
        found = load(connection, campaign)
        take_turn(connection, campaign)
        named, unnamed = Named.of(connection, campaign), Unnamed()
        raters = {name_of(each.rater) for each in held if each.rater is not None}
        # First of all, so that what they have in hand changes no more: an import holds items while it goes on.
        take_places(connection, [named.people[name][0] for name in raters & named.people.keys()], campaign)
        while part := list(islice(source, _AT_ONCE)):
            _import(connection, found, part, named, unnamed, done, now)
        done.people = named.new_people
        what = {"campaign": campaign, "labels": done.labels, "items": done.items, "people": done.people}
        audit.note(connection, by, "import", what, now)
    return done


def _import(
    connection: Connection,
    campaign: Campaign,
    part: Sequence[Judgement],
    named: Named,
    unnamed: Unnamed,
    done: Imported,
    now: datetime,
) -> None:
    usable: list[tuple[str, Judgement]] = []
    new: dict[str, NewItem] = {}
    for each in part:
        item = NewItem(each.prompt, each.answers, batch=each.batch)
        try:
            checked(item)
        except FeedbackError:
            done.left_out += 1
            continue
        key = item.key
        usable.append((key, each))
        new.setdefault(key, item)
    if not usable:
        return
    done.items += add_rows(connection, campaign.id, campaign.settings, new.values()).items
    keep_quotas(connection, campaign.id, campaign.settings)
    here = (items.c.campaign_id == campaign.id) & (items.c.phase == "work") & items.c.key.in_(list(new))
    locked = select(items).where(here).order_by(items.c.id).with_for_update()
    rows = {row.key: row for row in connection.execute(locked)}
    said = {row.id: [said_by(unpack_answer(each)) for each in row.answers] for row in rows.values()}
    made = []
    for key, each in usable:
        row = rows[key]
        order = order_of([said_by(answer) for answer in each.answers], said[row.id])
        label = label_of(each, order, named.person(connection, each, now), now)
        guideline = named.guideline(connection, each.guideline, now)
        made.append({"campaign_id": campaign.id, "item_id": row.id, "guideline_id": guideline, **label})
    unknown = _without_again(connection, made, unnamed, done)
    if unknown:
        _count(connection, campaign, rows.values(), _insert(connection, unknown, done))


def _without_again(
    connection: Connection, made: Sequence[dict[str, Any]], unnamed: Unnamed, done: Imported
) -> list[dict[str, Any]]:
    """Labels without those that are there already.

    One that names no rater is named, in place of a client's request, by what it says and by how many of this import
    said the same before it: two who say the same are two, and a file that is imported again adds nobody.
    """
    for label in made:
        if label["person_id"] is None:
            words = words_of(label)
            unnamed[label["item_id"], words] += 1
            label["request"] = nameless(unnamed[label["item_id"], words], words)
    of_nobody = {label["item_id"] for label in made if label["person_id"] is None}
    here = labels.c.item_id.in_(of_nobody) & labels.c.person_id.is_(None)
    rows = connection.execute(select(labels.c.item_id, labels.c.request).where(here)).all() if of_nobody else []
    there = {(row.item_id, row.request) for row in rows}
    named = _named_again(connection, made)
    new = [
        each
        for index, each in enumerate(made)
        if index not in named and (each["person_id"] is not None or (each["item_id"], each["request"]) not in there)
    ]
    done.again += len(made) - len(new)
    return new


def _named_again(connection: Connection, made: Sequence[dict[str, Any]]) -> set[int]:
    """Which labels their raters' newest in the store repeat, counted from 0.

    A rater may stand in a file more than once for an item. Then what the file begins with is compared to as many labels
    as they have given last, in their order.
    """
    given = defaultdict[tuple[int, int, str], list[int]](list)
    for index, label in enumerate(made):
        if label["person_id"] is not None:
            given[label["item_id"], label["person_id"], label["kind"]].append(index)
    if not given:
        return set()
    had = defaultdict[tuple[int, int, str], list[dict[str, Any]]](list)
    columns = [labels.c[name] for name in made[0]]
    of_items = labels.c.item_id.in_({item for item, _, _ in given}) & labels.c.person_id.is_not(None)
    for row in connection.execute(select(*columns).where(of_items).order_by(labels.c.id)).mappings():
        had[row["item_id"], row["person_id"], row["kind"]].append(dict(row))
    found = set[int]()
    for key, indices in given.items():
        if not had[key] or not had[key][-1]["live"]:
            continue
        there = [json.loads(words_of(row)) for row in had[key]]  # as numbers: 3 seconds are 3.0 in the store
        new = [json.loads(words_of(made[index])) for index in indices]
        same = (n for n in range(len(new), 0, -1) if there[-n:] == new[:n])
        found.update(indices[: next(same, 0)])
    return found


def words_of(label: Mapping[str, Any]) -> str:
    """What a label says beside its item: the columns of its row that its file spoke of."""
    said = {name: value for name, value in label.items() if name not in _OF_THE_STORE}
    if "created_at" in (label["notes"] or {}):
        del said["created_at"]  # no time that can be read was said: this is the time of the import
    return json.dumps(said, sort_keys=True, default=str)


def nameless(number: int, words: str) -> str:
    """The `request` of a label without a rater: the so many-th that says this of its item."""
    return digest(f"{number} {words}")


def _insert(connection: Connection, made: list[dict[str, Any]], done: Imported) -> Counter[int]:
    """Adds labels; of several by one person on one item the last one counts.

    Returns of which items how many people had them in hand who now have labelled them.
    """
    last: dict[tuple[int, int, str], dict[str, Any]] = {}
    for label in made:
        if label["person_id"] is None:
            continue
        key = (label["item_id"], label["person_id"], label["kind"])
        if key in last:
            last[key]["live"] = False
            done.replaced += 1
        last[key] = label
    touched = list({key[0] for key in last})
    had = select(labels.c.id, labels.c.item_id, labels.c.person_id, labels.c.kind)
    for row in connection.execute(had.where(labels.c.item_id.in_(touched), labels.c.live)).all():
        if (row.item_id, row.person_id, row.kind) in last:
            connection.execute(update(labels).where(labels.c.id == row.id).values(live=False))
            done.replaced += 1
    insert_rows(connection, labels, made)
    done.labels += len(made)
    had_it = select(assignments.c.id, assignments.c.item_id, assignments.c.person_id, assignments.c.state)
    known, freed, finished = set(), Counter[int](), []
    for row in connection.execute(had_it.where(assignments.c.item_id.in_(touched))).all():
        known.add((row.item_id, row.person_id))
        if (row.item_id, row.person_id, "label") in last and row.state != "done":
            finished.append(row.id)
            freed[row.item_id] += row.state == "given"
    over = {"state": "done", "draft": None}
    connection.execute(update(assignments).where(assignments.c.id.in_(finished)).values(**over))
    given = [
        # They have seen the item: should they come to label here, it is not given to them again.
        {"item_id": item, "person_id": person, "campaign_id": label["campaign_id"], "shown": label["shown"] or [],
         "given_at": label["created_at"], "expires_at": label["created_at"], "state": "done"}
        for (item, person, kind), label in last.items() if kind == "label" and (item, person) not in known
    ]  # fmt: skip
    insert_rows(connection, assignments, given)
    return freed


def _count(connection: Connection, campaign: Campaign, touched: Iterable[Any], freed: Counter[int]) -> None:
    """Counts the labels of items anew."""
    rows = {row.id: row for row in touched}
    live = select(labels.c.item_id, labels.c.kind).where(labels.c.item_id.in_(list(rows)), labels.c.live)
    counts = dict.fromkeys(rows, 0)
    settled = set()
    for label in connection.execute(live):
        counts[label.item_id] += label.kind == "label"
        if label.kind == "adjudication":
            settled.add(label.item_id)
    changes = []
    for item, done in counts.items():
        row = rows[item]
        held, state, wanted = row.held - freed[item], row.state, max(row.wanted, done + row.held - freed[item])
        if item in settled and state != "closed":
            state = "settled"
        elif state in ("open", "done", "disputed"):
            state, wanted = standing(connection, campaign.settings, row, done, held)
        changes.append({"of": item, "now_done": done, "now_held": held, "now_wanted": wanted, "now_state": state})
    values: dict[str, Any] = {
        "done": bindparam("now_done"),
        "held": bindparam("now_held"),
        "wanted": bindparam("now_wanted"),
        "state": bindparam("now_state"),
    }
    connection.execute(update(items).where(items.c.id == bindparam("of")).values(**values), changes)
