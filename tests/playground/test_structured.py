"""JSON and Markdown lists: valid, near misses, and what is neither."""

from __future__ import annotations

import pytest

from goodheart.playground.structured import json_shape, list_shape

FRUITS = ("apple", "plum", "pear", "fig")


@pytest.mark.parametrize(
    ("text", "valid", "form", "content"),
    [
        ('{"name": "Mira", "age": "7"}', True, 1.0, 1.0),
        ('{"age": 7, "name": "Mira"}', True, 1.0, 1.0),  # any order
        ('{"name": "Juna", "age": 7}', True, 1.0, 0.5),
        ('{"name": true, "age": [7]}', True, 1.0, 0.0),
        ('{"name": "Mira", "year": 7}', False, 0.3, 0.0),
        ('{"name": "Mira", "age": 7, "x": 1}', False, 0.3, 0.0),
        ('{"name": "Mira", "age": 6, "age": 7}', False, 0.3, 0.0),  # a key twice
        ("{name: Mira, age: 7}", False, 0.2, 1.0),
        ('{"name": "Mira", "age": 7', False, 0.2, 1.0),
        ('{"name": "Mira", "age": 7}}', False, 0.2, 1.0),
        ("name Mira age 7", False, 0.0, 0.0),
        ("[1, 2]", False, 0.0, 0.0),
        ("{}", False, 0.0, 0.0),
        ("[" * 100_000, False, 0.0, 0.0),
        ("", False, 0.0, 0.0),
    ],
)
def test_json(text: str, valid: bool, form: float, content: float) -> None:
    shape = json_shape(text, ["name", "age"], ["Mira", "7"])
    assert (shape.valid, shape.form, shape.content) == (valid, form, content)


@pytest.mark.parametrize(
    ("text", "valid", "form", "content"),
    [
        ("- apple\n- plum", True, 1.0, 1.0),
        ("- apple\n- cat", True, 1.0, 0.5),
        ("- apple\n- apple", True, 1.0, 0.5),  # twice the same is one
        ("- apple\n- plum\n- pear", False, 0.5 * 2 / 3, 1.0),
        ("- apple", False, 0.25, 0.5),
        ("* apple\n* plum", False, 0.5, 1.0),
        ("1. apple\n2. plum", False, 0.5, 1.0),
        ("- apple.\n- plum.", True, 0.8, 1.0),
        ("apple, plum.", False, 0.15, 1.0),
        ("Here:\n- apple\n- plum", False, 0.0, 0.0),
        ("", False, 0.0, 0.0),
    ],
)
def test_list(text: str, valid: bool, form: float, content: float) -> None:
    shape = list_shape(text, 2, FRUITS)
    assert (shape.valid, shape.form, shape.content) == (valid, pytest.approx(form), pytest.approx(content))
