"""How far each rater can be trusted, by how their labels fit those of the others; and labels that mind it.

Both come from the noisy Bradley-Terry model (`noisy_pairs`): a rater looks with some probability, and guesses
otherwise. Decisions of adjudicators stand as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from goodheart.data.gather import EVERYBODY_ELSE, gather
from goodheart.data.rankings import compared
from goodheart.data.records import Judgement
from goodheart.data.shapes import Record
from goodheart.feedback.noisy_pairs import Aggregated, noisy_bradley_terry
from goodheart.feedback.votes import Comparisons, comparisons

_Shares = dict[frozenset[tuple[str, str]], dict[tuple[str, str], float]]  # two answers -> P(better) of each


def reliability(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Rater -> share of their labels that were made with a look, 0 to 1: weights for `gather`.

    "*" is the mean over labels without a rater, or 1 where there are none. Empty where nothing was compared.
    """
    said = [each for each in judgements if each.kind == "label"]
    return _weights(said, noisy_bradley_terry(comparisons(said))) if _tells(said) else {}


def trusted(records: Iterable[Record]) -> Iterator[Record]:
    """One record for each set of answers, as `gather` gives it for soft labels, minding who can be trusted.

    Of two answers the `probability` is the model's: what the labels say together, each as far as its rater can be
    trusted. Of more answers each ranking that was given weighs the trusted share of those who gave it. Other records
    than comparisons only take the weight of their rater.
    """
    listed = list(records)
    judged = [each for each in listed if isinstance(each, Judgement)]
    said = [each for each in judged if each.kind == "label"]
    if not _tells(said):
        yield from gather(listed, "soft")
        return
    pairs = comparisons(said)
    fitted = noisy_bradley_terry(pairs)
    decided = {compared(each.prompt, each.answers) for each in judged if each.kind == "adjudication"}
    shares = _shares(pairs, fitted)
    for record in gather(listed, "soft", _weights(said, fitted)):
        if isinstance(record, Judgement) and compared(record.prompt, record.answers) not in decided:
            yield _as_the_model_says(record, shares)
        else:
            yield record


def _tells(said: Sequence[Judgement]) -> bool:
    """Whether any two answers were compared."""
    return any(len({answer.words for answer in each.answers}) > 1 for each in said)


def _weights(said: Sequence[Judgement], fitted: Aggregated) -> dict[str, float]:
    named = {each.rater for each in said if each.rater is not None}
    found = zip(fitted.reliability.labellers, fitted.reliability.value_L, strict=True)
    share = {str(name): min(max(float(value), 0.0), 1.0) for name, value in found}
    unnamed = [value for name, value in share.items() if name not in named]
    mean = sum(unnamed) / len(unnamed) if unnamed else 1.0
    return {EVERYBODY_ELSE: mean} | {name: value for name, value in share.items() if name in named}


def _shares(pairs: Comparisons, fitted: Aggregated) -> _Shares:
    shares: _Shares = {}
    for (_, first, second), better in zip(fitted.pairs.keys_P.tolist(), fitted.pairs.better_P.tolist(), strict=True):
        one, other = pairs.names[first], pairs.names[second]
        shares[frozenset((one, other))] = {one: better, other: 1 - better}
    return shares


def _as_the_model_says(record: Judgement, shares: _Shares) -> Judgement:
    one, *others = ((record.prompt.key, answer.words) for answer in record.answers)  # as `comparisons` names them
    found = shares.get(frozenset((one, *others)))
    if found is None or record.ranks[0] == record.ranks[1]:  # several answers, or nobody prefers either of two
        return record
    share = found[one]
    return replace(record, ranks=(0, 1) if share >= 0.5 else (1, 0), probability=max(share, 1 - share))
