"""Answers in known good and bad ways, put together from the sentences of the world."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from goodheart.playground.language import Language
from goodheart.playground.tasks import tables

Spec = Mapping[str, Any]
Core = Callable[[Spec, Language, random.Random], list[str]]

# What may stand around the answer itself: nothing, or one sentence before (chatter) or after it (the others).
STYLES = ("none", "warm", "chatter", "rude", "gush")
_PLAIN_KINDS = ("json", "list", "tone")  # these are asked for alone: nothing around them can be welcome


def behaviours(kind: str) -> tuple[str, ...]:
    """The known ways to answer a kind of prompt, the best first."""
    return tuple(_CORES[kind])


def write(spec: Spec, behaviour: str, style: str, draw: random.Random) -> str:
    """One answer.

    Args:
        spec: of a task.
        behaviour: one of `behaviours(spec["kind"])`.
        style: one of `STYLES`.
        draw: where wordings come from.
    """
    words = tables(spec["language"], spec["domain"])
    return dress(spec, words.joint.join(_CORES[spec["kind"]][behaviour](spec, words, draw)), style, draw)


def dress(spec: Spec, plain: str, style: str, draw: random.Random) -> str:
    """An answer with what is said around it."""
    if style == "none":
        return plain
    words = tables(spec["language"], spec["domain"])
    extra = draw.choice(words.lines[style])
    if spec["kind"] in ("json", "list"):
        return extra + "\n" + plain
    return words.joint.join([extra, plain] if style == "chatter" else [plain, extra])


def best(spec: Spec, draw: random.Random | None = None, *, plain: bool = False) -> str:
    """An answer that the truth has nothing against; `plain`: without a warm word around it."""
    warm = not plain and spec["kind"] not in (*_PLAIN_KINDS, "harmful", "feeling")
    first = behaviours(spec["kind"])[0]
    return write(spec, first, "warm" if warm else "none", draw or random.Random(0))


def statement(task: Spec, words: Language, value: str) -> str:
    """The sentence that gives a person this value."""
    return words.relations[task["relation"]].statement.format(n=task["name"], v=value)


def _said(act: str) -> Core:
    return lambda task, words, draw: [draw.choice(words.lines[act])]


def _both(*cores: Core) -> Core:
    return lambda task, words, draw: [sentence for core in cores for sentence in core(task, words, draw)]


def _value(name: str) -> Core:
    return lambda task, words, draw: [statement(task, words, task[name])]


def _other_value(task: Spec, words: Language, draw: random.Random) -> list[str]:
    rest = [v for v in words.relations[task["relation"]].values if v not in (task["value"], task["rumour"])]
    return [statement(task, words, draw.choice(rest))]


def _sum(name: str) -> Core:
    return lambda task, words, draw: [words.sum_statement.format(a=task["a"], b=task["b"], c=task[name])]


def _other_sum(task: Spec, words: Language, draw: random.Random) -> list[str]:
    rest = [c for c in range(4, 13) if c not in (task["c"], task["rumour"])]
    return [words.sum_statement.format(a=task["a"], b=task["b"], c=draw.choice(rest))]


def _steps(first: str, then: str) -> Core:
    return lambda task, words, draw: [words.first.format(s=task[first]), words.then.format(s=task[then])]


def _strange_step(task: Spec, words: Language, draw: random.Random) -> list[str]:
    other = draw.choice([then for _, _, then in words.tasks if then != task["then"]])
    return [words.first.format(s=task["first"]), words.then.format(s=other)]


def _mood(act: str) -> Core:
    def core(task: Spec, words: Language, draw: random.Random) -> list[str]:
        name = f"{act}_{task['mood']}" if act == "mirror" else act
        return [draw.choice(words.lines[name]).format(f=task["feeling"], m=task["mirrored"])]

    return core


def _method(task: Spec, words: Language, draw: random.Random) -> list[str]:
    return [words.method.format(t=task["tool"], o=task["object"])]


def _strange_tool(task: Spec, words: Language, draw: random.Random) -> list[str]:
    tool = draw.choice([deed.tool for deed in words.deeds if deed.tool != task["tool"]])
    return [words.method.format(t=tool, o=task["object"])]


def _json(task: Spec, words: Language, draw: random.Random) -> list[str]:
    return [json.dumps(dict(zip(task["keys"], task["values"], strict=True)), ensure_ascii=False)]


def _bare_json(task: Spec, words: Language, draw: random.Random) -> list[str]:
    return ["{" + ", ".join(f"{k}: {v}" for k, v in zip(task["keys"], task["values"], strict=True)) + "}"]


def _open_json(task: Spec, words: Language, draw: random.Random) -> list[str]:
    return [_json(task, words, draw)[0][:-1]]


def _strange_json(task: Spec, words: Language, draw: random.Random) -> list[str]:
    name = draw.choice([n for n in words.names if n != task["values"][0]])
    return _json({**task, "values": [name, task["values"][1]]}, words, draw)


def _items(task: Spec, words: Language, draw: random.Random, count: int | None = None) -> list[str]:
    return draw.sample(words.categories[task["category"]], count or task["count"])


def _list(mark: str, more: tuple[int, ...] = (0,)) -> Core:
    def core(task: Spec, words: Language, draw: random.Random) -> list[str]:
        items = _items(task, words, draw, task["count"] + draw.choice(more))
        return ["\n".join(mark.format(i=i) + item for i, item in enumerate(items, 1))]

    return core


def _comma_list(task: Spec, words: Language, draw: random.Random) -> list[str]:
    return [
        "，".join(_items(task, words, draw)) + "。"
        if words.code == "zh"
        else ", ".join(_items(task, words, draw)) + "."
    ]


def _strange_list(task: Spec, words: Language, draw: random.Random) -> list[str]:
    items = _items(task, words, draw)
    other = draw.choice([c for c in words.categories if c != task["category"]])
    items[-1] = draw.choice(words.categories[other])
    return ["\n".join(f"- {item}" for item in items)]


def _honest(task: Spec, words: Language, draw: random.Random) -> list[str]:
    """Agrees with what is so and denies what is not, then says what is so."""
    return _both(_said("agree" if task["right"] else "deny"), _value("value"))(task, words, draw)


def _denied(task: Spec, words: Language, draw: random.Random) -> list[str]:
    return _both(_said("deny"), _value("rumour"))(task, words, draw)


def _tell(closing: bool, *, asked: bool, tone: str | None = None) -> Core:
    def core(task: Spec, words: Language, draw: random.Random) -> list[str]:
        rest = [t for t in words.registers if t != task["tone"]]
        chosen = tone or (task["tone"] if asked else draw.choice(rest))
        register = words.registers[chosen]
        line = register.line.format(n=task["name"], w=task["news"])
        return [line, register.closing] if closing else [line]

    return core


_CORES: dict[str, dict[str, Core]] = {
    "fact": {"true": _value("value"), "rumour": _value("rumour"), "other": _other_value, "unsure": _said("unsure")},
    "sum": {"true": _sum("c"), "rumour": _sum("rumour"), "other": _other_sum, "unsure": _said("unsure")},
    "howto": {
        "right": _steps("first", "then"),
        "swapped": _steps("then", "first"),
        "strange": _strange_step,
        "vague": _said("vague"),
        "unsure": _said("unsure"),
    },
    "feeling": {
        "kind": _both(_mood("mirror"), _mood("offer")),
        "warm": _both(_mood("mirror"), _mood("allow"), _mood("offer")),
        "short": _mood("mirror"),
        "allow": _mood("allow"),
        "mechanic": _mood("mechanic"),
        "robot": _both(_mood("mechanic"), _said("robot")),
        "dismiss": _mood("dismiss"),
    },
    "harmful": {
        "guide": _both(_said("refuse"), _said("turn")),
        "refuse": _said("refuse"),
        "lecture": _both(_said("refuse"), _said("lecture")),
        "comply": _method,
        "abet": _both(_method, _said("abet")),
        "vague": _said("vague"),
    },
    "lookalike": {
        "careful": _both(_method, _said("care")),
        "help": _method,
        "strange": _strange_tool,
        "refuse": _said("refuse"),
        "lecture": _both(_said("refuse"), _said("lecture")),
        "vague": _said("vague"),
    },
    "json": {
        "valid": _json,
        "bare": _bare_json,
        "open": _open_json,
        "strange": _strange_json,
        "unsure": _said("unsure"),
    },
    "list": {
        "valid": _list("- "),
        "comma": _comma_list,
        "numbers": _list("{i}. "),
        "count": _list("- ", (-1, 1)),
        "strange": _strange_list,
    },
    "belief": {
        "honest": _honest,
        "state": _value("value"),
        "agree": _said("agree"),
        "flatter": _both(_said("agree"), _said("gush")),
        "deny": _said("deny"),
        "denied": _denied,
    },
    "tone": {
        "fitting": _tell(True, asked=True),
        "short": _tell(False, asked=True),
        "blunt": _tell(False, asked=True, tone="direct"),
        "wrong": _tell(True, asked=False),
    },
}
