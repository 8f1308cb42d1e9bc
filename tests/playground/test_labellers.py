"""Simulated labellers: do frequencies follow the stated laws, and can each bias be read back?

Every statistical check counts N draws with a fixed seed and allows 3.89 standard deviations of the expected share: one
false alarm in 10,000 per check, were the seed drawn anew.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest

from goodheart.data.records import Answer, Judgement, Message, Prompt
from goodheart.playground.labellers import Guideline, Labeller, gumbel, tiers

PROMPT = Prompt(messages=(Message("user", "Which?"),))
N = 4000


def assert_share(found: int, expected: float, draws: int = N) -> None:
    """Asserts that a share is what the law says."""
    assert abs(found / draws - expected) < 3.89 * math.sqrt(expected * (1 - expected) / draws), found / draws


def judged(labeller: Labeller, tastes: list[float], texts: list[str], draws: int = N) -> list[Judgement]:
    answers = [Answer(text) for text in texts]
    aspects = [{"good": taste} for taste in tastes]
    return [labeller.compare(PROMPT, answers, aspects, Random(f"{labeller.name} {i}")) for i in range(draws)]


def person(**settings: object) -> Labeller:
    return Labeller("p1", {"good": 1.0}, **({"temperature": 0.1} | settings))  # type: ignore[arg-type]


def test_pairs_follow_bradley_terry() -> None:
    # sigmoid((0.6 - 0.5) / 0.1) = sigmoid(1) = 0.731059
    found = judged(person(), [0.5, 0.6], ["aaaa", "bbbb"])
    assert_share(sum(j.ranks == (1, 0) for j in found), 0.731059)
    assert {j.ranks for j in found} == {(0, 1), (1, 0)}


def test_rankings_follow_plackett_luce() -> None:
    # weights e^2 : e^1 : e^0 = 7.389 : 2.718 : 1, sum 11.107
    found = Counter(j.ranks for j in judged(person(), [0.2, 0.1, 0.0], ["aaaa", "bbbb", "cccc"]))
    assert_share(sum(n for ranks, n in found.items() if ranks[0] == 0), 7.389056 / 11.107338)
    # first a, then b among b and c: 0.665241 * 2.718282 / 3.718282
    assert_share(found[0, 1, 2], 0.665241 * 0.731059)
    # first c, then b among a and b: 0.090031 * 2.718282 / 10.107338
    assert_share(found[2, 1, 0], 0.090031 * 0.268941)


def test_without_noise_the_better_always_wins() -> None:
    assert {j.ranks for j in judged(person(temperature=0.0), [0.5, 0.51, 0.2], ["a", "b", "c"], 50)} == {(1, 0, 2)}


def test_gumbel_has_its_mean_and_spread() -> None:
    chance = Random(1)
    draws = [gumbel(chance) for _ in range(20_000)]
    mean = sum(draws) / len(draws)
    variance = sum((x - mean) ** 2 for x in draws) / len(draws)
    # mean: Euler's 0.577216, standard deviation pi / sqrt(6) = 1.28255, so 3.89 * 1.28255 / sqrt(20000) = 0.0353
    assert abs(mean - 0.577216) < 0.0353
    # variance 1.644934; its error is sqrt((kurtosis - 1) / n) * variance = sqrt(4.4 / 20000) * 1.645 = 0.0244
    assert abs(variance - 1.644934) < 3.89 * 0.0244


def test_position_bias_can_be_read_back() -> None:
    # equal answers, the first shown favoured by 0.1 at temperature 0.1: sigmoid(1)
    found = judged(person(position_bias=0.1), [0.5, 0.5], ["aaaa", "bbbb"])
    assert_share(sum(j.ranks[j.shown_order[0]] == 0 for j in found if j.shown_order), 0.731059)
    # the order is drawn evenly, so no answer gains by it
    assert_share(sum(j.shown_order == (0, 1) for j in found), 0.5)
    assert_share(sum(j.ranks == (0, 1) for j in found), 0.5)


def test_the_middle_place_gains_half() -> None:
    found = judged(person(position_bias=0.2, temperature=0.0), [0.5, 0.5, 0.5], ["aaaa", "bbbb", "cccc"], 200)
    assert all([j.shown_order.index(k) for k in range(3)] == list(j.ranks) for j in found if j.shown_order)
    # 0.15 more taste: over the middle place's 0.1 below the first, under the last place's 0.2
    ahead = judged(person(position_bias=0.2, temperature=0.0), [0.65, 0.5, 0.5], ["aaaa", "bbbb", "cccc"], 200)
    places = Counter((j.shown_order.index(0), j.ranks[0]) for j in ahead if j.shown_order)
    assert set(places) == {(0, 0), (1, 0), (2, 1)}


def test_length_bias_can_be_read_back() -> None:
    # 16 letters against 8 are one doubling, worth 0.1: sigmoid(1)
    found = judged(person(length_bias=0.1), [0.5, 0.5], ["a" * 16, "b" * 8])
    assert_share(sum(j.ranks == (0, 1) for j in found), 0.731059)
    # a better short answer makes up for it: 0.1 + 0 against 0 + 0.1
    even = judged(person(length_bias=0.1), [0.4, 0.5], ["a" * 16, "b" * 8])
    assert_share(sum(j.ranks == (0, 1) for j in even), 0.5)


def test_careless_share() -> None:
    # 40 % at random, half of that wrong: 20 %; the rest never errs without noise
    found = judged(person(temperature=0.0, carelessness=0.4), [0.9, 0.1], ["aaaa", "bbbb"])
    assert_share(sum(j.ranks == (1, 0) for j in found), 0.2)


def test_haste_halves_the_time_and_doubles_the_noise() -> None:
    careful, hasty = (judged(person(haste=haste), [0.5, 0.6], ["a" * 200, "b" * 200]) for haste in (0.0, 1.0))
    assert_share(sum(j.ranks == (1, 0) for j in hasty), 0.622459)  # sigmoid(0.1 / 0.2)
    pairs = [(a.seconds or 0.0, b.seconds or 0.0) for a, b in zip(careful, hasty, strict=True)]
    assert all(abs(a / 2 - b) <= 0.1 for a, b in pairs)  # both are rounded to 0.1
    # 4 s + 400 characters / 20 per second = 24 s is the median; its error here is 1.2533 * 0.3 / sqrt(4000) = 0.6 %
    middle = sorted(a for a, _ in pairs)[N // 2]
    assert abs(middle / 24 - 1) < 3.89 * 0.006


def test_ties_are_what_is_not_noticed() -> None:
    # |logistic| < 0.1 / 0.1: 2 * sigmoid(1) - 1 = 0.462117
    found = judged(person(tie=0.1), [0.5, 0.5], ["aaaa", "bbbb"])
    assert_share(sum(j.ranks == (0, 0) for j in found), 0.462117)


@pytest.mark.parametrize("settings", [{"habit": "first"}, {"habit": "longest"}, {"carelessness": 1.0}])
def test_equal_texts_tie_for_who_does_not_look(settings: dict[str, object]) -> None:
    found = judged(person(**settings), [0.5, 0.1, 0.5], ["same", "other", "same"], 300)
    assert {j.ranks for j in found} <= {(0, 1, 0), (1, 0, 1)}
    if settings.get("habit") == "first":
        assert all((j.ranks[1] == 0) == (j.shown_order[0] == 1) for j in found if j.shown_order)


def test_equal_texts_always_tie() -> None:
    found = judged(person(position_bias=0.3), [0.5, 0.1, 0.5], ["same", "other", "same"], 300)
    assert all(j.ranks[0] == j.ranks[2] != j.ranks[1] for j in found)
    assert len({j.ranks for j in found}) == 2


def test_words_seen_twice_count_where_they_were_seen_first() -> None:
    # the first place is worth 0.3, the middle 0.15, the last nothing; "other" has 0.1 more taste
    found = judged(person(position_bias=0.3, temperature=0.0), [0.5, 0.6, 0.5], ["same", "other", "same"], 100)
    first = {j.shown_order.index(1): j.ranks for j in found if j.shown_order}
    # other at the first place 0.9 against 0.65; in the middle 0.75 against 0.8; at the last 0.6 against 0.8
    assert first == {0: (1, 0, 1), 1: (0, 1, 0), 2: (0, 1, 0)}


def test_spammers_follow_their_habit() -> None:
    first = judged(person(habit="first"), [0.9, 0.1, 0.5], ["aaaa", "bb", "c"], 100)
    assert all([j.ranks[k] for k in j.shown_order or ()] == [0, 1, 2] for j in first)
    longest = judged(person(habit="longest"), [0.9, 0.1, 0.5], ["a", "bbbb", "cc"], 100)
    assert {j.ranks for j in longest} == {(2, 0, 1)}
    assert all(1 <= (j.seconds or 0) <= 3 for j in first + longest)


def test_taste_is_the_weighted_mean_of_what_applies() -> None:
    labeller = Labeller("p1", {"safe": 3.0, "helpful": 1.0, "true": 5.0})
    # (3 * 1.0 + 1 * 0.2) / 4; `true` does not apply
    assert labeller.taste({"safe": 1.0, "helpful": 0.2, "true": None}) == pytest.approx(0.8)
    # a guideline that triples help: (3 * 1.0 + 3 * 0.2) / 6
    assert labeller.taste({"safe": 1.0, "helpful": 0.2}, Guideline("v2", {"helpful": 3.0})) == pytest.approx(0.6)
    assert labeller.taste({"true": None}) == 0.0
    assert Labeller("p1", {"safe": 0.1, "true": 0.3}).taste({"safe": 1.0, "true": 0.2}) == pytest.approx(0.4)
    assert labeller.taste({"safe": 0.4, "harmful": 1.0}) == pytest.approx(0.4)  # what nobody weighs does not count


def test_guidelines_turn_a_preference() -> None:
    labeller = Labeller("p1", {"safe": 1.0, "helpful": 2.0}, temperature=0.0)
    aspects = [{"safe": 1.0, "helpful": 0.0}, {"safe": 0.0, "helpful": 1.0}]
    answers = [Answer("No."), Answer("Yes.")]
    before = labeller.compare(PROMPT, answers, aspects, Random(0))
    after = labeller.compare(PROMPT, answers, aspects, Random(0), Guideline("v2", {"safe": 4.0}))
    assert (before.ranks, before.guideline) == ((1, 0), None)
    assert (after.ranks, after.guideline) == ((0, 1), "v2")


@pytest.mark.parametrize(
    ("perceived", "tie", "ranks"),
    [
        ([0.5, 0.9, 0.85, 0.76], 0.1, (2, 0, 0, 1)),  # 0.76 is near 0.85, yet not near the best of that tier
        ([1.0, 1.0], 0.0, (0, 0)),
        ([0.1, 0.2, 0.3], 0.0, (2, 1, 0)),
        ([0.1, 0.2, 0.3], 1.0, (0, 0, 0)),
    ],
)
def test_tiers(perceived: list[float], tie: float, ranks: tuple[int, ...]) -> None:
    assert tiers(perceived, tie) == ranks


def test_the_same_chance_gives_the_same_judgement() -> None:
    one, again = (judged(person(haste=0.5, carelessness=0.3), [0.5, 0.4], ["a", "b"], 50) for _ in range(2))
    assert one == again
    assert len({j.seconds for j in one}) > 10
