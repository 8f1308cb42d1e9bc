"""Votes as tables: who said what of which item. The statistics of agreement and of raters read them; crowd-kit's files.

    task,worker,label            one label of one item; `item` and `rater` are understood too
    worker,left,right,label      one comparison; the label is the better of the two

Votes keep what training cannot use: labels of single items, and pairs with an empty answer or twice the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from goodheart.data.files import read_rows
from goodheart.data.messages import RowError
from goodheart.data.reading import BadRow, Sources, as_sources, bad_row, parse
from goodheart.data.records import Answer, Judgement
from goodheart.data.rows import Rows, all_pairs
from goodheart.errors import DataError

if TYPE_CHECKING:
    from goodheart.data.mapping import ColumnMap

TIE = "tie"


class Vote(NamedTuple):
    """What one person said of one item."""

    item: str
    rater: str
    label: str


@dataclass(slots=True)
class VoteTable:
    """Votes as columns of equal length, in the order in which they were read.

    items, raters, labels: one each per vote. gold: the true label of an item, of those where it is known.
    rows: rows read; bad: rows set aside, with file, line and reason.
    """

    items: list[str] = field(default_factory=list)
    raters: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    gold: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Vote]:
        return map(Vote._make, zip(self.items, self.raters, self.labels, strict=True))

    def add(self, vote: Vote) -> None:
        self.items.append(vote.item)
        self.raters.append(vote.rater)
        self.labels.append(vote.label)

    def columns(self) -> list[tuple[str, str, str]]:
        """(item, rater, label) of each vote."""
        return list(zip(self.items, self.raters, self.labels, strict=True))


def read_votes(sources: Sources, mapping: ColumnMap | None = None) -> VoteTable:
    """Votes in files of votes, in files of comparisons, and in any file that a mapping explains.

    Args:
        sources: what to read, see `reading.read_records`.
        mapping: which columns are what, where that is neither crowd-kit's nor a known shape, see `mapping.py`.

    Raises:
        DataError: a source cannot be read, or no row holds a vote.
    """
    votes = VoteTable()
    for source in as_sources(sources):
        for row in read_rows(source):
            votes.rows += 1
            try:
                if row.error is not None:
                    raise RowError(row.error)
                if mapping is not None:
                    mapped, gold = mapping.votes(row.data)
                elif "label" in row.data and ("worker" in row.data or "rater" in row.data):
                    mapped, gold = [_vote(row.data)], {}
                else:
                    judged = [each for each in parse(row, "preference")[1] if isinstance(each, Judgement)]
                    mapped, gold = list(votes_of(judged)), {}
            except RowError as error:
                votes.bad.append(bad_row(row, error))
                continue
            for vote in mapped:
                votes.add(vote)
            votes.gold.update(gold)
    if not len(votes):
        why = f"; the first row: {votes.bad[0].reason}" if votes.bad else ""
        raise DataError(f"{', '.join(map(str, as_sources(sources)))}: no vote in {votes.rows} rows{why}")
    return votes


def _vote(data: dict[str, Any]) -> Vote:
    rater = _cell(data, "worker", "rater")
    if data.get("left") is not None and data.get("right") is not None:
        left, right, label = (_cell(data, name) for name in ("left", "right", "label"))
        if label not in (left, right, TIE):
            raise RowError(f"the label must be the left or the right one, found {label!r}")
        return Vote(_pair_of(left, right), rater, label)
    return Vote(_cell(data, "task", "item"), rater, _cell(data, "label"))


def _cell(data: dict[str, Any], *names: str) -> str:
    value = next((data[name] for name in names if data.get(name) not in (None, "")), None)
    if not isinstance(value, (str, int, float)):
        raise RowError(f"{' or '.join(names)} is empty" if value is None else f"{names[0]} must be text or a number")
    return str(value)


def _pair_of(left: str, right: str) -> str:
    """One name for a pair, whichever side its members were on."""
    return " | ".join(sorted((left, right)))


def votes_of(judgements: Iterable[Judgement], by: str = "answer") -> Iterator[Vote]:
    """Each pair that somebody compared as a vote for the better answer, or "tie".

    by: "answer": the label is an id of the answer's text, so that it does not matter who saw it on which side;
    "model": the label is the name of the model that gave it.

    Raises:
        DataError: by "model", and an answer has none.
    """
    for judgement in judgements:
        for better, worse, tied in all_pairs(judgement):
            names = {place: _name(judgement.answers[place], by) for place in (better, worse)}
            item = f"{item_of(judgement)}:{_pair_of(names[better], names[worse])}"
            yield Vote(item, judgement.rater or "", TIE if tied else names[better])


def _name(answer: Answer, by: str) -> str:
    if by == "model":
        if answer.model is None:
            raise DataError("votes by model: an answer has no model; name the columns of the models, or take by answer")
        return answer.model
    return hashlib.sha256(answer.words.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def item_of(judgement: Judgement) -> str:
    """What was judged: its id, or one made of the prompt."""
    return judgement.item_id if judgement.item_id is not None else judgement.prompt.key


def write(judgement: Judgement) -> Rows:
    """task, worker, label: a task for each pair, the label the id of the better answer, or tie."""
    for vote in votes_of([judgement]):
        yield {"task": vote.item, "worker": vote.rater, "label": vote.label}


def write_pairs(judgement: Judgement) -> Rows:
    """worker, left, right, label: ids of the answers in the order they stood; ties are left out, it has none."""
    for better, worse, tied in all_pairs(judgement):
        if not tied:
            item = item_of(judgement)
            names = {place: f"{item}:{_name(judgement.answers[place], 'answer')}" for place in (better, worse)}
            left, right = (names[place] for place in sorted(names))
            yield {"worker": judgement.rater or "", "left": left, "right": right, "label": names[better]}
