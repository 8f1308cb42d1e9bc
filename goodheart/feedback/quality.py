"""What the statistics say of one campaign's labels: reads the store, calls them, and keeps what was found.

What was found is kept until a label, a person or an item is added or changed: a page that is looked at twice is not
computed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock, RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from sqlalchemy import Engine, func, select

from goodheart.data.records import Judgement
from goodheart.feedback import agreement, coverage, labellers, membership, pair_agreement
from goodheart.feedback.agreement import Report
from goodheart.feedback.coverage import Coverage, Topics
from goodheart.feedback.effects import Effect, by_labeller, trend
from goodheart.feedback.exporting import judgements
from goodheart.feedback.gold import is_right
from goodheart.feedback.items import unpack_prompt
from goodheart.feedback.labellers import Labeller
from goodheart.feedback.membership import Member
from goodheart.feedback.pair_agreement import PairAgreement
from goodheart.feedback.scores import Scale, bradley_terry, elo
from goodheart.feedback.store import Store
from goodheart.feedback.tables import audit, items, labels
from goodheart.feedback.votes import Comparisons, comparisons

LEAST_COMMON = 5  # prompts that two people have in common before their agreement is shown
MOST_TEXTS = 5_000  # prompts that topics are looked for in
_SLICE_RESAMPLES = 300  # intervals of slices may be rougher than those of the whole
_MOST_VALUES = 50  # of a column that slices are measured for: the largest
_KEPT = 24  # results per store
_COURSE = 12  # points of a course over time
_LEAST_OF_PART = 5  # comparisons that one of its points stands for

T = TypeVar("T")
_known: WeakKeyDictionary[Engine, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
_lock = Lock()
_computing: WeakKeyDictionary[Engine, RLock] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class PersonRow:
    """One labeller of a campaign. None: too little is known."""

    name: str
    member: Member | None  # None: their labels were imported
    labels: int  # of work
    quality: Labeller | None
    position: Effect | None  # log odds of choosing what is shown first, over what the others say
    length: Effect | None  # log odds per doubling of the length
    drift: Effect | None  # log odds of saying what the others say, per 100 labels given before
    course: Sequence[float] = ()  # share of pairs on which they say what the others say: equal parts, oldest first


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far people agree, by every measure."""

    whole: Report
    by_slice: Mapping[str, Mapping[Any, Report]]  # column -> value
    pairs: Sequence[PairAgreement]
    people: int


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Models by the labels."""

    bradley_terry: Scale
    elo: Scale
    unnamed: int  # judgements left out: an answer names no model


def person_rows(store: Store, campaign: int) -> list[PersonRow]:
    """Everybody who labels here or has labelled here; the most suspicious first, then by name."""
    return _once(store, campaign, ("people",), lambda: _person_rows(store, campaign))


def agreement_of(store: Store, campaign: int) -> Agreement | None:
    """None where no label is there yet."""
    return _once(store, campaign, ("agreement",), lambda: _agreement(store, campaign))


def leaderboard(store: Store, campaign: int) -> Leaderboard | None:
    """None where no two models were compared."""
    return _once(store, campaign, ("models",), lambda: _leaderboard(store, campaign))


def slices(store: Store, campaign: int) -> list[Mapping[str, Any]]:
    """The slice of each item of work, whatever became of it."""
    here = (items.c.campaign_id == campaign) & (items.c.phase == "work") & (items.c.state != "closed")
    with store.read() as connection:
        return [row.slice for row in connection.execute(select(items.c.slice).where(here))]


def covered(
    store: Store, campaign: int, columns: Sequence[str], wanted: int, values: Mapping[str, Sequence[Any]]
) -> Coverage:
    """Prompts in each combination of slices; see `coverage.cells`, which raises DataError."""
    return coverage.cells(slices(store, campaign), columns, wanted, values)


def topics(store: Store, campaign: int, count: int) -> tuple[Topics, list[str]]:
    """Topics of the prompts, and the prompts they were found in; see `coverage.topics`, which raises DataError."""
    return _once(store, campaign, ("topics", count), lambda: _topics(store, campaign, count))


def _once(store: Store, campaign: int, key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """One computation at a time: who asks for the same waits and finds it made; processors are for the labellers."""
    with _lock:
        one_by_one = _computing.setdefault(store.engine, RLock())
    with one_by_one:
        return _kept_or_made(store, campaign, key, make)


def _kept_or_made(store: Store, campaign: int, key: tuple[Any, ...], make: Callable[[], T]) -> T:
    with store.read() as connection:
        stamp = tuple(connection.execute(select(func.max(table.c.id))).scalar() for table in (labels, audit, items))
    full = (campaign, *key, stamp)
    with _lock:
        kept = _known.setdefault(store.engine, {})
        if full in kept:
            found: T = kept[full]
            return found
    made = make()
    with _lock:
        while len(kept) >= _KEPT:
            kept.pop(next(iter(kept)))
        kept[full] = made
    return made


def _said(store: Store, campaign: int, phases: Sequence[str] = ("work",)) -> list[Judgement]:
    """What labellers said, oldest first, adjudicated or not."""
    found = judgements(store, campaign, phases=phases, overruled=True)
    return sorted((each for each in found if each.kind == "label"), key=lambda each: each.created_at or "")


def _person_rows(store: Store, campaign: int) -> list[PersonRow]:
    listed = _said(store, campaign, ("work", "gold"))
    members = {member.person.name: member for member in membership.list_members(store, campaign)}
    if not listed:
        return [PersonRow(name, member, 0, None, None, None, None) for name, member in members.items()]
    truth = _gold(store, campaign)
    right = [is_right(truth[j.item_id], j.ranks) if j.item_id in truth else None for j in listed]
    table = labellers.table(labellers.judged(listed, right))
    work = [each for each in listed if each.item_id not in truth]
    compared = comparisons(work) if work else None
    effects = {} if compared is None else by_labeller(compared, length_N=_lengths(compared))
    drifts, courses = ({}, {}) if compared is None else _over_time(compared)
    given = [each.rater for each in work]
    rows = []
    for row in table:
        own = effects.get(row.name, {})
        about = (own.get("position"), own.get("length"), drifts.get(row.name), courses.get(row.name, ()))
        rows.append(PersonRow(str(row.name), members.pop(row.name, None), given.count(row.name), row, *about))
    rest = [PersonRow(name, member, 0, None, None, None, None) for name, member in members.items()]
    return sorted(rows, key=lambda row: (not (row.quality and row.quality.careless), row.name)) + rest


def _gold(store: Store, campaign: int) -> dict[str | None, list[int]]:
    here = (items.c.campaign_id == campaign) & (items.c.phase == "gold")
    with store.read() as connection:
        rows = connection.execute(select(items.c.id, items.c.gold).where(here)).all()
    return {f"{campaign}-{row.id}": row.gold["ranks"] for row in rows}


def _lengths(compared: Comparisons) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N,) log2 of the first answer's length over the second's."""
    log_E = np.log2([max(len(name[1]), 1) for name in compared.names])
    return np.asarray(log_E[compared.first_N] - log_E[compared.second_N])


def _over_time(compared: Comparisons) -> tuple[dict[Any, Effect], dict[Any, Sequence[float]]]:
    """How each labeller's agreement with the others changes while they label: the trend, and the shares themselves."""
    kept = compared.untied()
    if not len(kept.item_N):
        return {}, {}
    agrees_N = agreement.agrees_with_others(kept.votes())[: len(kept.item_N)]
    drifts, courses = {}, {}
    for k, name in enumerate(kept.labellers):
        mine = np.flatnonzero(kept.labeller_N == k)  # in the order in which they were given
        effect = trend(agrees_N[mine], np.arange(len(mine)) / 100, kept.item_N[mine])
        if effect is not None and effect.labels >= 20:
            drifts[name] = effect
        courses[name] = shares_over_time(agrees_N[mine])
    return drifts, courses


def shares_over_time(agrees_N: np.ndarray[Any, np.dtype[np.float64]]) -> Sequence[float]:
    """Means of equal parts of a series of 1, 0 and NaN (unknown): up to 12 parts of 5 or more; none of fewer than 2."""
    known = agrees_N[~np.isnan(agrees_N)]
    parts = min(_COURSE, len(known) // _LEAST_OF_PART)
    return tuple(float(part.mean()) for part in np.array_split(known, parts)) if parts >= 2 else ()


def _agreement(store: Store, campaign: int) -> Agreement | None:
    listed = _said(store, campaign)
    if not listed:
        return None
    votes = comparisons(listed).votes()
    of_prompt = _slices_by_prompt(store, campaign)
    columns = sorted({column for cut in of_prompt.values() for column in cut})
    by_slice = {}
    for column in columns:
        slice_I = _largest([of_prompt.get(item[0], {}).get(column) for item in votes.items])
        found = agreement.by_slice(
            votes, slice_I, lambda v: agreement.report(v, "absolute", resamples=_SLICE_RESAMPLES)
        )
        by_slice[column] = {value: each for value, each in sorted(found.items()) if isinstance(each, Report)}
    pairs = pair_agreement.by_pair(votes, least=LEAST_COMMON)
    return Agreement(agreement.report(votes, "absolute"), by_slice, pairs, len(votes.labellers))


def _largest(slice_I: Sequence[Any]) -> list[Any]:
    """The slices with the small ones of too many as None: each is measured anew, and a column may be free text."""
    counts = Counter(name for name in slice_I if name is not None)
    kept = {name for name, _ in counts.most_common(_MOST_VALUES)}
    return [name if name in kept else None for name in slice_I]


def _slices_by_prompt(store: Store, campaign: int) -> dict[str, Mapping[str, Any]]:
    here = (items.c.campaign_id == campaign) & (items.c.phase == "work")
    with store.read() as connection:
        rows = connection.execute(select(items.c.prompt, items.c.slice).where(here)).all()
    return {unpack_prompt(row.prompt).key: row.slice for row in rows if row.slice}


def _leaderboard(store: Store, campaign: int) -> Leaderboard | None:
    listed = list(judgements(store, campaign))  # where an adjudicator decided, that is what counts
    named = [each for each in listed if all(answer.model for answer in each.answers)]
    if not any(len({answer.model for answer in each.answers}) > 1 for each in named):
        return None
    compared = comparisons(named, models=True)
    return Leaderboard(bradley_terry(compared), elo(compared), len(listed) - len(named))


def _topics(store: Store, campaign: int, count: int) -> tuple[Topics, list[str]]:
    here = (items.c.campaign_id == campaign) & (items.c.phase == "work") & (items.c.state != "closed")
    with store.read() as connection:
        rows = connection.execute(select(items.c.prompt).where(here).order_by(items.c.place).limit(MOST_TEXTS)).all()
    texts = [_asked(unpack_prompt(row.prompt)) for row in rows]
    return coverage.topics(texts, count), texts


def _asked(prompt: Any) -> str:
    """The last thing that was asked."""
    return str(prompt.messages[-1].content if prompt.is_chat else prompt.text)
