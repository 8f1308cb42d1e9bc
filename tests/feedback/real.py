"""Labels of real people, as rows (item, labeller, value); what each folder is: README.md beside them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = tuple[Any, str, Any]


def jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def pandalm(shared: Path) -> list[Row]:
    with gzip.open(shared / "data/pandalm_testset/testset-v1.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    return [(row["idx"], f"annotator{k}", row[f"annotator{k}"]) for row in rows for k in (1, 2, 3)]


def hatecheck(shared: Path) -> tuple[list[Row], dict[str, str]]:
    """The labels, and the label that each text was written for."""
    with gzip.open(shared / "data/hatecheck_annotations/all_annotations.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [f"label_{k}" for k in range(1, 11)]
    labels: list[Row] = [(row["case_id"], name, row[name]) for row in rows for name in names if row[name]]
    return labels, {row["case_id"]: row["label_gold"] for row in rows}


def hitspam(shared: Path) -> list[Row]:
    with gzip.open(shared / "data/crowd_hitspam_mturk/labels.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    return [(item, worker, label) for worker, item, label in rows]


def ukp(shared: Path) -> list[dict[str, Any]]:
    return list(jsonl(shared / "data/ukp_convarg_crowd/pairs_with_crowd_votes.jsonl.gz"))


def tulu(shared: Path) -> list[Row]:
    """Which of two models' answers is better, in three classes, from the side of the model whose name comes first."""
    found = []
    for row in jsonl(shared / "data/tulu_human_eval/eval_annotations_tulu_1.jsonl.gz"):
        swapped = row["model_a"] > row["model_b"]
        said = 0 if row["preference"] == "tie" else -1 if row["preference"].startswith("a-") else 1
        models = tuple(sorted((row["model_a"], row["model_b"])))
        found.append(((row["instance_id"], models), row["evaluator"], -said if swapped else said))
    return found
