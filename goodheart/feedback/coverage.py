"""What the prompts cover, and what is missing: counts by given columns, or by topics found in the texts.

    cells(rows, ["kind", "language"], wanted=50)      every combination, those that do not occur included
    topics(texts, 12)                                 clusters of the texts with their typical words

Topics come from TF-IDF and k-means. Languages that write no spaces (Chinese, Japanese, Thai) are cut into overlapping
pieces of two characters, which stand for their words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from goodheart.errors import DataError
from goodheart.feedback.votes import Array, Codes

UNKNOWN = "unknown"  # the value of a column that a prompt lacks
_MOST_CELLS = 10_000
_FEATURES = 20_000
_ENOUGH = 50  # texts from which on words of one text, and of more than half of all, say nothing
_TYPICAL = 8  # words that describe a topic
# Scripts without spaces between words: Han, kana, Thai, Lao, Khmer, Burmese.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_RUNS = re.compile(rf"[{_UNSPACED}]+|[^\W\d_{_UNSPACED}]+(?:['’][^\W\d_]+)?", re.UNICODE)


@dataclass(frozen=True, slots=True)
class Cell:
    """How many prompts have these values."""

    values: tuple[Any, ...]
    prompts: int
    missing: int  # to what was wanted; 0 = enough


@dataclass(frozen=True, slots=True)
class Coverage:
    """Counts of all cells, the emptiest first."""

    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    wanted: int
    prompts: int

    @property
    def gaps(self) -> tuple[Cell, ...]:
        """Cells with fewer prompts than wanted."""
        return tuple(cell for cell in self.cells if cell.missing)


@dataclass(frozen=True, slots=True)
class Topic:
    """One cluster."""

    words: tuple[str, ...]  # those that set it apart
    prompts: int
    nearest: tuple[int, ...]  # numbers of the texts nearest to its centre, to be read


@dataclass(frozen=True, eq=False)
class Topics:
    """Clusters, largest first."""

    topics: tuple[Topic, ...]
    topic_P: Codes  # of each text


def cells(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    wanted: int,
    values: Mapping[str, Sequence[Any]] | None = None,
) -> Coverage:
    """How many prompts have each combination of values.

    rows: the columns of each prompt. wanted: prompts per cell. values: those that should occur in a column, whether any
        prompt has them or not; else those that occur.

    Raises:
        DataError: no column, no prompt has one of the columns, or the combinations are too many to look at.
    """
    if not columns:
        raise DataError("coverage: name at least one column, or use topics() to find topics in the texts")
    scales = []
    for column in columns:
        given = (values or {}).get(column)
        found = {_value(row, column) for row in rows}
        if given is None and found <= {UNKNOWN}:
            raise DataError(f"coverage: no prompt has a column `{column}`")
        scales.append(sorted(found | set(given or ()), key=str))
    total = int(np.prod([len(scale) for scale in scales], dtype=np.float64))
    if total > _MOST_CELLS:
        raise DataError(
            f"coverage: {total} combinations of {', '.join(columns)}; name fewer columns, at most 10,000 cells"
        )
    counts = Counter(tuple(_value(row, column) for column in columns) for row in rows)
    each = [Cell(key, counts[key], max(wanted - counts[key], 0)) for key in product(*scales)]
    return Coverage(tuple(columns), tuple(sorted(each, key=lambda cell: cell.prompts)), wanted, len(rows))


def topics(texts: Sequence[str], count: int, seed: int = 0) -> Topics:
    """Clusters of texts that use the same words.

    count: of topics, at most the number of different texts. The same texts and seed give the same topics.

    Raises:
        DataError: no text has a word, or `count` is under 1.
    """
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    if count < 1:
        raise DataError(f"coverage: {count} topics; need at least 1")
    rarest, commonest = (2, 0.5) if len(texts) >= _ENOUGH else (1, 1.0)
    weigh = TfidfVectorizer(analyzer=terms, max_features=_FEATURES, min_df=rarest, max_df=commonest, sublinear_tf=True)
    try:
        weights_PW = weigh.fit_transform(texts)
    except ValueError:
        raise DataError("coverage: the texts have no words in common to tell topics by") from None
    count = min(count, len(set(texts)))
    model = KMeans(count, n_init=4, random_state=seed).fit(weights_PW)
    words = weigh.get_feature_names_out()
    mean_W = np.asarray(weights_PW.mean(axis=0)).reshape(-1)
    apart_PC: Array = model.transform(weights_PW)
    sizes = np.bincount(model.labels_, minlength=count)
    found, place_C = [], np.empty(count, dtype=np.int64)
    for rank, c in enumerate(np.argsort(-sizes, kind="stable")):
        place_C[c] = rank
        telling = np.argsort(mean_W - model.cluster_centers_[c], kind="stable")[:_TYPICAL]
        inside = np.flatnonzero(model.labels_ == c)
        near = inside[np.argsort(apart_PC[inside, c], kind="stable")[:3]]
        words_of = [w for w in telling if model.cluster_centers_[c][w] > mean_W[w]]
        found.append(Topic(tuple(str(words[w]) for w in words_of), int(sizes[c]), tuple(int(p) for p in near)))
    return Topics(tuple(found), place_C[model.labels_])


def terms(text: str) -> list[str]:
    """Lower-case words; runs of a script without spaces as pieces of two characters.

    >>> terms("Mira likes 苹果汁")
    ['mira', 'likes', '苹果', '果汁']
    """
    found = []
    for run in _RUNS.findall(text.lower()):
        if re.match(rf"[{_UNSPACED}]", run):
            found += [run[i : i + 2] for i in range(max(len(run) - 1, 1))]
        elif len(run) > 1:
            found.append(run)
    return found


def _value(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    return UNKNOWN if value is None or value == "" else value
