"""Several people's labels to one: by hand, against the truth of simulated crowds, and on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from goodheart.feedback.aggregation import (
    PairLabels,
    dawid_skene,
    dawid_skene_of_pairs,
    majority,
    majority_of_pairs,
)
from goodheart.feedback.noisy_pairs import noisy_bradley_terry
from goodheart.feedback.votes import Comparisons, Votes
from tests.feedback import real

CARELESS = 0.2


def spam(seed: int, items: int = 1500, overlap: int = 5, labellers: int = 40) -> tuple[Votes, np.ndarray, np.ndarray]:
    """Three values; a fifth of the people give any. -> labels, truth of each item, who is careful."""
    chance = np.random.default_rng(seed)
    truth, careful = chance.integers(3, size=items), np.arange(labellers) >= CARELESS * labellers
    rows = []
    for i in range(items):
        for who in chance.choice(labellers, overlap, replace=False):
            right = careful[who] and chance.random() < 0.8
            rows.append((i, int(who), int(truth[i]) if right else int(chance.integers(3))))
    votes = Votes.of(rows)
    return votes, truth[list(votes.items)], careful[list(votes.labellers)]


def crowd(seed: int, pairs: int, overlap: int, tie: float, labellers: int = 40) -> tuple[Comparisons, np.ndarray]:
    """Pairs whose scores are normal; a fifth of the people say the first shown in 7 of 10. -> labels, careful."""
    chance = np.random.default_rng(seed)
    score, careful = 1.5 * chance.normal(size=(pairs, 2)), np.arange(labellers) >= CARELESS * labellers
    rows = []
    for i in range(pairs):
        for who in chance.choice(labellers, overlap, replace=False):
            a, b = chance.permutation(2)
            d = score[i, a] - score[i, b]
            odds = np.array([np.exp(d / 2), tie, np.exp(-d / 2)])
            p = odds / odds.sum() if careful[who] else np.array([0.7, 0.0, 0.3])
            rows.append(
                (i, int(who), (i, float(score[i, a])), (i, float(score[i, b])), float(chance.choice([1, 0.5, 0], p=p)))
            )
    found = Comparisons.of(rows)
    return found, careful[list(found.labellers)]


def accuracy(comparisons: Comparisons, labels: PairLabels) -> float:
    """Share of pairs put the right way round; a label of one half is half right."""
    score = np.array([name[1] for name in comparisons.names])
    truth = score[labels.keys_P[:, 1]] > score[labels.keys_P[:, 2]]
    return float(np.where(labels.better_P == 0.5, 0.5, (labels.better_P > 0.5) == truth).mean())


def test_majority_by_hand() -> None:
    votes = Votes.of([(0, "a", "x"), (0, "b", "x"), (0, "c", "y"), (1, "a", "y")])
    assert majority(votes).tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3)], [0, 1]]


def test_one_step_of_dawid_and_skene_by_hand() -> None:
    """With very strong priors everybody has the shared table, which is the majority's: then it is a naive Bayes vote.

    Two items, three people, all say x of the first and y of the second: the shared table has no mistakes.
    """
    votes = Votes.of([(i, who, said) for i, said in enumerate("xy") for who in "abc"])
    found = dawid_skene(votes, strength=1e6)
    assert found.probability_IV == pytest.approx(np.eye(2), abs=1e-6)
    assert found.confusion_LVV == pytest.approx(np.broadcast_to(np.eye(2), (3, 2, 2)), abs=1e-6)


def test_dawid_skene_finds_who_always_errs() -> None:
    """One person always says the opposite: their label is worth as much as a right one."""
    chance = np.random.default_rng(0)
    truth = chance.integers(2, size=300)
    rows = [(i, who, int(truth[i] ^ (chance.random() < 0.2))) for i in range(300) for who in ("a", "b", "c")]
    rows += [(i, "reversed", int(1 - truth[i])) for i in range(300)]
    found = dawid_skene(Votes.of(rows))
    right = (found.probability_IV.argmax(1) == truth).mean()
    assert right > 0.99
    assert found.reliability.value_L[-1] < 0.05
    assert np.diag(found.confusion_LVV[-1]).max() < 0.05
    # without that person's label the others decide: three who are right in 0.8 each
    assert (majority(Votes.of(rows)).argmax(1) == truth).mean() < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_dawid_skene_beats_the_majority_where_some_are_careless(seed: int) -> None:
    votes, truth, careful = spam(seed)
    found, share = dawid_skene(votes), majority(votes)
    by_majority = float(
        np.mean([(row[t] == row.max()) / (row == row.max()).sum() for row, t in zip(share, truth, strict=True)])
    )
    assert (found.probability_IV.argmax(1) == truth).mean() > by_majority + 0.01
    trust = found.reliability
    assert trust.value_L[careful].min() > trust.value_L[~careful].max()
    # careful people are right in 0.8 + 0.2 / 3 of their labels, careless ones in 1/3
    right = np.where(careful, 0.8 + 0.2 / 3, 1 / 3)
    covered = (trust.low_L <= right) & (right <= trust.high_L)
    assert covered.mean() > 0.8


@pytest.mark.parametrize(("overlap", "tie"), [(3, 0.0), (3, 0.5), (5, 0.5)])
def test_pairs_by_who_can_be_trusted_beat_the_majority(overlap: int, tie: float) -> None:
    pairs, careful = crowd(1, 1200, overlap, tie)
    plain, table, noisy = majority_of_pairs(pairs), dawid_skene_of_pairs(pairs), noisy_bradley_terry(pairs)
    assert accuracy(pairs, table[0]) > accuracy(pairs, plain) + 0.005
    assert accuracy(pairs, noisy.pairs) > accuracy(pairs, plain) + 0.002
    trust = noisy.reliability
    assert trust.value_L[careful].min() > trust.value_L[~careful].max()
    assert ((trust.low_L <= trust.value_L) & (trust.value_L <= trust.high_L)).all()
    # who does not look says the one shown first in 7 of 10
    assert noisy.guesses_L3[~careful, 0].mean() == pytest.approx(0.7, abs=0.08)
    assert noisy.pairs.weight_P.mean() == pytest.approx(1)


def test_scores_of_answers_met_by_several_others() -> None:
    """Twenty answers against one another: each label about one says something of all."""
    chance = np.random.default_rng(2)
    score = chance.normal(size=20)
    rows = []
    for i in range(1500):
        a, b = chance.choice(20, size=2, replace=False)
        who = int(chance.integers(10))
        won = chance.random() < (1 / (1 + np.exp(score[b] - score[a])) if who >= 2 else 0.5)
        rows.append((i, who, int(a), int(b), float(won)))
    found = noisy_bradley_terry(Comparisons.of(rows))
    names = list(Comparisons.of(rows).names)
    assert spearmanr(found.scores_E, score[names]).statistic > 0.93
    assert abs(found.scores_E.mean()) < 1e-9


def test_soft_labels_are_closer_to_the_truth_than_shares_of_votes() -> None:
    pairs, _ = crowd(3, 1500, 3, 0.0)
    score = np.array([name[1] for name in pairs.names])
    plain, noisy = majority_of_pairs(pairs), noisy_bradley_terry(pairs, spread=1.5).pairs
    truth = 1 / (1 + np.exp(score[plain.keys_P[:, 2]] - score[plain.keys_P[:, 1]]))
    errors = [float(np.sqrt(np.mean((labels.better_P - truth) ** 2))) for labels in (plain, noisy)]
    assert errors[1] < errors[0] - 0.03


def test_which_side_an_answer_stands_on_means_nothing() -> None:
    pairs, _ = crowd(4, 200, 3, 0.5)
    turned = Comparisons(
        pairs.second_N, pairs.first_N, 1 - pairs.outcome_N, pairs.labeller_N, pairs.item_N, pairs.names,
        pairs.labellers, pairs.items,
    )  # fmt: skip
    for method in (majority_of_pairs, lambda c: dawid_skene_of_pairs(c)[0], lambda c: noisy_bradley_terry(c).pairs):
        assert method(pairs).better_P == pytest.approx(method(turned).better_P, abs=1e-6)


def test_what_is_known_to_be_no_look_counts_for_nothing() -> None:
    rows = [("q", "ann", "a", "b", 1.0), ("q", "bob", "a", "b", 0.0), ("q", "cy", "a", "b", 0.0)]
    trust = np.array([1.0, 0.0, 0.0])
    found = noisy_bradley_terry(Comparisons.of(rows), trust_N=trust)
    alone = noisy_bradley_terry(Comparisons.of(rows[:1]))
    assert found.pairs.better_P == pytest.approx(alone.pairs.better_P, abs=1e-3)
    assert noisy_bradley_terry(Comparisons.of(rows)).pairs.better_P[0] < 0.5 < found.pairs.better_P[0]


def test_disconnected_and_one_sided_data_do_no_harm() -> None:
    found = noisy_bradley_terry(Comparisons.of([(0, "ann", "a", "b", 1.0), (1, "bob", "c", "d", 1.0)]))
    assert np.isfinite(found.scores_E).all()
    assert found.pairs.better_P[0] == pytest.approx(found.pairs.better_P[1], abs=1e-9)
    assert 0.5 < found.pairs.better_P[0] < 1
    assert found.pairs.tie_P.tolist() == [0, 0]


def test_real_annotators_beside_gold(shared: Path) -> None:
    """HateCheck's trained annotators hardly err, so nobody is to be trusted less: methods agree with gold alike."""
    rows, gold = real.hatecheck(shared)
    votes = Votes.of(rows)
    truth = np.array([gold[item] for item in votes.items])
    values = np.array(votes.values)
    right = [
        float((values[probability.argmax(1)] == truth).mean())
        for probability in (majority(votes), dawid_skene(votes).probability_IV)
    ]
    assert min(right) > 0.97
    assert abs(right[0] - right[1]) < 0.01
