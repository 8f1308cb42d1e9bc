"""The stage `label`: files that the readers read, and how good the labels are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goodheart.data.formats import read_records
from goodheart.data.records import Judgement
from goodheart.errors import ConfigError, DataError
from goodheart.loop.simulate import SimulateConfig, simulate
from goodheart.train.config import build

ASPECTS = """\
def aspects(prompts, completions, topic, **columns):
    assert len(prompts) == len(completions) == len(topic)
    said = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [{"good": len(set(s)) / 10, "kind": None if t == "sum" else 0.5} for s, t in zip(said, topic)]


def total(prompts, completions, **columns):
    return [-len(set(c if isinstance(c, str) else c[0]["content"])) for c in completions]
"""
WEIGHTS = {"weights": {"good": 1.0, "kind": 1.0}, "temperature": 0.0, "people": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "label_aspects.py").write_text(ASPECTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "completions": ["aaaa", "abab", "abcd"],
            "models": ["m"] * 3,
            "finish": ["eos", "length", "eos"],
            "topic": "sum" if i % 2 else "how",
            "task": {"n": i},
        }
        for i in range(10)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def config(**settings: object) -> SimulateConfig:
    given = {"answers": "answers.jsonl", "aspects": "label_aspects:aspects", "out": "labels.jsonl"}
    return build(SimulateConfig, overrides=given | {"population": WEIGHTS} | settings)


def test_labels_are_read_as_rankings(folder: Path) -> None:
    done = simulate(config(overlap=2))
    judgements = read_records("labels.jsonl", "preference").records
    assert len(judgements) == 20 == done.results["labels"]
    for judgement in judgements:
        assert isinstance(judgement, Judgement)
        assert judgement.ranks == (2, 1, 0)  # 1, 2 and 4 different letters
        assert sorted(judgement.shown_order or ()) == [0, 1, 2]
        assert (judgement.seconds or 0) > 0
        assert judgement.prompt.meta["topic"] in ("sum", "how")
        assert "settings" not in judgement.prompt.meta
    assert len({j.rater for j in judgements if isinstance(j, Judgement)}) == 4
    assert len({j.shown_order for j in judgements if isinstance(j, Judgement)}) > 1
    row = json.loads((folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row["finish"] == ["eos", "length", "eos"]
    assert row["completions"][0]["model"] == "m"
    people = json.loads((folder / "labels.labellers.json").read_text(encoding="utf-8"))
    assert [p["name"] for p in people] == ["p1", "p2", "p3", "p4"]
    assert people[0]["weights"] == {"good": 1.0, "kind": 1.0}


def test_quality_beside_rulers(folder: Path) -> None:
    found = simulate(config(overlap=3)).results
    assert (found["prompts"], found["pairs"], found["ties"]) == (10, 90, 0)
    assert found["accuracy"] == 1.0
    assert found["always_longest"] == 0.5  # all are equally long
    assert found["agreement"] == found["agreement_with_majority"] == 1.0
    # against a truth that is the opposite
    assert simulate(config(truth="label_aspects:total")).results["accuracy"] == 0.0
    # one person per prompt has nobody to agree with
    assert simulate(config()).results["agreement"] is None


def test_noise_shows_in_the_quality(folder: Path) -> None:
    found = simulate(config(overlap=4, population=WEIGHTS | {"temperature": 50.0})).results
    # 120 labels of coin tosses: an accuracy of 0.5, standard deviation about sqrt(0.25 / 120) = 0.046 or a little more
    assert 0.3 < found["accuracy"] < 0.7
    assert 0.3 < found["agreement"] < 0.7


def test_the_seed_decides(folder: Path) -> None:
    noisy = WEIGHTS | {"temperature": 0.3}
    texts = []
    for seed in (1, 1, 2):
        simulate(config(seed=seed, population=noisy))
        texts.append((folder / "labels.jsonl").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]


PAIRS = WEIGHTS | {"weights": {"good": 1.0}}


def test_a_few_answers_at_a_time(folder: Path) -> None:
    rows = [
        {"prompt": "a", "completions": ["x", "yz", "x", "x", "xyz"], "topic": "how"},  # the second two are the same
        {"prompt": "b", "completions": ["x", "yz", "xyz", "x"], "topic": "how"},
        {"prompt": "c", "completions": ["x", "x", "yz"], "topic": "how"},  # none with two that differ
    ]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = simulate(config(answers="odd.jsonl", at_once=2))
    found = read_records("labels.jsonl", "preference").records
    assert [[a.text for a in j.answers] for j in found if isinstance(j, Judgement)] == [
        ["x", "yz"],
        ["x", "yz"],
        ["xyz", "x"],
    ]
    assert done.skipped.total == 1
    assert "nothing to rank" in done.summary()


def test_how_much_better_people_say_it_is(folder: Path) -> None:
    # taste is a tenth of the different letters: 0.1 against 0.2, 0.4, 0.7 and 0.9 is 0.1, 0.3, 0.6 and 0.8, that is, in
    # the first, second, third and last quarter: 0, 1, 2 and 3 thirds of the margin of the highest degree
    said = ["ab", "abcd", "abcdefg", "abcdefghi"]
    rows = [{"prompt": f"question {i}", "completions": ["a", text], "topic": "how"} for i, text in enumerate(said)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    simulate(config(answers="pairs.jsonl", at_once=2, margin=3, population=PAIRS))
    found = [j for j in read_records("labels.jsonl", "preference").records if isinstance(j, Judgement)]
    assert [j.margin or 0 for j in found] == pytest.approx([0, 1, 2, 3])
    assert all(j.ranks == (1, 0) for j in found)
    # who chooses against their own taste is not sure
    hasty = PAIRS | {"temperature": 50.0, "people": 1}
    simulate(config(answers="pairs.jsonl", at_once=2, margin=3, population=hasty, overlap=1, seed=4))
    found = [j for j in read_records("labels.jsonl", "preference").records if isinstance(j, Judgement)]
    assert {j.ranks for j in found} == {(0, 1), (1, 0)}
    for j, margin in zip(found, (0, 1, 2, 3), strict=True):
        assert (j.margin or 0) == pytest.approx(margin if j.ranks == (1, 0) else 0)


def test_equal_answers_have_no_margin(folder: Path) -> None:
    rows = [{"prompt": "a", "completions": ["ab", "ba"], "topic": "how"}]
    (folder / "same.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    simulate(config(answers="same.jsonl", at_once=2, margin=1, population=PAIRS | {"tie": 0.1}))
    (judgement,) = read_records("labels.jsonl", "preference").records
    assert isinstance(judgement, Judgement)
    assert (judgement.ranks, judgement.margin) == ((0, 0), None)


def test_a_margin_is_of_pairs(folder: Path) -> None:
    with pytest.raises(ConfigError, match="set at_once to 2"):
        config(margin=1)


def test_only_some_prompts(folder: Path) -> None:
    done = simulate(config(only={"topic": ["sum"]}, limit=3))
    found = read_records("labels.jsonl", "preference").records
    assert [j.prompt.text or j.prompt.messages[0].content for j in found if isinstance(j, Judgement)] == [
        "question 1",
        "question 3",
        "question 5",
    ]
    assert done.skipped.total == 0


def test_empty_answers_are_shown_to_nobody(folder: Path) -> None:
    rows = [
        {"prompt": "a", "completions": ["", "x", "yy"], "topic": "how"},
        {"prompt": "b", "completions": ["", "x", "x"], "topic": "how"},
        {"prompt": "c", "completions": "x", "topic": "how"},
        {"prompt": "d", "topic": "how"},
        {"prompt": "e", "completions": ["x", "yz"], "models": ["m"], "topic": "how"},
    ]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = simulate(config(answers="odd.jsonl"))
    (judgement,) = read_records("labels.jsonl", "preference").records
    assert isinstance(judgement, Judgement)
    assert [a.text for a in judgement.answers] == ["x", "yy"]
    assert judgement.prompt.text == "a"
    assert done.skipped.total == 4
    assert done.listed == Path("labels.skipped.jsonl")
    assert "nothing to rank" in done.summary()


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"aspects": "label_aspects:aspect"},
            ConfigError,
            "aspects label_aspects:aspect: `label_aspects` has no funct",
        ),
        ({"aspects": "nosuch:kind"}, ConfigError, "aspects nosuch:kind: cannot import module `nosuch`"),
        ({"truth": "nosuch:kind"}, ConfigError, "truth nosuch:kind: cannot import module `nosuch`"),
        ({"overlap": 5}, ConfigError, "`overlap` 5 is more than the 4 people"),
        ({"guideline": "v2"}, ConfigError, "no version `v2`"),
        (
            {"population": {"weights": {"god": 1.0}}},
            DataError,
            "never gives `god`, which population.weights names; ",
        ),
        ({"aspects": "label_aspects:total"}, DataError, "return a dict of finite numbers or None"),
        ({"aspects": "math:fsum"}, DataError, "math:fsum failed: TypeError"),
    ],
)
def test_wrong_settings(folder: Path, settings: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        simulate(config(**settings))
    assert message in str(error.value)
    assert not (folder / "labels.jsonl").exists()


def test_wrong_population_names_the_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key `population\.poeple`; did you mean `people`"):
        config(population={"poeple": 3})
    with pytest.raises(ConfigError, match="`population`: no preset `croud`; did you mean `crowd`"):
        config(population="croud")


@pytest.mark.parametrize("out", ["x.txt", "x", "x.txt.gz", "x.pdf"])
def test_a_file_that_holds_no_labels_is_refused_before_the_work(folder: Path, out: str) -> None:
    with pytest.raises(ConfigError, match=r"`out`: unknown kind of file for rows; use \.jsonl, \.json, \.csv"):
        config(out=out)
    assert config(out="x.csv.gz").out == Path("x.csv.gz")
