"""Careless labellers are found, and few others are taken for them."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.aggregation import detection
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.errors import DataError
from goodheart.feedback.labellers import Judged, combined, judged, table


def simulated(people: int, each: int, seed: int) -> Judged:
    """People of differing skill, all honest."""
    chance = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), each)
    count = len(who)
    skill = 0.75 + 0.05 * chance.normal(size=people)
    speed = 0.25 * chance.normal(size=people)
    characters = chance.integers(50, 500, size=count).astype(float)
    return Judged(
        who,
        tuple(range(people)),
        (chance.random(count) < skill[who]).astype(float),
        np.where(chance.random(count) < 0.1, (chance.random(count) < 0.9).astype(float), np.nan),
        (4 + characters / 20) * np.exp(0.3 * chance.normal(size=count) + speed[who]),
        characters,
        (chance.random(count) < 0.5).astype(float) - 0.5,
        (chance.random(count) < 0.5).astype(float),
    )


def test_false_alarms_are_as_many_as_said() -> None:
    """800 honest people at 1 %: 8 are expected; P(more than 20) = 0.01 %. At 10 %: 80, and more than 110 as seldom."""
    crowds = [simulated(40, 80, seed) for seed in range(20)]
    for rate, most in ((0.01, 20), (0.1, 110)):
        assert sum(row.careless for crowd in crowds for row in table(crowd, false_alarms=rate)) <= most


def test_careless_people_of_the_playground_are_found() -> None:
    """A fifth judges half of the time without looking (docs/agreement.md has larger crowds)."""
    found = detection(0.2, seed=1, people=20, prompts=400)
    assert found["careless"] == 4
    assert found["found"] >= 3
    assert found["false"] <= 1


def test_each_sign_alone_is_enough() -> None:
    base = simulated(30, 100, 3)
    mine = base.labeller_J == 7
    chance = np.random.default_rng(0)
    coins = (chance.random(len(mine)) < 0.5).astype(float)
    changes = {
        "agreement_J": np.where(mine, coins, base.agreement_J),
        "gold_J": np.where(mine & ~np.isnan(base.gold_J), 0.0, base.gold_J),
        "seconds_J": np.where(mine, 2.0, base.seconds_J),
        "first_J": np.where(mine, 0.5, base.first_J),
        "repeats_J": np.where(mine, 1.0, base.repeats_J),
    }
    fields = {name: getattr(base, name) for name in Judged.__dataclass_fields__}
    for name, values in changes.items():
        rows = table(Judged(**{**fields, name: values}))
        assert rows[0].name == 7, name
        assert rows[0].careless, name


def test_slow_and_agreeing_people_are_not_careless() -> None:
    base = simulated(30, 100, 4)
    mine = base.labeller_J == 7
    fields = {name: getattr(base, name) for name in Judged.__dataclass_fields__}
    better = fields | {
        "agreement_J": np.where(mine, 1.0, base.agreement_J),
        "seconds_J": base.seconds_J * (1 + 9 * mine),
    }
    (row,) = [row for row in table(Judged(**better)) if row.name == 7]
    assert not row.careless


def test_records_by_hand() -> None:
    answers = (Answer("aa"), Answer("b"))
    rows = [
        Judgement(Prompt(text="1"), answers, (0, 1), rater="ann", shown_order=(0, 1), seconds=3.0),
        Judgement(Prompt(text="1"), answers, (0, 1), rater="bob", shown_order=(1, 0), seconds=5.0),
        Judgement(Prompt(text="2"), answers, (0, 1), rater="ann", shown_order=(1, 0)),
        Judgement(Prompt(text="2"), answers, (0, 0), rater="bob", shown_order=(0, 1)),
        Judgement(Prompt(text="3"), answers, (0, 1), rater="ann", shown_order=(1, 0)),
    ]
    found = judged(rows, [None, True, None, False, None])
    assert found.labellers == ("ann", "bob")
    assert found.agreement_J[:2].tolist() == [1, 1]
    assert np.isnan(found.agreement_J[2:]).all()  # bob has no opinion of the second; nobody else saw the third
    assert found.first_J[:3].tolist() == [0.5, -0.5, -0.5]
    assert np.isnan(found.first_J[3])
    # ann from left to right: 0 1, then 1 0, then 1 0 again; bob: 1 0, then 0 0
    assert np.isnan(found.repeats_J[:2]).all()
    assert found.repeats_J[2:].tolist() == [0, 0, 1]
    assert found.characters_J.tolist() == [3] * 5
    ann, bob = sorted(table(found), key=lambda row: row.name)
    assert (ann.judgements, ann.gold.value, ann.seconds) == (3, None, 3.0)
    assert (bob.gold.value, bob.gold.judgements) == (0.5, 2)
    assert ann.p is None  # two people cannot be told from each other
    assert not ann.careless


def test_several_items_of_one_prompt_are_judged_each_by_itself() -> None:
    """Ann agrees with Bob and Cyd on two answers, and not on two others, which were an item of their own."""
    one, other = (Answer("a"), Answer("b")), (Answer("c"), Answer("d"))
    said = [(one, (0, 1), "ann"), (one, (0, 1), "bob"), (one, (0, 1), "cyd")]
    said += [(other, (0, 1), "ann"), (other, (1, 0), "bob"), (other, (1, 0), "cyd")]
    found = judged([Judgement(Prompt(text="1"), answers, ranks, rater=who) for answers, ranks, who in said])
    # of the second item Bob's others are split: Ann says one thing, Cyd the other
    assert found.agreement_J[[0, 1, 2, 3]].tolist() == [1, 1, 1, 0]
    assert np.isnan(found.agreement_J[4:]).all()


def test_combined_by_hand() -> None:
    # tan((0.5 - 0.5) pi) = 0 and tan((0.5 - 0.25) pi) = 1: mean 0.5, 0.5 - arctan(0.5) / pi = 0.3524
    assert combined([0.5, 0.25]) == pytest.approx(0.3524, abs=1e-4)
    assert combined([]) is None
    assert (combined([1.0, 1e-9]) or 1) < 1e-6  # one clear sign is not outvoted


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(DataError, match="no judgements"):
        judged([])
    one = Judgement(Prompt(text="1"), (Answer("a"), Answer("b")), (0, 1))
    with pytest.raises(DataError, match="2 entries of gold for 1"):
        judged([one], [None, None])
