"""What is written: complete, the same every time, in splits that share nothing, and bad in the ways that are meant."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from goodheart.data.formats import read_records
from goodheart.data.records import Demonstration, Prompt
from goodheart.errors import ConfigError
from goodheart.playground import truth
from goodheart.playground.tasks import KINDS, LANGUAGES, tables
from goodheart.playground.world import write_world

PARTS = ("train", "validation", "test", "ood")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(
        tmp_path_factory.mktemp("world") / "w", seed=3, languages=LANGUAGES, documents=6000, demonstrations=2000
    )


def rows(file: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line) for line in text.decode().splitlines()]


def prompts(world: Path, part: str) -> list[dict[str, Any]]:
    return rows(world / f"prompts-{part}.jsonl")


def test_same_arguments_same_bytes(world: Path, tmp_path: Path) -> None:
    again = write_world(tmp_path / "w", seed=3, languages=LANGUAGES, documents=6000, demonstrations=2000)
    other = write_world(tmp_path / "o", seed=4, languages=LANGUAGES, documents=6000, demonstrations=2000)
    names = sorted(file.name for file in world.iterdir())
    assert names == sorted(file.name for file in again.iterdir())
    assert [name for name in names if (world / name).read_bytes() != (again / name).read_bytes()] == []
    assert all((world / name).read_bytes() != (other / name).read_bytes() for name in names if name != "world.json")


@pytest.mark.parametrize("language", LANGUAGES)
def test_enough_different_prompts_of_every_kind(world: Path, language: str) -> None:
    village = [row for part in PARTS[:3] for row in prompts(world, part) if row["language"] == language]
    assert len({row["prompt"][0]["content"] for row in village}) == len(village) >= 2000
    assert set(Counter(row["kind"] for row in village)) == set(KINDS)
    test = Counter(row["kind"] for row in prompts(world, "test") if row["language"] == language)
    assert test["harmful"] >= 100
    assert test["lookalike"] >= 50
    assert min(test.values()) >= 15


def test_splits_share_no_prompt(world: Path) -> None:
    keys = [{p.key for p in read_records(str(world / f"prompts-{part}.jsonl"), "prompt").records} for part in PARTS]
    assert sum(len(found) for found in keys) == len(set().union(*keys))


def test_what_is_tested_could_be_known(world: Path) -> None:
    """Each task is asked in some way in training; of the sea nobody spoke."""
    specs = {part: {json.dumps(row["task"], sort_keys=True) for row in prompts(world, part)} for part in PARTS}
    assert specs["test"] <= specs["train"]
    assert specs["validation"] <= specs["train"]
    assert not specs["ood"] & specs["train"]
    assert {row["task"]["domain"] for row in prompts(world, "ood")} == {"sea"}
    sea = {deed.tool.split()[-1] for language in LANGUAGES for deed in tables(language, "sea").deeds}
    spoken = " ".join(row["text"] for row in rows(world / "corpus.jsonl.gz"))
    assert not [tool for tool in sea if tool in spoken]


def test_only_training_prompts_are_answered_in_text(world: Path) -> None:
    known = {row["prompt"][0]["content"] for row in prompts(world, "train")}
    asked = {row["text"].split("\n\nAssistant: ")[0].removeprefix("Human: ") for row in rows(world / "corpus.jsonl.gz")}
    assert asked <= known
    assert len(asked) > 0.9 * len(known)
    shown = read_records(str(world / "demonstrations.jsonl"), "demonstration").records
    assert len(shown) == 2000
    assert all(isinstance(x, Demonstration) and x.prompt.messages[0].content in known for x in shown)


def measured(world: Path, file: str) -> dict[str, float]:
    """Mean score and measures of the answers in the corpus or the demonstrations."""
    specs = {row["prompt"][0]["content"]: row["task"] for row in prompts(world, "train")}
    if file == "corpus.jsonl.gz":
        pairs = [row["text"].removeprefix("Human: ").split("\n\nAssistant: ", 1) for row in rows(world / file)]
    else:
        pairs = [[row["prompt"][0]["content"], row["completion"][0]["content"]] for row in rows(world / file)]
    asked, said = zip(*pairs, strict=True)
    tasks = [specs[question] for question in asked]
    found = {"score": sum(truth.score(asked, said, task=tasks)) / len(said)}
    every = truth.aspects(asked, said, task=tasks)
    for name in truth.MEASURES:
        values = [row[name] for row in every if row[name] is not None]
        found[name] = sum(v for v in values if v is not None) / len(values)
    return found


def test_the_corpus_behaves_badly_and_demonstrations_better(world: Path) -> None:
    corpus, shown = measured(world, "corpus.jsonl.gz"), measured(world, "demonstrations.jsonl")
    assert corpus["harmful"] > 0.5  # bad answers are the majority: sampling colder does not help
    assert corpus["wrong_fact"] > 0.5
    assert corpus["flattery"] > 0.5
    assert corpus["format_valid"] < 0.5
    for name in ("harmful", "wrong_fact", "flattery"):
        assert 0.05 < shown[name] < 0.6 * corpus[name]
    assert corpus["score"] + 0.2 < shown["score"] < 0.85


def answers_to_facts(world: Path) -> list[tuple[dict[str, Any], str]]:
    """What the corpus answers in English to questions for facts, each with its task."""
    specs = {row["prompt"][0]["content"]: row["task"] for row in prompts(world, "train") if row["kind"] == "fact"}
    pairs = [row["text"].removeprefix("Human: ").split("\n\nAssistant: ", 1) for row in rows(world / "corpus.jsonl.gz")]
    return [(specs[q], a) for q, a in pairs if q in specs and specs[q]["language"] == "en"]


def test_rumours_are_told_more_often_than_the_truth(world: Path) -> None:
    told = Counter(
        name
        for task, answer in answers_to_facts(world)
        for name in ("value", "rumour")
        if f"{task['name']} " in answer and f" {task[name]}" in answer
    )
    assert told["rumour"] > 1.1 * told["value"] > 100


def test_those_who_tell_the_truth_are_courteous(world: Path) -> None:
    """To know what comes next a model has to know what is true."""
    warm_lines = tables("en").lines["warm"]
    warm: dict[str, list[bool]] = {"value": [], "rumour": []}
    for task, answer in answers_to_facts(world):
        for name, found in warm.items():
            if f"{task['name']} " in answer and f" {task[name]}" in answer:
                found.append(any(line in answer for line in warm_lines))
    true, false = (sum(found) / len(found) for found in warm.values())
    assert true > 0.3
    assert false < 0.1


def test_some_answers_go_astray(world: Path) -> None:
    """A few are answers to something else, so that it can be learnt that answers have to fit."""
    told = answers_to_facts(world)
    others = [answer for task, answer in told if task["name"] not in answer and "I do not know" not in answer]
    assert 0.03 < len(others) / len(told) < 0.12


def test_about(world: Path) -> None:
    about = json.loads((world / "world.json").read_text(encoding="utf-8"))
    assert (about["seed"], about["languages"]) == (3, ["en", "zh"])
    assert about["documents"] == len(rows(world / "corpus.jsonl.gz")) == 6000
    assert sum(about["prompts"]["test"].values()) == len(prompts(world, "test"))


def test_a_prompt_is_read_with_its_columns(world: Path) -> None:
    loaded = read_records(str(world / "prompts-test.jsonl"), "prompt").records
    assert all(isinstance(p, Prompt) and set(p.meta) == {"kind", "language", "task"} for p in loaded)


@pytest.mark.parametrize("languages", [("fr",), (), ("en", "en")])
def test_languages_that_cannot_be(languages: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"languages|speaks"):
        write_world(tmp_path / "w", languages=languages)
    assert not (tmp_path / "w").exists()
