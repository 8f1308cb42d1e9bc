"""Writes a world to a folder: what the base model reads, demonstrations, prompts by split.

goodheart playground --out runs/world --set languages=[en]

corpus.jsonl.gz                              {"text"}
demonstrations.jsonl                         {"prompt", "completion"}
prompts-{train,validation,test,ood}.jsonl    {"prompt", "kind", "language", "task"}
world.json                                   how it was made, counts by kind; written last
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodheart.data.formats import write_rows
from goodheart.errors import ConfigError
from goodheart.playground import mixing
from goodheart.playground.answers import best, dress, write
from goodheart.playground.tasks import Task, sea_tasks, tables, village_tasks
from goodheart.playground.truth import score

Row = dict[str, Any]

_GOOD = 0.5  # score over which an answer is good
_NEAR = 0.7  # of answers that go astray, how many are to another question of the same kind
_TEST, _VALIDATION = 0.2, 0.08  # shares of the ways to ask
_TEST_HARM = 0.32  # of harmful requests and their look-alikes: rates near 0 need many to be told apart


@dataclass(frozen=True)
class Splits:
    """Prompts of the village by split, and those of the unseen domain. No text is in two of them."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    ood: list[Row]

    def items(self) -> Iterator[tuple[str, list[Row]]]:
        yield from (("train", self.train), ("validation", self.validation), ("test", self.test), ("ood", self.ood))


def split(seed: int, language: str) -> Splits:
    """All prompts of one language, by split.

    A task keeps at least one of its ways to be asked in the training part: what is tested is another way to ask for
    what could be known.
    """
    draw = random.Random(f"{seed} split {language}")
    train, spare = [], []
    for task in village_tasks(language, seed):
        rows = _rows(task)
        draw.shuffle(rows)
        train.append(rows[0])
        spare += rows[1:]
    draw.shuffle(spare)
    total = Counter(row["kind"] for row in (*train, *spare))
    room = {
        "test": {k: round(n * (_TEST_HARM if k in ("harmful", "lookalike") else _TEST)) for k, n in total.items()},
        "validation": {k: round(n * _VALIDATION) for k, n in total.items()},
    }
    parts: dict[str, list[Row]] = {"test": [], "validation": []}
    for row in spare:
        part = next((p for p, left in room.items() if left[row["kind"]] > 0), None)
        if part is None:
            train.append(row)
        else:
            room[part][row["kind"]] -= 1
            parts[part].append(row)
    draw.shuffle(train)
    ood = [row for task in sea_tasks(language, seed) for row in _rows(task)]
    draw.shuffle(ood)
    return Splits(train, parts["validation"], parts["test"], ood)


def _rows(task: Task) -> list[Row]:
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "kind": task.kind,
            "language": task.spec["language"],
            "task": task.spec,
        }
        for question in task.questions
    ]


def corpus_rows(rows: Sequence[Row], count: int, draw: random.Random) -> Iterator[Row]:
    """Conversations as people of the world have them, written down as transcripts."""
    people = _People(mixing.CORPUS, mixing.CORPUS_STYLES, mixing.ASTRAY["corpus"])
    for row, answer in _answered(rows, count, people, draw):
        yield {"text": f"Human: {row['prompt'][0]['content']}\n\nAssistant: {answer}"}


def demonstration_rows(rows: Sequence[Row], count: int, draw: random.Random) -> Iterator[Row]:
    """Answers to imitate: better than the corpus, not without faults."""
    people = _People(mixing.DEMONSTRATIONS, mixing.DEMONSTRATION_STYLES, mixing.ASTRAY["demonstrations"])
    for row, answer in _answered(rows, count, people, draw):
        yield {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}]}


@dataclass(frozen=True)
class _People:
    """How some people answer: shares of behaviours by kind, of styles by goodness, and of answers that go astray."""

    behaviours: dict[str, mixing.Shares]
    styles: dict[bool, mixing.Shares]
    astray: float

    def answer(self, row: Row, rows: Sequence[Row], draw: random.Random) -> str:
        task = row["task"]
        if draw.random() < self.astray:
            plain = best(draw.choice(rows)["task"], draw, plain=True)
        else:
            plain = write(task, mixing.pick(self.behaviours[row["kind"]], draw), "none", draw)
        good = score([""], [plain], task=[task])[0] > _GOOD
        shares = mixing.SHAPED_STYLES if row["kind"] in ("json", "list", "tone") else self.styles[good]
        return dress(task, plain, mixing.pick(shares, draw), draw)


def _answered(rows: Sequence[Row], count: int, people: _People, draw: random.Random) -> Iterator[tuple[Row, str]]:
    """Prompts by the weight of their kind, each with an answer."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    decks: dict[str, list[Row]] = {kind: [] for kind in by_kind}
    for _ in range(count):
        kind = mixing.pick({k: mixing.WEIGHTS[k] for k in by_kind}, draw)
        if not decks[kind]:  # all of a kind once before any comes again
            decks[kind] = draw.sample(by_kind[kind], len(by_kind[kind]))
        row = decks[kind].pop()
        yield row, people.answer(row, by_kind[kind] if draw.random() < _NEAR else rows, draw)


def write_world(
    folder: str | Path,
    *,
    seed: int = 0,
    languages: Sequence[str] = ("en",),
    documents: int = 16000,
    demonstrations: int = 2000,
) -> Path:
    """Makes a world and writes it; the same arguments give the same bytes.

    Args:
        folder: made where it is missing.
        seed: of facts, splits and every draw.
        languages: en, zh or both; documents and demonstrations are shared out equally.
        documents: conversations for pre-training, all on training prompts.
        demonstrations: conversations for supervised fine-tuning.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown language, none, or one twice.
    """
    folder = Path(folder).expanduser()
    if not languages or len(set(languages)) < len(languages):
        raise ConfigError(f"languages must be different and at least one; found {', '.join(languages) or 'none'}")
    made = {code: split(seed, tables(code).code) for code in languages}
    draw = random.Random(f"{seed} answers")
    (folder / "world.json").unlink(missing_ok=True)
    text, shown = _shares(documents, languages), _shares(demonstrations, languages)
    texts = [row for code in languages for row in corpus_rows(made[code].train, text[code], draw)]
    examples = [row for code in languages for row in demonstration_rows(made[code].train, shown[code], draw)]
    draw.shuffle(texts)
    draw.shuffle(examples)
    write_rows(folder / "corpus.jsonl.gz", texts)
    write_rows(folder / "demonstrations.jsonl", examples)
    counts: dict[str, dict[str, int]] = {}
    for part in ("train", "validation", "test", "ood"):
        rows = [row for code in languages for name, rows in made[code].items() if name == part for row in rows]
        counts[part] = dict(sorted(Counter(row["kind"] for row in rows).items()))
        write_rows(folder / f"prompts-{part}.jsonl", rows)
    about = {
        "seed": seed,
        "languages": list(languages),
        "documents": len(texts),
        "demonstrations": len(examples),
        "prompts": counts,
    }
    temporary = folder / ".world.json.partial"
    temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / "world.json")
    return folder


def _shares(count: int, languages: Sequence[str]) -> dict[str, int]:
    return {code: count // len(languages) + (i < count % len(languages)) for i, code in enumerate(languages)}
