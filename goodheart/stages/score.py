"""Score or compare answers with a reward model or function, row by row (adds columns, keeps the rest)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from goodheart.data.cells import number
from goodheart.data.examples import Compared, Skipped, list_skipped, require
from goodheart.data.files import Row, read_rows
from goodheart.data.messages import RowError, as_list
from goodheart.data.reading import as_sources, bad_row, parse
from goodheart.data.records import Answer, Judgement, Prompt, Rating, Text, Thumb
from goodheart.data.writing import write_rows
from goodheart.judges.judged import judged
from goodheart.judges.load import Judge, load_judge
from goodheart.judges.reliability import pair_report, score_report, thumb_report
from goodheart.stages.draw import sampled
from goodheart.stages.settings.score import ScoreConfig
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World
from goodheart.train.progress import Progress

__all__ = ["ScoreConfig", "score"]

_CHUNK = 256  # rows between two moves of the progress bar


@dataclass
class Scored:
    """What scoring found: where it wrote, how many rows, and how far the scores agree with the labels in the rows."""

    out: Path
    rows: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    listed: Path | None = None  # where the rows set aside are named
    pairs: dict[str, Any] = field(default_factory=dict)  # agreement with comparisons, see `pair_report`
    ratings: dict[str, Any] = field(default_factory=dict)  # see `score_report`
    thumbs: dict[str, Any] = field(default_factory=dict)  # see `thumb_report`

    @property
    def accuracy(self) -> float | None:
        """Share of the comparisons in which the preferred answer scored higher; each prompt weighs one."""
        return self.pairs.get("accuracy")

    def summary(self) -> str:
        lines = [f"{self.rows} rows written to {self.out}"]
        if "accuracy" in self.pairs:
            found = self.pairs
            lines.append(f"{_rate('accuracy', found)} on {found['pairs']} pairs of {found['prompts']} prompts")
            lines.append(f"{_rate('always_longest', found)}")
        if "spearman" in self.ratings:
            found = self.ratings
            lines.append(f"rank correlation {found['spearman']:.3f} with the scores in {found['ratings']} rows")
        if "accuracy" in self.thumbs:
            found = self.thumbs
            auc = f"area under the ROC curve {found['auc']:.3f}, " if "auc" in found else ""
            lines.append(f"{auc}{_rate('accuracy', found)} at score 0 on {found['thumbs']} thumbs")
        if self.skipped.total:
            lines.append(f"set aside {self.skipped.total} rows: {self.skipped.summary()} (listed in {self.listed})")
        return "\n".join(lines)


def score(config: ScoreConfig) -> Scored:
    """Writes every row with its `score`, or `score_chosen` and `score_rejected` on pairs, or `scores` on K answers.

    Of several rewards each stands in `terms` (`terms_chosen`, `terms_rejected`). A column of such a name that a row has
    already stays as `<name>_given`.

    Raises:
        DataError: no row could be scored.
    """
    device = World.start(config.device).device
    judge = load_judge(
        config.reward, dtype=resolve_dtype(config.dtype, device), device=device, max_tokens=config.max_tokens
    )
    found = Scored(config.out)
    labels = _Labels()
    write_rows(config.out, _scored_rows(as_sources(config.data), judge, found, labels, config.quiet))
    found.listed = list_skipped(config.out, found.skipped)
    labels.report(found)
    return found


@dataclass(frozen=True, slots=True)
class _Asked:
    """The answers of a row, and what people said of them where they did."""

    prompt: Prompt
    answers: Sequence[Answer]
    column: str  # score, scores, or the two of a pair ("")
    ranks: tuple[int, ...] | None = None
    rating: float | None = None
    thumb: bool | None = None
    margin: float | None = None
    shown_order: tuple[int, ...] | None = None


def _scored_rows(
    sources: list[str | Path], judge: Judge, found: Scored, labels: _Labels, quiet: bool
) -> Iterator[dict[str, Any]]:
    """Rows with their scores, in order; only a chunk of them is in memory at a time."""
    rows = (row for source in sources for row in read_rows(source))
    with Progress(None, "scoring", unit="rows", shown=not quiet) as bar:
        while chunk := list(islice(rows, _CHUNK)):
            asked = [_asked(row, found.skipped) for row in chunk]
            flat = [(a.prompt, one) for a in asked if a is not None for one in a.answers]
            refused: dict[int, str] = {}
            said = judged(judge, [p for p, _ in flat], [one for _, one in flat], on_refusal=refused.__setitem__)
            start = 0
            for row, each in zip(chunk, asked, strict=True):
                if each is None:
                    continue
                stop = start + len(each.answers)
                scores = said.raw[start:stop]
                reason = next((refused[i] for i in range(start, stop) if i in refused), None)
                if reason is None:
                    found.rows += 1
                    labels.add(each, scores)
                    terms = {name: values[start:stop] for name, values in said.terms.items()}
                    yield _with_columns(row.data, _columns(each, scores, terms))
                else:
                    found.skipped.add_bad([bad_row(row, RowError(reason))])
                start = stop
            bar.advance(len(chunk))
    # raised before the file gets its name, so that nothing empty is left
    require([None] * found.rows, found.skipped, "row", [str(s) for s in sources])


def _asked(row: Row, skipped: Skipped) -> _Asked | None:
    """What is to be scored in a row; None where that is nothing (noted in `skipped`)."""
    try:
        if row.error is None and as_list(row.data.get("completions")) and row.data.get("ranks") is None:
            return _sampled(row.data)
        _, records = parse(row, "any")
        if len(records) != 1 or isinstance(records[0], Prompt | Text):
            raise RowError("the row has no answer to score")
        record = records[0]
        if isinstance(record, Judgement):
            listed = any(as_list(row.data.get(name)) for name in ("completions", "response", "output"))
            return _Asked(
                record.prompt,
                record.answers,
                "scores" if listed or len(record.answers) > 2 else "",
                ranks=record.ranks,
                margin=record.margin,
                shown_order=record.shown_order,
            )
        return _Asked(
            record.prompt,
            (record.answer,),
            "score",
            rating=record.score if isinstance(record, Rating) else None,
            thumb=record.label if isinstance(record, Thumb) else None,
        )
    except RowError as error:
        skipped.add_bad([bad_row(row, error)])
        return None


def _sampled(data: Mapping[str, Any]) -> _Asked:
    """K answers that nobody has ranked; where they have scores, those are a ranking to be compared with."""
    asked, answers = sampled(data)
    given = as_list(data.get("scores"))
    ranks = None
    if given and len(given) == len(answers) > 1 and None not in given:
        values = [number(value, "scores") for value in given]
        tiers = sorted(set(values), reverse=True)
        ranks = tuple(tiers.index(value) for value in values)
    return _Asked(asked, answers, "scores", ranks=ranks)


def _columns(
    asked: _Asked, scores: Sequence[float | None], terms: Mapping[str, Sequence[float | None]]
) -> dict[str, Any]:
    """The scores, and where there are several rewards what each of them says."""
    apart = [{name: values[i] for name, values in terms.items()} for i in range(len(scores))] if terms else []
    if asked.column == "score":
        return {"score": scores[0]} | ({"terms": apart[0]} if apart else {})
    if asked.column == "scores":
        return {"scores": list(scores)} | ({"terms": apart} if apart else {})
    assert asked.ranks is not None
    good = asked.ranks.index(min(asked.ranks))
    named = {"chosen": good, "rejected": 1 - good}
    return {f"score_{name}": scores[i] for name, i in named.items()} | (
        {f"terms_{name}": apart[i] for name, i in named.items()} if apart else {}
    )


def _with_columns(data: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    before = {f"{name}_given": data[name] for name in new if name in data}
    return {**before, **data, **new}


class _Labels:
    """What people said and what the judge gave, side by side."""

    def __init__(self) -> None:
        self.compared: list[tuple[Compared, list[float]]] = []
        self.rated: list[tuple[float, float]] = []
        self.thumbed: list[tuple[float, float]] = []

    def add(self, asked: _Asked, scores: Sequence[float | None]) -> None:
        known = [s for s in scores if s is not None]
        if len(known) < len(scores):
            return
        if asked.ranks is not None:
            item = Compared(
                (),
                asked.ranks,
                margin=asked.margin,
                prompt_key=asked.prompt.key,
                sizes=tuple(len(a.words) for a in asked.answers),
                shown_order=asked.shown_order,
            )
            self.compared.append((item, known))
        elif asked.rating is not None:
            self.rated.append((asked.rating, known[0]))
        elif asked.thumb is not None:
            self.thumbed.append((float(asked.thumb), known[0]))

    def report(self, found: Scored) -> None:
        """Puts the agreement of each kind of label into `found`."""
        if self.compared:
            found.pairs = pair_report([c for c, _ in self.compared], [s for _, s in self.compared])
        if self.rated:
            found.ratings = score_report([r for r, _ in self.rated], [s for _, s in self.rated])
        if self.thumbed:
            found.thumbs = thumb_report([t for t, _ in self.thumbed], [s for _, s in self.thumbed])


def _rate(name: str, found: Mapping[str, Any]) -> str:
    low, high = found[f"{name}_low"], found[f"{name}_high"]
    return f"{name.replace('_', ' ')} {found[name]:.3f} (95 % interval {low:.3f} to {high:.3f})"
