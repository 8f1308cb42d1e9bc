"""A few prompts with the answers of every model, chosen by rule so that nobody picked the flattering ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from goodheart.evaluate.answers import Answers
from goodheart.evaluate.interval import Samples

_LONGEST = 2000  # characters of an answer or prompt that are shown


def choose_examples(found: Answers, scored: Mapping[str, dict[str, Samples]], wanted: int) -> list[dict[str, Any]]:
    """Prompts of every kind in turn: those of typical change from the first model to the last, then where it lost most.

    Shown is each model's first answer. A third of the examples are the greatest losses over all kinds, so that what
    became worse is seen too; the rest is, in each kind, nearest to the kind's median change.
    """
    names, scores = found.names, scored["score"]
    change = [_first(scores[names[-1]], i) - _first(scores[names[0]], i) for i in range(len(found.prompts))]
    known = [i for i, x in enumerate(change) if not math.isnan(x)]
    losses = sorted((i for i in known if change[i] < 0), key=lambda i: (change[i], i))[: wanted // 3]
    typical = [i for i in _typical(found, change, known) if i not in losses][: wanted - len(losses)]
    chosen = [(i, "typical") for i in typical] + [(i, "loss") for i in losses]
    return [_example(found, scored, i, why) for i, why in chosen]


def _first(samples: Samples, prompt: int) -> float:
    value = samples[prompt][0] if samples[prompt] else None
    return math.nan if value is None else float(value)


def _typical(found: Answers, change: list[float], known: list[int]) -> list[int]:
    """Prompts in the order of interest: the most typical of each kind, then the second of each, and so on."""
    kinds: dict[str, list[int]] = {}
    for i in known:
        kinds.setdefault(str(found.prompts[i].meta.get("kind", "")), []).append(i)
    ranked = []
    for number, members in enumerate(kinds.values()):
        ordered = sorted(change[i] for i in members)
        median = ordered[len(ordered) // 2]
        members.sort(key=lambda i: (abs(change[i] - median), i))
        ranked += [(place, number, i) for place, i in enumerate(members)]
    return [i for _, _, i in sorted(ranked)]


def _example(found: Answers, scored: Mapping[str, dict[str, Samples]], i: int, why: str) -> dict[str, Any]:
    prompt = found.prompts[i]
    turns = [{"role": m.role, "content": _cut(m.content)} for m in prompt.messages]
    return {
        "why": why,
        "kind": prompt.meta.get("kind"),
        "language": prompt.meta.get("language"),
        "prompt": turns or [{"role": "", "content": _cut(prompt.text or "")}],
        "answers": {
            name: {
                "text": _cut(samples[i][0].words),
                "finish": samples[i][0].meta.get("finish"),
                "aspects": {aspect: models[name][i][0] for aspect, models in scored.items()},
            }
            for name, samples in found.models.items()
        },
    }


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
