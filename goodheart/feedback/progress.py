"""How far a campaign is, when it will be done, and what it will have cost: from what was measured, not from a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

from sqlalchemy import Connection, case, distinct, func, select

from goodheart.feedback.campaigns import Campaign, load
from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tables import assignments, items, labels

WINDOW = timedelta(days=1)  # over which the speed of the forecast is measured
_ENOUGH = 20  # finished items after which the mean number of labels per item is believed


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of a campaign's work; gold, training and qualification are not counted, except in `labels_known`."""

    items: int  # without the reserve of quotas and what was closed
    finished: int  # done or settled
    disputed: int
    spare: int
    closed: int
    labels: int  # that count
    labels_left: int  # still wanted by open items
    held: int  # in somebody's hands now
    skips: int
    labels_known: int  # on items of gold, training and qualification
    by_slice: dict[str, dict[str, tuple[int, int]]]  # column -> value -> (finished, items)

    @property
    def share(self) -> float:
        """Finished items, 0 to 1."""
        return self.finished / self.items if self.items else 0.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to be expected. None: nothing to measure it by yet."""

    seconds_per_label: float | None  # mean over all labels that say how long they took
    labels_per_hour: float | None  # of all people together, pauses included, over the newest day of labelling
    labellers: int  # who labelled in that time
    labels_left: float  # more than Progress says where disagreement asks for more labels
    done_at: datetime | None
    late: bool | None  # later than the deadline; None without deadline or forecast
    cost_so_far: float | None  # in the money of pay_per_hour; None without it
    cost_in_all: float | None
    over_budget: bool | None


def progress(store: Store, campaign: int) -> Progress:
    """Counts as of now.

    Raises:
        MissingError: there is no such campaign.
    """
    with store.read() as connection:
        found = load(connection, campaign)
        work = (items.c.campaign_id == campaign) & (items.c.phase == "work")
        sums = [func.count(), func.sum(items.c.done), func.sum(items.c.wanted), func.sum(items.c.held)]
        query = select(items.c.state, *sums, func.sum(items.c.skips)).where(work).group_by(items.c.state)
        counts = {row[0]: tuple(int(value or 0) for value in row[1:]) for row in connection.execute(query)}
        known = select(func.sum(items.c.done)).where(items.c.campaign_id == campaign, items.c.phase != "work")
        labels_known = connection.execute(known).scalar() or 0
        by_slice = _by_slice(connection, found)
    none = (0, 0, 0, 0, 0)
    number = {state: counts.get(state, none)[0] for state in ("open", "done", "settled", "disputed", "spare", "closed")}
    waiting = counts.get("open", none)
    return Progress(
        items=sum(number[state] for state in ("open", "done", "settled", "disputed")),
        finished=number["done"] + number["settled"],
        disputed=number["disputed"],
        spare=number["spare"],
        closed=number["closed"],
        labels=sum(row[1] for row in counts.values()),
        labels_left=waiting[2] - waiting[1],
        held=sum(row[3] for row in counts.values()),
        skips=sum(row[4] for row in counts.values()),
        labels_known=labels_known,
        by_slice=by_slice,
    )


def _by_slice(connection: Connection, campaign: Campaign) -> dict[str, dict[str, tuple[int, int]]]:
    # The slices are JSON, which the two databases take apart in different words: counted here instead.
    found: dict[str, dict[str, tuple[int, int]]] = {}
    here = (items.c.campaign_id == campaign.id) & (items.c.phase == "work") & items.c.state.not_in(["spare", "closed"])
    rows = connection.execution_options(yield_per=5000).execute(select(items.c.slice, items.c.state).where(here))
    for row in rows:
        finished = row.state in ("done", "settled")
        for column, value in row.slice.items():
            done, every = found.setdefault(column, {}).get(value, (0, 0))
            found[column][value] = (done + finished, every + 1)
    return found


def forecast(store: Store, campaign: int, *, now: datetime | None = None) -> Forecast:
    """When the campaign is done and what it costs, if people go on as in the newest day in which they labelled.

    Raises:
        MissingError: there is no such campaign.
    """
    now = now or utcnow()
    state = progress(store, campaign)
    with store.read() as connection:
        settings = load(connection, campaign).settings
        left = state.labels_left * _labels_per_item(connection, campaign, settings.overlap)
        here = (labels.c.campaign_id == campaign) & labels.c.live & (labels.c.kind == "label")
        people = here & labels.c.source.in_(["person", "simulated"])
        said = select(func.count(), func.count(labels.c.seconds), func.sum(labels.c.seconds)).where(people)
        number, timed, seconds = connection.execute(said).one()
        last = connection.execute(select(func.max(labels.c.created_at)).where(people)).scalar()
        recent, first, labellers = 0, None, 0
        if last is not None:
            window = people & (labels.c.created_at > last - WINDOW) & ~labels.c.gold
            counts = (func.count(), func.min(labels.c.created_at), func.count(distinct(labels.c.person_id)))
            recent, first, labellers = connection.execute(select(*counts).where(window)).one()
    each = seconds / timed if timed else None
    rate = None
    if first is not None and last is not None and recent > 1 and last > first:
        rate = (recent - 1) / ((last - first).total_seconds() / 3600)  # recent labels end recent - 1 spans of time
    done_at = now if not left else now + timedelta(hours=min(left / rate, 1e6)) if rate else None
    pay = settings.pay_per_hour
    cost = None if pay is None or each is None else each * number / 3600 * pay
    # What gold, training and qualification cost is spread over the labels that are left as it was over those before.
    share = number / max(number - state.labels_known, 1)
    cost_in_all = None if cost is None or pay is None or each is None else cost + left * share * each / 3600 * pay
    return Forecast(
        seconds_per_label=each,
        labels_per_hour=rate,
        labellers=labellers,
        labels_left=left,
        done_at=done_at,
        late=None if done_at is None or settings.deadline is None else done_at > settings.deadline,
        cost_so_far=cost,
        cost_in_all=cost_in_all,
        over_budget=None if cost_in_all is None or settings.budget is None else cost_in_all > settings.budget,
    )


def _labels_per_item(connection: Connection, campaign: int, overlap: int) -> float:
    """Labels that a finished item took, over `overlap`: more than 1 where disagreement asks for more."""
    finished = (items.c.campaign_id == campaign) & (items.c.phase == "work") & items.c.state.in_(["done", "disputed"])
    count, done = connection.execute(select(func.count(), func.sum(items.c.done)).where(finished)).one()
    return max(1.0, done / count / overlap) if count >= _ENOUGH else 1.0


@dataclass(frozen=True, slots=True)
class KeptBack:
    """What an export of a campaign's work does not have, or not yet."""

    known: int  # labels on items of gold, training and qualification
    overruled: int  # labels in whose place a decision stands
    closed: int  # labels of items that were closed
    unlabelled: int  # items that nobody has labelled
    unfinished: int  # items that have labels and want more
    disputed: int  # items that wait for a decision, in whose place their labels stand


def kept_back(store: Store, campaign: int) -> KeptBack:
    """Counts as of now.

    Raises:
        MissingError: there is no such campaign.
    """
    of_work = (items.c.campaign_id == campaign) & (items.c.phase == "work")
    kinds = {
        "closed": func.sum(case((items.c.state == "closed", items.c.done))),
        "unlabelled": func.count(case((items.c.state.in_(["open", "disputed"]) & (items.c.done == 0), 1))),
        "unfinished": func.count(case(((items.c.state == "open") & (items.c.done > 0), 1))),
        "disputed": func.count(case(((items.c.state == "disputed") & (items.c.done > 0), 1))),
    }
    settled = of_work & (items.c.state == "settled") & labels.c.live & (labels.c.kind == "label")
    overruled = select(func.count()).select_from(labels).join(items, items.c.id == labels.c.item_id).where(settled)
    known = select(func.sum(items.c.done)).where(items.c.campaign_id == campaign, items.c.phase != "work")
    with store.read() as connection:
        load(connection, campaign)
        row = connection.execute(select(*(count.label(name) for name, count in kinds.items())).where(of_work)).one()
        numbers = {name: int(getattr(row, name) or 0) for name in kinds}
        known_labels = connection.execute(known).scalar() or 0
        return KeptBack(known=known_labels, overruled=connection.execute(overruled).scalar_one(), **numbers)


def by_day(
    store: Store,
    campaign: int,
    last: date,
    days: int = 14,
    *,
    person: int | None = None,
    phases: Sequence[str] = ("work",),
) -> list[tuple[date, int]]:
    """How many labels that count were given on each of the `days` days (UTC) up to `last`, oldest first.

    Args:
        person: only theirs.
        phases: of the items: work, gold, training, qualification.
    """
    dates = [last - timedelta(days=back) for back in range(days - 1, -1, -1)]
    starts = [datetime.combine(day, time(), UTC) for day in [*dates, last + timedelta(days=1)]]
    at = labels.c.created_at
    each = [func.count(case((at >= start, case((at < end, 1))))) for start, end in pairwise(starts)]
    here = (labels.c.campaign_id == campaign) & labels.c.live & (labels.c.kind == "label") & (at >= starts[0])
    query = select(*each).join(items, items.c.id == labels.c.item_id).where(here, items.c.phase.in_(phases))
    if person is not None:
        query = query.where(labels.c.person_id == person)
    with store.read() as connection:
        return list(zip(dates, connection.execute(query).one(), strict=True))


def open_tasks(store: Store, campaign: int, person: int) -> int:
    """How many tasks somebody has in their hands."""
    mine = (assignments.c.campaign_id == campaign) & (assignments.c.person_id == person)
    query = select(func.count()).select_from(assignments).where(mine, assignments.c.state == "given")
    with store.read() as connection:
        return connection.execute(query).scalar_one()


def done_share(store: Store, campaign: int) -> float:
    """How much of the work is done: labels given of labels wanted, 0 to 1."""
    counts = select(func.sum(items.c.done), func.sum(items.c.wanted))
    of_work = (items.c.campaign_id == campaign) & (items.c.phase == "work") & items.c.state.not_in(("closed", "spare"))
    with store.read() as connection:
        done, wanted = connection.execute(counts.where(of_work)).one()
    return min(1.0, (done or 0) / wanted) if wanted else 0.0
