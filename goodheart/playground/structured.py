"""Formats that a prompt of the world asks for: JSON with given keys, a Markdown list of n."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_BULLET = re.compile(r"- (\S.*)")
_MARKED = re.compile(r"(?:[-*+]|\d+[.)])\s*(\S.*)")


@dataclass(frozen=True)
class Shape:
    """How far a text is in the format asked for, and how far what it holds is what was asked for."""

    valid: bool
    form: float  # 1 = valid, less for near misses
    content: float  # share of what was asked for
    length: int  # items or values given


def json_shape(text: str, keys: Sequence[str], values: Sequence[str]) -> Shape:
    """One JSON object, nothing around it, with these keys, each once.

    A number may stand with or without quotation marks. What is not valid JSON but holds every key and value between
    braces has a little of the form.
    """
    try:
        found = json.loads(text.strip(), object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError):
        found = None
    is_object = isinstance(found, list) and all(isinstance(pair, tuple) for pair in found) and bool(found)
    if is_object and sorted(key for key, _ in found) == sorted(keys):
        given = dict(found)
        right = sum(
            isinstance(given[k], str | int) and not isinstance(given[k], bool) and str(given[k]) == v
            for k, v in zip(keys, values, strict=True)
        )
        return Shape(True, 1.0, right / len(keys), len(keys))
    if is_object:  # other keys: the values cannot be what was asked for
        return Shape(False, 0.3, 0.0, len(found))
    braced = (
        text.strip().startswith("{") and text.count("{") == 1 and len(text) <= 3 * len("".join((*keys, *values))) + 12
    )
    held = sum(text.count(piece) == 1 for piece in (*keys, *values)) / (len(keys) + len(values)) if braced else 0.0
    return Shape(False, 0.2 if held else 0.0, held, 0)


def list_shape(text: str, count: int, known: Sequence[str]) -> Shape:
    """A Markdown list of `count` bullets and nothing else; content is the share of different known items.

    Numbers or other marks in place of bullets, and a wrong count, have a part of the form.
    """
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    bullets = [match[1] for line in lines if (match := _BULLET.fullmatch(line))]
    marked = [match[1] for line in lines if (match := _MARKED.fullmatch(line))]
    if not marked or len(marked) < len(lines):
        return Shape(False, *_comma_list(text, count, known))
    items = [unicodedata.normalize("NFKC", item).strip(" .。,，") for item in marked]
    exact = items == marked  # an item has no full stop
    content = len(set(items) & set(known)) / max(len(items), count)
    valid = len(bullets) == len(lines) == count
    form = 1.0 if valid else 0.5 * min(len(marked), count) / max(len(marked), count)
    return Shape(valid, form if exact else 0.8 * form, content, len(marked))


def _comma_list(text: str, count: int, known: Sequence[str]) -> tuple[float, float, int]:
    """Form, content and length of items in a row: no list in Markdown, but an answer."""
    items = [item for item in re.split(r"[,，、\n.。]\s*", text.strip()) if item]
    right = len(set(items) & set(known)) / max(len(items), count, 1)
    return 0.15 if right else 0.0, right, len(items)
