"""Crowds from a description: counts, determinism, and what a wrong description says."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from goodheart.errors import ConfigError
from goodheart.playground.population import PRESETS, WEIGHTS, Crowd, assign, population


def test_counts_are_the_shares() -> None:
    people = population(Crowd(people=40, careless=0.25, spammers=0.1, carelessness=0.7))
    assert Counter(p.carelessness for p in people) == {0.7: 10, 0.0: 30}
    assert Counter(p.habit for p in people) == {"first": 2, "longest": 2, None: 36}
    assert not any(p.habit and p.carelessness for p in people)
    assert [p.name for p in people[:2]] == ["p01", "p02"]


def test_cultures_change_weights_by_their_factors() -> None:
    crowd = Crowd.model_validate(
        {
            "people": 10,
            "weights": {"safe": 2.0, "tone": 1.0},
            "cultures": {"a": {"share": 2, "weights": {"tone": 5.0}}, "b": {"share": 1}},
        }
    )
    people = population(crowd)
    # 2/3 of 10 = 6.67 and 3.33: the larger remainder takes the tenth
    assert Counter(p.culture for p in people) == {"a": 7, "b": 3}
    assert {p.culture: p.weights for p in people} == {"a": {"safe": 2.0, "tone": 5.0}, "b": {"safe": 2.0, "tone": 1.0}}


def test_the_seed_decides_who_is_who() -> None:
    one, again, other = (population("crowd", seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert Counter(p.habit for p in one) == Counter(p.habit for p in other)


def test_the_order_of_names_does_not_matter() -> None:
    weights = {"safe": 2.0, "tone": 1.0, "true": 3.0}
    cultures = {name: {"share": 1.0} for name in "abc"}
    one, other = (
        Crowd.model_validate({"people": 7, "spread": 0.5, "weights": dict(w), "cultures": dict(c)})
        for w, c in (
            (weights.items(), cultures.items()),
            (reversed(weights.items()), reversed(cultures.items())),
        )
    )
    assert population(one) == population(other)
    assert list(one.common.weights) == list(other.common.weights)  # sums are the same to the last bit


def test_spread_makes_persons_differ() -> None:
    assert len({p.weights["safe"] for p in population(Crowd(spread=0.2))}) == 20
    assert {p.weights["safe"] for p in population(Crowd())} == {WEIGHTS["safe"]}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound(name: str) -> None:
    people = population(name)
    assert len(people) == PRESETS[name]["people"]
    assert all(any(p.weights.values()) for p in people)


def test_a_preset_is_the_base_of_what_is_said() -> None:
    crowd = Crowd.model_validate({"like": "hasty", "people": 3})
    assert (crowd.people, crowd.haste) == (3, PRESETS["hasty"]["haste"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("croud", "no preset `croud`; did you mean `crowd`?"),
        ({"like": "x"}, "no preset `x`; known: careful, crowd"),
        ({"careless": 0.8, "spammers": 0.3}, "more than all people"),
        ({"weights": {"safe": 0.0}}, "nobody cares about anything"),
        ({"weights": {"safe": -1.0}}, "greater than or equal to 0"),
        ({"cultures": {"a": {"weights": {"saef": 2}}}}, "cultures.a.weights: `saef` is not in weights; did you mean"),
        ({"guidelines": {"v2": {"kind": 2}}}, "guidelines.v2: `kind` is not in weights; known:"),
        ({"poeple": 3}, "poeple"),
        ({"length_bias": float("inf")}, "finite number"),
        ({"position_bias": float("nan")}, "finite number"),
        ({"temperature": float("inf")}, "finite number"),
        ({"weights": {"safe": float("inf")}}, "finite number"),
    ],
)
def test_wrong_descriptions(given: object, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Crowd.model_validate(given)
    assert message in str(error.value)


def test_guidelines_by_name() -> None:
    crowd = Crowd(guidelines={"v2": {"safe": 2.0}})
    assert crowd.guideline(None) is None
    found = crowd.guideline("v2")
    assert found is not None
    assert found.factors == {"safe": 2.0}
    with pytest.raises(ConfigError, match="no version `v3`; known: v2"):
        crowd.guideline("v3")


@pytest.mark.parametrize(("people", "overlap"), [(5, 1), (5, 2), (7, 3), (4, 4)])
def test_everybody_works_about_as_much(people: int, overlap: int) -> None:
    rows = list(assign(83, people, overlap, seed=3))
    assert all(len(set(row)) == overlap for row in rows)
    load = Counter(person for row in rows for person in row)
    assert max(load.values()) - min(load.values()) <= 2
    assert rows == list(assign(83, people, overlap, seed=3))
    # companions change: not always the same ones meet
    if 1 < overlap < people:
        assert len({frozenset(row) for row in rows}) > people


def test_more_overlap_than_people() -> None:
    with pytest.raises(ConfigError, match="`overlap` 3 is more than the 2 people"):
        list(assign(1, 2, 3, seed=0))
