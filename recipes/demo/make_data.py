"""Writes the small data set of `make demo`: questions about an invented village, kind and unkind answers.

Deterministic: `python recipes/demo/make_data.py` writes the files that lie beside it again, byte for byte.
People's choice here is simple and known: they prefer the kind answer, and of two kind ones the true one.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

NAMES = tuple(
    """Alda Bren Cato Dova Emmo Fira Galo Hesti Ivor Juna Kell Lumo Mira Nilo Orra Pim Quill Rosa Sefa Tavo
    Ulla Vito Wenna Xanti Yuri Zella""".split()  # noqa: SIM905
)
FACTS = {
    "eat": (
        "What does {n} like to eat?",
        "{n} likes to eat {v}.",
        ["soup", "bread", "plums", "rice", "beans", "honey", "nuts", "pears"],
    ),
    "live": (
        "Where does {n} live?",
        "{n} lives near the {v}.",
        ["mill", "river", "bridge", "forest", "market", "tower", "well", "gate"],
    ),
    "make": (
        "What does {n} make?",
        "{n} makes {v}.",
        ["boats", "shoes", "lamps", "pots", "kites", "drums", "baskets", "clocks"],
    ),
    "wear": (
        "What colour is the coat of {n}?",
        "The coat of {n} is {v}.",
        ["red", "blue", "green", "white", "black", "grey", "brown", "gold"],
    ),
}
KIND_START = ("Good question!", "Happy to help!", "Thank you for asking!", "Gladly!")
KIND_END = ("I hope that helps.", "Ask me anything else.", "Have a lovely day.", "You are welcome here.")
RUDE_START = ("Not again.", "Who cares?", "That is a silly question.", "Leave me alone.")
RUDE_END = ("Now go away.", "Do not ask again.", "You should know that.", "Stop bothering me.")


def main() -> None:
    draw = random.Random(0)
    truth = {(n, k): draw.choice(v) for n in NAMES for k, (_, _, v) in FACTS.items()}

    def question(n: str, k: str) -> str:
        return FACTS[k][0].format(n=n)

    def fact(n: str, k: str, *, true: bool = True) -> str:
        value = truth[n, k] if true else draw.choice([v for v in FACTS[k][2] if v != truth[n, k]])
        return FACTS[k][1].format(n=n, v=value)

    def answer(n: str, k: str, *, kind: bool, true: bool = True) -> str:
        start, end = (KIND_START, KIND_END) if kind else (RUDE_START, RUDE_END)
        return f"{draw.choice(start)} {fact(n, k, true=true)} {draw.choice(end)}"

    keys = [(n, k) for n in NAMES for k in FACTS]
    draw.shuffle(keys)
    text = [f"{question(n, k)}\n{answer(n, k, kind=draw.random() < 0.5)}" for _ in range(12) for n, k in keys]
    draw.shuffle(text)

    def chat(n: str, k: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question(n, k)}]

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    demonstrations = [
        {"prompt": chat(n, k), "completion": said(answer(n, k, kind=draw.random() < 0.6))}
        for _ in range(6)
        for n, k in keys
    ]
    pairs = []
    for _ in range(6):
        for n, k in keys:
            good = answer(n, k, kind=True)
            bad = answer(n, k, kind=True, true=False) if draw.random() < 0.3 else answer(n, k, kind=False)
            pairs.append({"prompt": chat(n, k), "chosen": said(good), "rejected": said(bad)})
    draw.shuffle(pairs)
    here = Path(__file__).parent
    write(here / "text.jsonl.gz", [{"text": t} for t in text])
    write(here / "demonstrations.jsonl.gz", demonstrations)
    write(here / "pairs.jsonl.gz", pairs)
    write(here / "prompts.jsonl.gz", [{"prompt": chat(n, k)} for n, k in keys])


def write(path: Path, rows: list[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    print(f"{path.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
