"""Expressions of gates: read as Python's syntax, cut down to what a gate may have."""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from goodheart.errors import ConfigError

COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
COMPUTE: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ALLOWED = "a gate has names of results, numbers, texts, < <= > >= == !=, and, or, not, + - * /"
_LONGEST = 500  # characters
_DEEPEST = 50  # parts inside each other; more would exhaust the stack


def parse(text: str, where: str, stages: Sequence[str]) -> ast.expr:
    """The expression as Python reads it.

    Args:
        text: the expression.
        where: begins the error.
        stages: names of stages, to say which of them cannot be written.

    Raises:
        ConfigError: it cannot be read, or is too long or too deep.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{where}a gate of {len(text)} characters; make several gates of it")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        unsayable = [name for name in stages if _is_unsayable(name) and re.search(rf"(?<!\w){plain(name)}\b", text)]
        if unsayable:
            reason = f"a name cannot begin with a digit or be a word of Python; rename the stage `{unsayable[0]}`"
        raise ConfigError(f"{where}cannot be read: {reason}; {_ALLOWED}") from error
    except (RecursionError, MemoryError) as error:
        raise ConfigError(f"{where}too many parts inside each other; make several gates of it") from error
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [part for node in level for part in ast.iter_child_nodes(node)]
        if not level:
            return tree
    raise ConfigError(f"{where}too many parts inside each other; make several gates of it")


def _is_unsayable(stage: str) -> bool:
    """Whether a stage has a name that no expression can hold."""
    return not plain(stage).isidentifier() or keyword.iskeyword(plain(stage))


def names_in(node: ast.expr, where: str, *, in_number: bool = False) -> list[str]:
    """The first parts of all names in an expression; refuses everything that a gate may not have.

    Args:
        node: the expression.
        where: begins the error.
        in_number: whether a number or text is wanted, since it stands in a comparison or a computation.
    """
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
        return [parts_of(node, where)[0]]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str) and is_finite(node.value):
        return []
    inner: list[ast.expr] | None = None
    if isinstance(node, ast.BoolOp):
        inner, is_truth = node.values, True
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.UAdd):
        inner, is_truth = [node.operand], isinstance(node.op, ast.Not)
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTE:
        inner, is_truth = [node.left, node.right], False
    elif isinstance(node, ast.Compare) and all(type(op) in COMPARE for op in node.ops):
        inner, is_truth = [node.left, *node.comparators], True
    if inner is None:
        raise ConfigError(f"{where}`{ast.unparse(node)}` is not allowed; {_ALLOWED}")
    if is_truth and in_number:
        raise ConfigError(f"{where}`{ast.unparse(node)}` is true or false: neither compare it nor compute with it")
    number = isinstance(node, ast.Compare) or not is_truth
    return [name for part in inner for name in names_in(part, where, in_number=number)]


def is_truth(node: ast.expr) -> bool:
    """Whether the expression can be true or false; a bare name may be a result that is."""
    if isinstance(node, ast.BoolOp):
        return all(is_truth(part) for part in node.values)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not) and is_truth(node.operand)
    return isinstance(node, ast.Compare | ast.Attribute | ast.Subscript)


def parts_of(node: ast.expr, where: str = "") -> list[str]:
    """`ppo["objective/kl"].high` -> ppo, objective/kl, high."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*parts_of(node.value, where), node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return [*parts_of(node.value, where), node.slice.value]
    raise ConfigError(f"{where}`{ast.unparse(node)}` is not allowed; {_ALLOWED}")


def keys_meant(part: str, known: Mapping[str, Any]) -> list[str]:
    """The keys that a part may mean: its own, or those that read so with `_` for every other sign."""
    return [part] if part in known else [key for key in known if plain(str(key)) == part]


def is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def plain(name: str) -> str:
    return re.sub(r"\W", "_", name)
