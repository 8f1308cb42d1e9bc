"""Agreement: worked by hand, beside independent implementations, and on published data."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from evalica import alpha as evalica_alpha
from sklearn.metrics import cohen_kappa_score

from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.errors import DataError
from goodheart.feedback.agreement import (
    Distance,
    Report,
    agreement_with_others,
    agrees_with_others,
    alpha,
    by_slice,
    fleiss_kappa,
    raw_agreement,
    report,
)
from goodheart.feedback.intervals import Measure
from goodheart.feedback.pair_agreement import Weights, by_pair, cohen_kappa
from goodheart.feedback.votes import Comparisons, Votes, comparisons
from tests.feedback import real


def votes(table: np.ndarray, values: list | None = None) -> Votes:
    """From labellers (rows) by items (columns), NaN where missing."""
    rows = [
        (i, f"p{person}", table[person, i]) for person, i in np.ndindex(table.shape) if not np.isnan(table[person, i])
    ]
    return Votes.of(rows, values=values)


def noisy(labellers: int, items: int, values: int, right: float, missing: float, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    shape = (labellers, items)
    table = np.where(
        chance.random(shape) < right, chance.integers(values, size=items), chance.integers(values, size=shape)
    )
    return np.where(chance.random(shape) < missing, np.nan, table.astype(float))


def number(measure: Measure) -> float:
    assert measure.value is not None
    return measure.value


def test_alpha_by_hand() -> None:
    """Two people, four items: (a, a), (a, b), (b, b), (b, b).

    Coincidences, each item's pairs over (2 - 1): aa 2, ab 1 + ba 1, bb 4; n = 8, a 3, b 5. Observed 2 / 8, expected
    2 * 3 * 5 / (8 * 7) = 30 / 56. alpha = 1 - (2 / 8) / (30 / 56) = 1 - 14 / 30 = 8 / 15.
    """
    rows = [(i, who, said) for i, pair in enumerate(("aa", "ab", "bb", "bb")) for who, said in enumerate(pair)]
    found = alpha(Votes.of(rows))
    assert number(found) == pytest.approx(8 / 15)
    assert (found.chance, found.items, found.labels) == (0.0, 4, 8)


@pytest.mark.parametrize(("values", "missing"), [(2, 0.0), (5, 0.3), (9, 0.6)])
@pytest.mark.parametrize("distance", ["nominal", "ordinal", "interval"])
def test_alpha_equals_the_oracles(distance: Distance, values: int, missing: float) -> None:
    table = noisy(6, 200, values, 0.5, missing, seed=values)
    found = number(alpha(votes(table, list(range(values))), distance, resamples=10))
    scale = list(range(values))
    assert found == pytest.approx(
        krippendorff.alpha(table, level_of_measurement=distance, value_domain=scale), abs=1e-9
    )
    import pandas as pd

    assert found == pytest.approx(evalica_alpha(pd.DataFrame(table), distance).alpha, abs=1e-9)


def test_alpha_of_numbers_that_hardly_repeat() -> None:
    chance = np.random.default_rng(1)
    table = chance.normal(size=100) + 0.5 * chance.normal(size=(3, 100))
    wanted = krippendorff.alpha(table, level_of_measurement="interval")
    assert number(alpha(votes(table), "interval", resamples=20)) == pytest.approx(wanted, abs=1e-9)


def test_alpha_by_absolute_difference_is_by_the_oracle_too() -> None:
    table = noisy(4, 150, 4, 0.4, 0.2)

    def absolute(v1, v2, **_):
        return np.abs(v1 - v2)

    wanted = krippendorff.alpha(table, level_of_measurement=absolute)
    assert number(alpha(votes(table), "absolute", resamples=10)) == pytest.approx(wanted, abs=1e-9)


def test_rankings_by_hand() -> None:
    """Ann ranks a > b > c, Bob b > a > c: they disagree on one pair of three, whichever way it is listed.

    Values -1, 1, six of each: expected absolute difference 2 * (2 * 6 * 6) / (12 * 11) = 12 / 11; observed 1 pair of 3
    apart by 2: 2 / 3. alpha = 1 - (2 / 3) / (12 / 11) = 1 - 22 / 36 = 7 / 18.
    """
    prompt, answers = Prompt(text="?"), (Answer("a"), Answer("b"), Answer("c"))
    ann = Judgement(prompt, answers, (0, 1, 2), rater="ann")
    bob = Judgement(prompt, answers, (1, 0, 2), rater="bob")
    pairs = comparisons([ann, bob]).votes()
    assert number(alpha(pairs, "absolute")) == pytest.approx(7 / 18)
    assert number(raw_agreement(pairs)) == pytest.approx(2 / 3)
    assert raw_agreement(pairs).chance == 0.5
    other_way = Judgement(prompt, answers[::-1], (2, 0, 1), rater="bob")  # c last, b first, a second
    again = comparisons([ann, other_way]).votes()
    assert number(alpha(again, "absolute")) == pytest.approx(7 / 18)


def by(*ranks: tuple[int, ...], question: str = "q") -> list[Judgement]:
    answers = tuple(Answer(text) for text in "abc"[: len(ranks[0])])
    return [Judgement(Prompt(text=question), answers, each) for each in ranks]


def test_untied_pairs_of_rankings_by_hand() -> None:
    # pairs ab, ac, bc. 1st: a a b; 2nd: a c c (ranks 1, 2, 0: a over b, c over both); 3rd: tied ab, a over c, b over c
    pairs = comparisons(by((0, 1, 2), (1, 2, 0), (0, 0, 1))).untied().votes()
    # 1-2: yes no no; 1-3: (tie) yes yes; 2-3: (tie) no no -> 3 of 7
    assert number(raw_agreement(pairs)) == pytest.approx(3 / 7)
    # ab: 1 and 2 agree with each other, the 3rd has no say -> 2 yes.
    # ac (+ - +): 1st's others (- +) are split, out; 2nd's (+ +) -> no; 3rd's split. bc the same -> 2 yes of 4
    found = agreement_with_others(pairs)
    assert number(found) == pytest.approx(2 / 4)
    assert found.chance == 0.5


def test_each_prompt_weighs_one() -> None:
    one = by((0, 1, 2), (0, 1, 2), (0, 1, 2), question="many")  # 9 of 9
    other = by((0, 1), (1, 0), question="few")  # 0 of 1
    assert raw_agreement(comparisons(one + other).untied().votes()).value == 0.5


def test_the_last_of_one_person_counts() -> None:
    prompt, answers = Prompt(text="?"), (Answer("a"), Answer("b"))
    twice = [Judgement(prompt, answers, ranks, rater="ann") for ranks in ((0, 1), (1, 0))]
    found = comparisons([*twice, Judgement(prompt, answers, (0, 0)), Judgement(prompt, answers, (0, 1))])
    assert found.outcome_N.tolist() == [0.0, 0.5, 1.0]
    assert len(found.labellers) == 3  # ann, and two who are not named


def test_coin_tossers_agree_by_chance() -> None:
    chance = np.random.default_rng(3)
    rows = [
        (i, who, (i, a), (i, b), float(chance.integers(2)))
        for i in range(400)
        for who in range(3)
        for a, b in itertools.combinations(range(2), 2)
    ]
    pairs = Comparisons.of(rows).votes()
    raw, kappa = raw_agreement(pairs), alpha(pairs, "absolute")
    assert raw.chance == 0.5
    assert raw.low is not None
    assert raw.high is not None
    assert raw.low < 0.5 < raw.high
    assert kappa.low is not None
    assert kappa.high is not None
    assert kappa.low < 0 < kappa.high


def test_intervals_cover_the_truth() -> None:
    """Of 200 samples of 80 items, 95 % intervals miss the value of very many items 5 % of the time.

    A percentile interval is a little narrow at 80 items: 7 % are allowed for. P(more than 24 of 200 at 7 %) = 0.4 %.
    """
    truth = number(alpha(votes(noisy(3, 40_000, 3, 0.6, 0.1)), resamples=1))
    missed = 0
    for seed in range(200):
        found = alpha(votes(noisy(3, 80, 3, 0.6, 0.1, seed=seed + 1)), resamples=200)
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= truth <= found.high
    assert 2 <= missed <= 24


def test_pairs_of_a_ranking_are_drawn_together() -> None:
    """Ten answers of which one person turns all around, or none: 45 pairs say what one would, so 40 prompts decide."""
    chance = np.random.default_rng(0)
    rows = []
    for i in range(40):
        flipped = chance.integers(2)
        for a, b in itertools.combinations(range(10), 2):
            rows += [(i, "ann", (i, a), (i, b), 1.0), (i, "bob", (i, a), (i, b), float(flipped))]
    found = raw_agreement(Comparisons.of(rows).votes())
    assert found.low is not None
    assert found.high is not None
    # sd of a share of 40: sqrt(.25 / 40) = 0.079, twice 1.96 of it is 0.31; over 1,800 pairs it would be 0.046
    assert 0.25 < found.high - found.low < 0.36
    assert (found.items, found.labels) == (40 * 45, 2 * 40 * 45)  # each pair and each label once
    (pair,) = by_pair(Comparisons.of(rows).votes())
    assert pair.raw.low == pytest.approx(found.low, abs=0.04)
    assert (pair.raw.items, pair.raw.labels) == (40, 2 * 40 * 45)


def test_perfect_agreement_is_not_certain() -> None:
    rows = [(i, who, i % 2) for i in range(20) for who in "ab"]
    found = alpha(Votes.of(rows))
    # Wilson's upper end for 0 of 20: z^2 / (20 + z^2) = 3.8415 / 23.8415 = 0.1611 of the items could be chance
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - 0.1611, abs=1e-4)
    # raw agreement: half of those would agree by chance
    assert raw_agreement(Votes.of(rows)).low == pytest.approx(1 - 0.1611 / 2, abs=1e-4)


def test_one_value_only_says_nothing() -> None:
    rows = [(i, who, "yes") for i in range(5) for who in "ab"]
    found = report(Votes.of(rows))
    assert found.alpha.value is found.fleiss.value is None
    assert found.raw.value == found.raw.chance == 1.0


def test_nobody_shares_an_item() -> None:
    found = report(Votes.of([(0, "a", 1), (1, "b", 0)]))
    assert found.alpha.value is found.fleiss.value is found.raw.value is found.with_others.value is None


def test_fleiss_by_hand() -> None:
    """Three people, two items: (x, x, y) and (y, y, y).

    Agreement: 1/3 and 1, mean 2/3. Shares: x 2/6, y 4/6, by chance 1/9 + 4/9 = 5/9. (2/3 - 5/9) / (4/9) = 1/4.
    """
    rows = [(i, who, said) for i, said_all in enumerate(("xxy", "yyy")) for who, said in enumerate(said_all)]
    assert number(fleiss_kappa(Votes.of(rows))) == pytest.approx(0.25)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_cohen_equals_the_oracle(weights: Weights) -> None:
    table = noisy(3, 120, 4, 0.5, 0.3)
    found = by_pair(votes(table, [0.0, 1.0, 2.0, 3.0]), weights, resamples=100)
    assert {frozenset((pair.a, pair.b)) for pair in found} == {
        frozenset(p) for p in (("p0", "p1"), ("p0", "p2"), ("p1", "p2"))
    }
    for pair in found:
        one, other = table[int(pair.a[1])], table[int(pair.b[1])]
        both = ~np.isnan(one) & ~np.isnan(other)
        wanted = cohen_kappa_score(one[both], other[both], weights=None if weights == "none" else weights)
        assert number(pair.kappa) == pytest.approx(wanted)
        assert pair.kappa.items == both.sum()
        assert number(pair.raw) == pytest.approx((one[both] == other[both]).mean())


def test_cohen_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreement 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; (0.7 - 0.5) / 0.5
    assert cohen_kappa(np.array([[[20.0, 5.0], [10.0, 15.0]]]))[0] == pytest.approx(0.4)
    assert math.isnan(cohen_kappa(np.array([[[9.0, 0.0], [0.0, 0.0]]]))[0])


def test_agreement_with_the_others_by_hand() -> None:
    """Four people: x x y y on one item, x x x y on the other.

    First: who says x sees x y y, most are y: no; the same for all four: 0 of 4. Second: who says x sees x x y: yes,
    three times; who says y sees x x x: no. 3 of 4. Each item weighs one: 3/8.
    """
    rows = [(i, who, said) for i, said_all in enumerate(("xxyy", "xxxy")) for who, said in enumerate(said_all)]
    assert agrees_with_others(Votes.of(rows)).tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert number(agreement_with_others(Votes.of(rows))) == pytest.approx(3 / 8)
    split = Votes.of([(0, 0, "x"), (0, 1, "x"), (0, 2, "y")])  # the third sees x x, the others one of each
    assert np.isnan(agrees_with_others(split)).tolist() == [True, True, False]


def test_by_slice() -> None:
    rows = [(i, who, i % 2 if i < 10 else (i + who) % 2) for i in range(20) for who in (0, 1)]
    found = by_slice(Votes.of(rows), ["easy"] * 10 + ["hard"] * 9 + [None], raw_agreement)
    assert isinstance(found["easy"], Measure)
    assert isinstance(found["hard"], Measure)
    assert (found["easy"].value, found["hard"].value) == (1.0, 0.0)
    assert found["hard"].items == 9


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(DataError, match="no labels"):
        Votes.of([])
    with pytest.raises(DataError, match=r"'item'.* has 2 labels of 'ann'"):
        Votes.of([("item", "ann", 1), ("item", "ann", 2)])
    with pytest.raises(DataError, match="none of"):
        Votes.of([("item", "ann", 3)], values=[1, 2])
    with pytest.raises(DataError, match="needs numbers"):
        alpha(Votes.of([("item", "ann", "x"), ("item", "bob", "y")]), "interval")
    with pytest.raises(DataError, match="two different answers"):
        Comparisons.of([("item", "ann", "a", "a", 1.0)])


def test_models_are_compared_across_prompts() -> None:
    answers = (Answer("x", model="m"), Answer("y", model="n"), Answer("z", model="m"))
    shown = Judgement(Prompt(text="?"), answers, (0, 1, 2), rater="ann", shown_order=(2, 1, 0))
    found = comparisons([shown], models=True)
    assert [found.names[i] for i in found.first_N] == ["m", "n"]  # z before y, y before x; z and x are of one model
    assert found.outcome_N.tolist() == [0.0, 0.0]
    with pytest.raises(DataError, match="names no model"):
        comparisons([Judgement(Prompt(text="?"), (Answer("a"), Answer("b")), (0, 1))], models=True)


@pytest.mark.parametrize(
    ("name", "measure", "low", "high"),
    [
        ("pandalm", "fleiss", 0.85, 0.87),
        ("hatecheck", "fleiss", 0.925, 0.935),
        ("hitspam", "fleiss", -0.01, 0.01),
        ("ukp", "fleiss", 0.2, 0.3),
        ("tulu", "alpha", 0.37, 0.39),
    ],
)
def test_published_kappas(shared: Path, name: str, measure: str, low: float, high: float) -> None:
    rows = {
        "pandalm": real.pandalm,
        "hatecheck": lambda folder: real.hatecheck(folder)[0],
        "hitspam": real.hitspam,
        "ukp": lambda folder: [
            (r["pair_id"], a["worker"], a["value"]) for r in real.ukp(folder) for a in r["annotations"]
        ],
        "tulu": lambda folder: list({(r[0], r[1]): r for r in real.tulu(folder)}.values()),  # two are given twice
    }[name](shared)
    labels = Votes.of(rows)
    found = getattr(report(labels, resamples=50), measure)
    assert low < number(found) < high
    if name not in ("ukp", "hitspam"):  # thousands of columns take the oracle its time
        codes = np.full((len(labels.labellers), len(labels.items)), np.nan)
        codes[labels.labeller_N, labels.item_N] = labels.value_N
        wanted = krippendorff.alpha(codes, level_of_measurement="nominal")
        assert number(alpha(labels, resamples=1)) == pytest.approx(wanted, abs=1e-9)


def test_forty_people_and_five_thousand_items_take_seconds() -> None:
    """A thousand resamples of each; loose, for machines differ: it is there to catch a loop over labels."""
    said = np.random.default_rng(0).integers(3, size=(40, 5_000))
    who, item = np.divmod(np.arange(said.size), 5_000)
    many = Votes(item, who, said.ravel(), tuple(range(5_000)), tuple(range(40)), (0, 1, 2), np.arange(5_000))
    start = time.process_time()
    assert isinstance(report(many, "ordinal"), Report)
    assert time.process_time() - start < 30
