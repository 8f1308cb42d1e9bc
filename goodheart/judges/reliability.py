"""How far a judge's scores agree with people: accuracy with its interval, beside what a ruler would score.

"Always the longest" agrees with people surprisingly often, so it is printed beside every accuracy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from goodheart.data.examples import Compared
from goodheart.losses.reward import calibration, fit_temperature, margin_calibration, wilson_interval


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers of which people preferred the first: difference of scores, of lengths, and which was shown first."""

    prompt: str
    margin: float  # score of the preferred answer minus that of the other
    longer: float  # 1 the preferred answer is longer, 0 shorter, 0.5 equal
    first: float | None  # 1 the preferred answer was shown before the other; None = not recorded
    strength: float | None  # how much better people said it is
    length: int  # characters of both answers


def pairs_of(item: Compared, scores: Sequence[float]) -> list[Pair]:
    """Every untied pair of one judgement, preferred answer first."""
    found = []
    for a, b in combinations(range(len(item.ranks)), 2):
        if item.ranks[a] == item.ranks[b]:
            continue
        good, bad = (a, b) if item.ranks[a] < item.ranks[b] else (b, a)
        shown = item.shown_order
        found.append(
            Pair(
                item.prompt_key,
                scores[good] - scores[bad],
                _half(item.sizes[good] - item.sizes[bad]),
                None if shown is None else float(shown.index(good) < shown.index(bad)),
                item.margin if item.strength is None else float(item.strength),
                item.sizes[good] + item.sizes[bad],
            )
        )
    return found


def pair_report(items: Sequence[Compared], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Agreement on untied pairs.

    Args:
        items: judgements.
        scores: for each, one score per answer.

    Returns:
        accuracy (each prompt weighs one; equal scores count half) with a 95 % Wilson interval whose n is the number of
        prompts, the same for "always the longest" and "always the first" (None where the shown order is not recorded),
        mean margin, expected calibration error of sigmoid(margin), the temperature that calibrates it, accuracy by
        size of the score difference, by stated strength, and by length.
    """
    pairs = [pair for item, own in zip(items, scores, strict=True) for pair in pairs_of(item, own)]
    report: dict[str, Any] = {"prompts": len({p.prompt for p in pairs}), "pairs": len(pairs)}
    report["ties"] = sum(math.comb(len(i.ranks), 2) for i in items) - len(pairs)
    if not pairs:
        return report
    report |= _rate("accuracy", pairs, [_half(p.margin) for p in pairs])
    report |= _rate("always_longest", pairs, [p.longer for p in pairs])
    shown = [p for p in pairs if p.first is not None]
    report |= _rate("always_first", shown, [float(p.first or 0) for p in shown]) if shown else {"always_first": None}
    margins = [p.margin for p in pairs]
    report["margin_mean"] = sum(margins) / len(margins)
    report["calibration_temperature"] = fit_temperature(margins)
    measured = margin_calibration(margins)
    report["ece"] = measured.ece
    report["calibration"] = [asdict(b) for b in measured.bins if b.count]
    report["by_score_difference"] = _table(pairs, [abs(m) for m in margins])
    report["by_length"] = _table(pairs, [float(p.length) for p in pairs])
    strengths = [p for p in pairs if p.strength is not None]
    if strengths:
        report["by_strength"] = _table(strengths, [float(p.strength or 0) for p in strengths])
    return report


def accuracy_by(
    items: Sequence[Compared], scores: Sequence[Sequence[float]], groups: Sequence[Any]
) -> dict[str, dict[str, float]]:
    """Accuracy with its interval, prompts and pairs, for each group; items whose group is None are left out.

    Args:
        items, scores: as for `pair_report`.
        groups: for each item what it belongs to: the kind of its prompt, who judged it, where it comes from.
    """
    table: dict[str, list[Pair]] = {}
    for item, own, group in zip(items, scores, groups, strict=True):
        if group is not None:
            table.setdefault(str(group), []).extend(pairs_of(item, own))
    return {
        group: {
            **_rate("accuracy", pairs, [_half(p.margin) for p in pairs]),
            "prompts": len({p.prompt for p in pairs}),
            "pairs": len(pairs),
        }
        for group, pairs in table.items()
        if pairs
    }


def score_report(targets: Sequence[float], scores: Sequence[float]) -> dict[str, Any]:
    """Agreement with ratings: rank correlation, correlation and error."""
    from scipy import stats

    if len(targets) < 3 or len(set(targets)) < 2 or len(set(scores)) < 2:
        return {"ratings": len(targets)}
    error = sum((s - t) ** 2 for s, t in zip(scores, targets, strict=True)) / len(targets)
    return {
        "ratings": len(targets),
        "spearman": float(stats.spearmanr(targets, scores).statistic),
        "pearson": float(stats.pearsonr(targets, scores).statistic),
        "rmse": math.sqrt(error),
    }


def thumb_report(labels: Sequence[float], scores: Sequence[float]) -> dict[str, Any]:
    """Agreement with thumbs: accuracy at probability one half, ranking of ups over downs (AUC), calibration."""
    report: dict[str, Any] = {"thumbs": len(labels), "ups": int(sum(labels))}
    if not labels:
        return report
    right = sum(_half(s) if y else 1 - _half(s) for s, y in zip(scores, labels, strict=True))
    low, high = wilson_interval(right, len(labels))
    share = max(sum(labels), len(labels) - sum(labels)) / len(labels)
    report |= {"accuracy": right / len(labels), "accuracy_low": low, "accuracy_high": high, "majority": share}
    report["ece"] = calibration([_sigmoid(s) for s in scores], labels).ece
    if 0 < sum(labels) < len(labels):
        from sklearn.metrics import roc_auc_score

        report["auc"] = float(roc_auc_score(labels, scores))
    return report


def _rate(name: str, pairs: Sequence[Pair], right: Sequence[float]) -> dict[str, float]:
    """Mean over prompts of the share that is right, with a Wilson interval over prompts."""
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for pair, value in zip(pairs, right, strict=True):
        by_prompt[pair.prompt].append(value)
    total = sum(sum(values) / len(values) for values in by_prompt.values())
    low, high = wilson_interval(total, len(by_prompt))
    return {name: total / len(by_prompt), f"{name}_low": low, f"{name}_high": high}


def _table(pairs: Sequence[Pair], keys: Sequence[float], parts: int = 4) -> list[dict[str, float]]:
    """Accuracy in groups of equal size along a key, smallest key first; in each group a prompt weighs one."""
    order = sorted(range(len(pairs)), key=lambda i: keys[i])
    rows = []
    for part in range(parts):
        group = order[part * len(order) // parts : (part + 1) * len(order) // parts]
        if group:
            inside = [pairs[i] for i in group]
            found = _rate("accuracy", inside, [_half(p.margin) for p in inside])
            rows.append({"from": keys[group[0]], "to": keys[group[-1]], "pairs": len(group), **found})
    return rows


def _half(difference: float) -> float:
    return 1.0 if difference > 0 else 0.0 if difference < 0 else 0.5


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
