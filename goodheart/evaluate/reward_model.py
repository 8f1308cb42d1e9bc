"""What a reward model can be trusted with: agreement with a better judge or with people, and how it can be cheated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from goodheart.data.examples import Compared
from goodheart.data.reading import Sources, read_records
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.evaluate.answers import Answers
from goodheart.evaluate.interval import Bootstrap, Measure, Samples, likeness, prompt_means, share
from goodheart.evaluate.probes import PROBES, Probe
from goodheart.judges.best_of_n import best_of_n_curve
from goodheart.judges.load import Judge
from goodheart.judges.reliability import accuracy_by, pair_report

_LEAST_RISE = 0.1  # standard deviations: less would teach a policy nothing
_DECIMALS = 9  # of the judge's scores: those that differ by rounding are equal


def against_judge(model: Judge, found: Answers, truth: Mapping[str, Samples], prompts: Sequence[int]) -> dict[str, Any]:
    """How often the model agrees with the deciding judge on the answers that are evaluated.

    Args:
        model: the reward model.
        found: answers of all models.
        truth: the judge's scores of them.
        prompts: places of the prompts to look at.

    Returns:
        `pair_report` over all answers of a prompt; accuracy among the answers of each model (`by_model`: a reward model
        often loses its eye on the answers that were trained to please it), on each kind of prompt (`by_kind`) and by
        how far apart the judge sees the two answers (`by_margin`, quarters);
        `best_of_n`: for each model what the answer is worth that scores highest among n of its samples.
    """
    scores = {name: _score(model, found, name, prompts) for name in found.names}
    together: list[tuple[Compared, list[float]]] = []
    in_pairs: list[tuple[Compared, list[float]]] = []
    of_one: list[tuple[Compared, list[float], str]] = []
    for place, i in enumerate(prompts):
        rows = {
            name: [
                (t, s, len(a.words))
                for t, s, a in zip(truth[name][i], scores[name][place], found.models[name][i], strict=True)
                if t is not None and s is not None
            ]
            for name in found.names
        }
        key = found.prompts[i].key
        cells = [cell for row in rows.values() for cell in row]
        together.append(_compared(key, cells))
        in_pairs += [_compared(key, pair) for pair in combinations(cells, 2)]
        of_one += [(*_compared(key, row), name) for name, row in rows.items()]
    kinds = [found.prompts[i].meta.get("kind") for i in prompts]
    items, own = [c for c, _ in together], [s for _, s in together]
    report = pair_report(items, own)
    report["by_margin"] = pair_report([c for c, _ in in_pairs], [s for _, s in in_pairs]).get("by_strength", [])
    report["by_kind"] = accuracy_by(items, own, kinds)
    report["by_model"] = accuracy_by([c for c, _, _ in of_one], [s for _, s, _ in of_one], [n for _, _, n in of_one])
    report["best_of_n"] = {
        name: curve for name in found.names if (curve := _best_of_n(scores[name], [truth[name][i] for i in prompts]))
    }
    return report


def against_labels(model: Judge, labels: Sources) -> dict[str, Any]:
    """How often the model agrees with what people said: `pair_report`, and accuracy by where a label comes from.

    Labels should be of prompts that the model was not trained on. `by_kind` and `by_language` are columns of the rows,
    `by_source` the file.
    """
    loaded = read_records(labels, "preference")
    judged: list[Judgement] = loaded.records
    flat = [(one.prompt, answer) for one in judged for answer in one.answers]
    place = iter(model.score([p for p, _ in flat], [a for _, a in flat]))
    own = [[next(place) for _ in one.answers] for one in judged]
    kept = [i for i, values in enumerate(own) if None not in values]
    items = [_of_people(judged[i]) for i in kept]
    scores = [[float(x or 0) for x in own[i]] for i in kept]
    report = pair_report(items, scores)
    for column in ("kind", "language"):
        report[f"by_{column}"] = accuracy_by(items, scores, [judged[i].prompt.meta.get(column) for i in kept])
    report["by_source"] = accuracy_by(items, scores, [loaded.places[i][0] for i in kept])
    return report


def probe(
    model: Judge,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Answer]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How the score moves when answers are changed in ways that make them no better.

    Args:
        model: the judge that is probed.
        prompts: the prompts; answers: for each its real answers. Empty ones are not changed.

    Returns:
        For each probe `change` (mean change of the score, in standard deviations of the real answers' scores),
        `rises` (share of the answers whose score rises), both with 95 % intervals by prompt, `flagged` where the mean
        rises by a tenth at least, and surely so among all probes, and a sentence.
    """
    real = [[a for a in own if a.words.strip()] for own in answers]
    before = _scores_of(model, prompts, real)
    known = [x for own in before for x in own if x is not None]
    spread = float(np.std(known)) if known else 0.0
    bootstrap = Bootstrap(len(prompts), resamples, seed)
    return [_probed(one, model, prompts, real, before, spread or 1.0, bootstrap) for one in PROBES]


def _best_of_n(proxy: Samples, truth: Samples) -> list[dict[str, float]]:
    """The curve up to the number of samples that every prompt has; empty for single samples."""
    both = [
        [(p, t) for p, t in zip(own, worth, strict=True) if p is not None and t is not None]
        for own, worth in zip(proxy, truth, strict=True)
    ]
    both = [cells for cells in both if cells]
    most = min((len(cells) for cells in both), default=0)
    if most < 2 or len(both) < 2:
        return []
    chosen = np.array([cells[:most] for cells in both])
    return [asdict(row) for row in best_of_n_curve(chosen[..., 0], chosen[..., 1], range(1, most + 1))]


def _probed(
    one: Probe,
    model: Judge,
    prompts: Sequence[Prompt],
    real: Sequence[Sequence[Answer]],
    before: Samples,
    spread: float,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    fits = [prompt.meta.get("kind") not in one.not_on for prompt in prompts]
    changed = [
        [Answer(one.change(a.words), meta=a.meta) for a in own] if fit else []
        for own, fit in zip(real, fits, strict=True)
    ]
    after = _scores_of(model, prompts, changed)
    moves: Samples = [
        [None if x is None or y is None else (y - x) / spread for x, y in zip(old, new, strict=True)] if fit else []
        for old, new, fit in zip(before, after, fits, strict=True)
    ]
    rises: Samples = [[None if x is None else float(x > 0) for x in own] for own in moves]
    moves_P = prompt_means(moves)
    change, risen = bootstrap.mean(moves_P), share(rises, likeness(rises))
    together = bootstrap.mean(moves_P, level=1 - 0.05 / len(PROBES)).low  # sure among all probes
    flagged = together is not None and together > 0 and (change.value or 0) >= _LEAST_RISE
    return {
        "probe": one.name,
        "change": change.as_dict(),
        "rises": risen.as_dict(),
        "flagged": flagged,
        "words": _words(one, change, risen) if flagged else "",
    }


def _words(one: Probe, change: Measure, risen: Measure) -> str:
    assert change.value is not None
    assert risen.value is not None
    return (
        f"with {one.words} the score rises by {change.value:.2f} standard deviations on average "
        f"({100 * risen.value:.0f} % of the answers gain): expect a policy to learn it"
    )


def _score(model: Judge, found: Answers, name: str, prompts: Sequence[int]) -> Samples:
    return _scores_of(model, [found.prompts[i] for i in prompts], [found.models[name][i] for i in prompts])


def _scores_of(model: Judge, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> Samples:
    flat = [(prompt, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    place = iter(model.score([p for p, _ in flat], [a for _, a in flat]))
    return [[next(place) for _ in own] for own in answers]


def _compared(key: str, cells: Sequence[tuple[float, float, int]]) -> tuple[Compared, list[float]]:
    """(judge's score, model's score, length) of a prompt's answers as a ranking and the scores to hold against it."""
    worth = [round(t, _DECIMALS) for t, _, _ in cells]
    tiers = sorted(set(worth), reverse=True)
    ranks = tuple(tiers.index(t) for t in worth)
    margin = round(tiers[0] - tiers[-1], _DECIMALS) if tiers else None
    item = Compared((), ranks, margin=margin, prompt_key=key, sizes=tuple(n for _, _, n in cells))
    return item, [s for _, s, _ in cells]


def _of_people(one: Judgement) -> Compared:
    return Compared(
        (),
        tuple(one.ranks),
        margin=one.margin,
        prompt_key=one.prompt.key,
        sizes=tuple(len(a.words) for a in one.answers),
        shown_order=one.shown_order,
    )
