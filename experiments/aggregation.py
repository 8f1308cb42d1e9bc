"""Labels of a crowd with careless people in it, made one label per pair: by majority, or minding who can be trusted.

    python -m experiments.aggregation                         # simulated crowds, and real ones (needs ../shared)
    python -m experiments.aggregation --model runs/demo/sft   # trains a reward model on each kind of labels besides

The crowd is the playground's: 40 people of whom 20 % judge half of the time without looking, three per prompt. Truth is
what the same people would say together without noise, haste or personal taste. Writes
experiments/results/aggregation.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from goodheart.data.formats import write_rows
from goodheart.data.records import Answer, Judgement, Message, Prompt
from goodheart.feedback.aggregation import PairLabels, dawid_skene, dawid_skene_of_pairs, majority, majority_of_pairs
from goodheart.feedback.effects import pace, too_fast
from goodheart.feedback.intervals import wilson
from goodheart.feedback.labellers import judged, table
from goodheart.feedback.noisy_pairs import noisy_bradley_terry
from goodheart.feedback.votes import Comparisons, Votes, comparisons
from goodheart.playground.answers import STYLES, behaviours, write
from goodheart.playground.labellers import Labeller
from goodheart.playground.population import Crowd, assign, population
from goodheart.playground.truth import aspects
from goodheart.playground.world import split

HERE = Path(__file__).parent
PEOPLE, CARELESS, OVERLAP = 40, 0.2, 3


def crowd(careless: float = CARELESS, **changes: Any) -> Crowd:
    """The preset `crowd` with a share of careless people and no spammers."""
    given = {"like": "crowd", "people": PEOPLE, "careless": careless, "spammers": 0.0, **changes}
    return Crowd.model_validate(given)


def labelled(
    described: Crowd, prompts: int, answers: int, overlap: int, seed: int
) -> tuple[list[Judgement], dict[tuple[str, str], float], tuple[Labeller, ...]]:
    """Judgements, the common taste of each (prompt key, answer), and who the people are."""
    people, draw = population(described, seed), Random(f"aggregation {seed}")
    rows = draw.sample(split(seed, "en").train, prompts)
    judgements, taste = [], {}
    for i, chosen in enumerate(assign(prompts, len(people), overlap, seed)):
        row = rows[i]
        prompt = Prompt(tuple(Message(m["role"], m["content"]) for m in row["prompt"]), meta={"task": row["task"]})
        said = list(_said(row["task"], answers, draw))
        scored = aspects([row["prompt"]] * len(said), said, task=[row["task"]] * len(said))
        for text, found in zip(said, scored, strict=True):
            taste[prompt.key, text] = described.common.taste(found)
        shown = tuple(Answer(text) for text in said)
        for k in chosen:
            judgements.append(people[k].compare(prompt, shown, scored, Random(f"{seed} {k} {i}")))
    return judgements, taste, people


def _said(task: dict[str, Any], count: int, draw: Random) -> Iterator[str]:
    """Different answers, good and bad in known ways."""
    found: set[str] = set()
    while len(found) < count:
        text = write(task, draw.choice(behaviours(task["kind"])), draw.choice(STYLES), draw)
        if text not in found:
            found.add(text)
            yield text


def gold(judgements: Sequence[Judgement], taste: dict[tuple[str, str], float], every: int = 10) -> list[bool | None]:
    """Every tenth prompt is a gold item, where one of two answers is clearly better (0.2 of taste): right or wrong."""
    keys = {key: i for i, key in enumerate(dict.fromkeys(j.prompt.key for j in judgements))}
    found: list[bool | None] = []
    for judgement in judgements:
        values = [taste[judgement.prompt.key, answer.words] for answer in judgement.answers]
        ranked = sorted(values, reverse=True)
        if keys[judgement.prompt.key] % every or ranked[0] - ranked[1] < 0.2:
            found.append(None)
        else:
            best = values.index(ranked[0])
            found.append(judgement.ranks[best] == 0 and list(judgement.ranks).count(0) == 1)
    return found


def detection(
    careless: float, seed: int, *, prompts: int = 1000, with_gold: bool = True, **changes: Any
) -> dict[str, float]:
    """How many careless people are found, and how many others are taken for careless."""
    judgements, taste, people = labelled(crowd(careless, **changes), prompts, 2, OVERLAP, seed)
    rows = table(judged(judgements, gold(judgements, taste) if with_gold else None))
    truly = {person.name: person.carelessness > 0 for person in people}
    found = {row.name for row in rows if row.careless}
    return {
        "careless": sum(truly.values()),
        "found": sum(truly[name] for name in found),
        "false": sum(not truly[name] for name in found),
        "careful": sum(not each for each in truly.values()),
        "judgements": len(judgements) / len(people),
    }


Labels = dict[str, PairLabels]


def methods(pairs: Comparisons, judgements: Sequence[Judgement]) -> Labels:
    """One label per pair by each method."""
    return {
        "majority": majority_of_pairs(pairs),
        "Dawid-Skene": dawid_skene_of_pairs(pairs)[0],
        "noisy Bradley-Terry": noisy_bradley_terry(pairs).pairs,
        "noisy Bradley-Terry, with times": noisy_bradley_terry(pairs, trust_N=read(pairs, judgements)).pairs,
    }


def read(pairs: Comparisons, judgements: Sequence[Judgement]) -> Any:
    """(N,) 1 where there was time to read, 0 where not."""
    seconds = np.array([np.nan if j.seconds is None else j.seconds for j in judgements])
    characters = np.array([float(sum(len(a.words) for a in j.answers)) for j in judgements])
    fast = too_fast(pace(seconds, characters))
    by_name = {(j.prompt.key, j.rater): not each for j, each in zip(judgements, fast, strict=True)}
    rows = zip(pairs.item_N, pairs.labeller_N, strict=True)
    return np.array([float(by_name[pairs.items[i], pairs.labellers[k]]) for i, k in rows])


def simulated(careless: float, carelessness: float, seeds: int, prompts: int) -> list[dict[str, Any]]:
    """Share of the pairs whose aggregated label points to the truly better answer, over all seeds."""
    right: dict[str, list[float]] = {}
    for seed in range(seeds):
        judgements, taste, _ = labelled(crowd(careless, carelessness=carelessness), prompts, 2, OVERLAP, seed)
        pairs = comparisons(judgements)
        worth = np.array([taste[name] for name in pairs.names])
        for method, labels in methods(pairs, judgements).items():
            apart = worth[labels.keys_P[:, 1]] - worth[labels.keys_P[:, 2]]
            said = labels.better_P[apart != 0] - 0.5
            half = np.abs(said) < 1e-9
            right.setdefault(method, []).extend(np.where(half, 0.5, (said > 0) == (apart[apart != 0] > 0)).tolist())
    name = f"playground, {careless:.0%} careless in {carelessness:.0%} of their judgements"
    return [_row(name, method, np.array(found), right["majority"]) for method, found in right.items()]


def _row(data: str, method: str, right_I: Any, majority_I: Any) -> dict[str, Any]:
    """Accuracy with Wilson's interval, and the difference to the majority with a paired 95 % interval over items."""
    low, high = wilson(float(np.sum(right_I)), len(right_I))
    change = np.asarray(right_I) - np.asarray(majority_I)
    half = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5
    return {
        "data": data,
        "method": method,
        "items": len(right_I),
        "accuracy": float(np.mean(right_I)),
        "low": float(low),
        "high": float(high),
        "over_majority": float(change.mean()),
        "over_low": float(change.mean()) - half,
        "over_high": float(change.mean()) + half,
    }


def _labels_beside_gold(data: str, votes: Votes, gold_of: dict[Any, Any]) -> list[dict[str, Any]]:
    """Majority and Dawid-Skene on plain labels."""
    place = {value: v for v, value in enumerate(votes.values)}
    known = [i for i, item in enumerate(votes.items) if gold_of.get(item) in place]
    truth = [place[gold_of[votes.items[i]]] for i in known]
    right = {}
    for method, probability in (("majority", majority(votes)), ("Dawid-Skene", dawid_skene(votes).probability_IV)):
        top = np.isclose(probability[known], probability[known].max(1, keepdims=True), atol=1e-9)
        right[method] = top[np.arange(len(known)), truth] / top.sum(1)  # a split vote is right in part
    return [_row(data, method, found, right["majority"]) for method, found in right.items()]


def real(shared: Path) -> list[dict[str, Any]]:
    """Real labels beside gold; `crowd_hitspam_mturk` names its gold items otherwise than its labels, so it has none."""
    from tests.feedback import real as rows

    labels, written_as = rows.hatecheck(shared)
    found = _labels_beside_gold("hatecheck", Votes.of(labels), written_as)
    arguments = rows.ukp(shared)
    plain = Votes.of((r["pair_id"], a["worker"], a["value"]) for r in arguments for a in r["annotations"])
    found += _labels_beside_gold("ukp_convarg (a1, a2, equal)", plain, {r["pair_id"]: r["gold"] for r in arguments})
    return found + _arguments(arguments)


def _arguments(arguments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same pairs as comparisons: with one score for an argument in all its pairs, and with pairs on their own."""
    outcome = {"a1": 1.0, "a2": 0.0, "equal": 0.5}
    decided = [row for row in arguments if row["gold"] in ("a1", "a2")]
    right = {}
    ways = (("majority", False), ("noisy Bradley-Terry", True), ("noisy Bradley-Terry, pair by pair", False))
    for method, shared in ways:
        rows = []
        for r in arguments:
            whole = r["debate_side"] if shared else r["pair_id"]
            if r["a1"] != r["a2"]:
                ends = (whole, r["a1"]), (whole, r["a2"])
                rows += [(r["pair_id"], a["worker"], *ends, outcome[a["value"]]) for a in r["annotations"]]
        pairs = Comparisons.of(rows)
        labels = majority_of_pairs(pairs) if method == "majority" else noisy_bradley_terry(pairs).pairs
        said = {
            pairs.items[item]: (share if pairs.names[a][1] == first else 1 - share)
            for (item, a, _), share, first in zip(
                labels.keys_P.tolist(), labels.better_P, _firsts(arguments, pairs, labels), strict=True
            )
        }
        right[method] = [
            0.5 if abs(said[r["pair_id"]] - 0.5) < 1e-9 else float((said[r["pair_id"]] > 0.5) == (r["gold"] == "a1"))
            for r in decided
            if r["pair_id"] in said
        ]
    return [_row("ukp_convarg (better of two)", method, each, right["majority"]) for method, each in right.items()]


def _firsts(arguments: Sequence[dict[str, Any]], pairs: Comparisons, labels: PairLabels) -> list[str]:
    """The text of `a1` of each labelled pair."""
    first = {r["pair_id"]: r["a1"] for r in arguments}
    return [first[pairs.items[item]] for item in labels.keys_P[:, 0]]


def found_careless(seeds: int, prompts: int) -> list[dict[str, Any]]:
    """Careless people found, and careful people flagged, over several crowds."""
    rows = []
    for name, careless, changes in (
        ("half of their judgements", CARELESS, {}),
        ("half, without gold items", CARELESS, {"with_gold": False}),
        ("a quarter of their judgements", CARELESS, {"carelessness": 0.25}),
        ("nobody is careless", 0.0, {}),
    ):
        sums: dict[str, float] = {}
        for seed in range(seeds):
            for key, value in detection(careless, seed, prompts=prompts, **changes).items():
                sums[key] = sums.get(key, 0) + value
        rows.append({"careless": name, **sums, "judgements": sums["judgements"] / seeds})
        print(rows[-1], flush=True)
    return rows


def trained(model: str, out: Path, prompts: int, seeds: int, carelessness: float) -> list[dict[str, Any]]:
    """Accuracy against truth of reward models that learnt from each kind of labels, on prompts held out from all."""
    from goodheart.stages.reward import RewardConfig
    from goodheart.stages.reward import train as train_reward

    rows = []
    for seed in range(seeds):
        judgements, taste, _ = labelled(crowd(carelessness=carelessness), prompts, 2, OVERLAP, seed)
        pairs = comparisons(judgements)
        worth = np.array([taste[name] for name in pairs.names])
        asked = {j.prompt.key: [m.as_dict() for m in j.prompt.messages] for j in judgements}
        held = set(sorted(asked)[::5])
        for method, labels in methods(pairs, judgements).items():
            folder = out / f"{method.replace(' ', '-').lower()}-{seed}"
            keys = labels.keys_P
            truth_P = worth[keys[:, 1]] - worth[keys[:, 2]]
            inside_P = np.array([pairs.items[item] in held for item in keys[:, 0]])
            for name, which_P, lean_P in (("train", ~inside_P, labels.better_P - 0.5), ("truth", inside_P, truth_P)):
                write_rows(folder / f"{name}.jsonl", _rows(pairs, keys[which_P], lean_P[which_P], asked))
            run = train_reward(
                RewardConfig(
                    model=model,
                    data=str(folder / "train.jsonl"),
                    eval_data=str(folder / "truth.jsonl"),
                    out=folder / "run",
                    seed=seed,
                    batch_size=8,
                    learning_rate=1e-3,
                    epochs=3,
                )
            )
            found = {key: run.results[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "pairs")}
            rows.append({"labels": method, "seed": seed, **found})
            print(rows[-1], flush=True)
    return rows


def _rows(pairs: Comparisons, keys: Any, lean: Any, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pairs with a better and a worse answer; those whose label is split say nothing."""
    for (item, a, b), toward in zip(keys.tolist(), lean.tolist(), strict=True):
        if abs(toward) > 1e-9:
            chosen, rejected = (a, b) if toward > 0 else (b, a)
            prompt = asked[pairs.items[item]]
            yield {"prompt": prompt, "chosen": pairs.names[chosen][1], "rejected": pairs.names[rejected][1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="start of the reward models (the demo's `runs/demo/sft`); none = labels alone")
    parser.add_argument("--out", type=Path, default=Path("runs/aggregation"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--carelessness", type=float, default=1.0, help="of the reward models' crowd: 1 = never look")
    a = parser.parse_args()
    found: dict[str, Any] = {"prompts": a.prompts, "seeds": a.seeds}
    crowds = ((0.0, 0.5), (CARELESS, 0.5), (CARELESS, 1.0), (0.4, 1.0))
    found["labels"] = [row for shares in crowds for row in simulated(*shares, a.seeds, a.prompts)]
    shared = Path(os.environ.get("GOODHEART_SHARED", HERE.parents[1] / "shared"))
    if shared.is_dir():
        found["labels"] += real(shared)
    for row in found["labels"]:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    found["careless"] = found_careless(a.seeds, a.prompts)
    if a.model:
        found["reward"] = trained(a.model, a.out, a.prompts, a.seeds, a.carelessness)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "aggregation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
