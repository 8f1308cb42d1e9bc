"""Who can be trusted is seen in the labels alone, and labels that mind it are better."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from goodheart.data.gather import gather
from goodheart.data.records import Answer, Judgement, Prompt, Thumb
from goodheart.errors import ConfigError
from goodheart.feedback.targets import through
from goodheart.feedback.trust import reliability, trusted

GOOD, BAD = Answer("good"), Answer("bad")
CAREFUL, CARELESS = ("ann", "bob"), ("cyd", "dan", "eve")


def crowd(prompts: int, seed: int = 0) -> Iterator[Judgement]:
    """Two who are right 19 times of 20 and three who toss coins; either answer comes first as often."""
    chance = random.Random(seed)
    for i in range(prompts):
        answers = (GOOD, BAD) if chance.random() < 0.5 else (BAD, GOOD)
        for name in (*CAREFUL, *CARELESS):
            right = chance.random() < (0.95 if name in CAREFUL else 0.5)
            better = GOOD if right else BAD
            yield Judgement(Prompt(text=f"q{i}"), answers, tuple(int(a is not better) for a in answers), rater=name)


def right(records: list[Judgement]) -> float:
    """Share of records that prefer the good answer; a half for who prefers neither."""
    found = 0.0
    for record in records:
        share = 1.0 if record.probability is None else record.probability
        first = 0.5 if record.ranks[0] == record.ranks[1] else share if record.ranks[0] == 0 else 1 - share
        better = first if record.answers[0] == GOOD else 1 - first
        found += 1.0 if better > 0.5 else 0.5 if better == 0.5 else 0.0
    return found / len(records)


def test_careless_people_are_trusted_less() -> None:
    found = reliability(crowd(300))
    assert found.pop("*") == 1.0  # every label has its rater
    assert found.keys() == {*CAREFUL, *CARELESS}
    assert min(found[name] for name in CAREFUL) > 0.75
    assert max(found[name] for name in CARELESS) < 0.25


def test_labels_that_mind_it_are_right_more_often() -> None:
    """Of five of whom three toss coins the majority errs in a tenth and more; the two who look hardly ever do."""
    said = list(crowd(300))
    made = [record for record in trusted(said) if isinstance(record, Judgement)]
    most = [record for record in gather(said, "majority") if isinstance(record, Judgement)]
    assert len(made) == len(most) == 300
    assert right(most) < 0.9
    assert right(made) > 0.93
    assert all(record.probability is not None and 0.5 <= record.probability <= 1 for record in made)
    assert {record.prompt.meta["votes"] for record in made} == {5}


def test_an_adjudication_is_the_last_word() -> None:
    said = list(crowd(50))
    last = Judgement(said[0].prompt, (BAD, GOOD), (0, 1), rater="judge", kind="adjudication")
    first, *rest = trusted([*said, last])
    assert isinstance(first, Judgement)
    preferred = first.answers[first.ranks.index(0)]
    assert (preferred, first.probability, len(rest)) == (BAD, 1.0, 49)
    assert "judge" not in reliability([*said, last])


def test_rankings_weigh_the_trusted_share() -> None:
    said: list[Judgement] = []
    for i in range(40):
        three = tuple(Answer(f"{letter}{i}") for letter in "abc")
        said += [Judgement(Prompt(text=f"r{i}"), three, (0, 1, 2), rater=name) for name in CAREFUL]
        odd = tuple(random.Random(i).sample(range(3), 3))
        said.append(Judgement(Prompt(text=f"r{i}"), three, odd, rater="cyd"))
    made = [record for record in trusted(said) if isinstance(record, Judgement)]
    of_last = [(record.ranks, record.weight) for record in made if record.prompt.text == "r39"]
    assert of_last[0][0] == (0, 1, 2)
    assert of_last[0][1] > 0.75  # two of three, and the third is trusted less
    assert sum(weight for _, weight in of_last) == pytest.approx(1)


def test_other_records_and_labels_that_say_nothing_pass() -> None:
    thumb = Thumb(Prompt(text="q"), GOOD, True)
    tie = Judgement(Prompt(text="t"), (GOOD, BAD), (0, 0), rater="ann")
    made = list(trusted([thumb, tie, *crowd(5)]))
    assert made[0] == thumb
    assert isinstance(made[1], Judgement)
    assert made[1].ranks == (0, 0)
    assert list(trusted([thumb])) == [thumb]
    assert reliability([]) == {}


def test_weights_beside_it_are_refused() -> None:
    assert through("trusted") is trusted
    for labels, trust in (("trusted", False), ("soft", True)):
        with pytest.raises(ConfigError, match="leave one of them out"):
            through(labels, {"*": 1.0}, trust=trust)


def test_trust_with_any_labels() -> None:
    said = list(crowd(100))
    known = reliability(said)
    weighed = through("each", trust=True)
    assert weighed is not None
    found = {record.rater: record.weight for record in weighed(said) if isinstance(record, Judgement)}
    assert found == {name: known[name] for name in (*CAREFUL, *CARELESS)}
    soft, plain = through("soft", trust=True), through("soft")
    assert soft is not None
    assert plain is not None
    by_trust, by_count = ([each for each in way(said) if isinstance(each, Judgement)] for way in (soft, plain))
    assert right(by_trust) > right(by_count)
